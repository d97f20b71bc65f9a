"""What the machine, and every control group around this process, lets it use: cores and memory."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from pipeline.launched import num_local_ranks

PROC_VMSTAT = Path("/proc/vmstat")
PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def num_cores(*, proc_cgroup: Path = PROC_CGROUP, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Cores that can be kept busy: the affinity mask's, or fewer where a control group's quota allows fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for directory in _directories(proc_cgroup, cgroup_root, controller="cpu"):
        quota = _numbers(directory / "cpu.max") or [
            *_numbers(directory / "cpu.cfs_quota_us"),
            *_numbers(directory / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and min(quota) > 0:
            cores = min(cores, max(1, quota[0] // quota[1]))
    return cores


def cores_per_rank() -> int:
    """`num_cores()` shared out among the ranks that a launcher started on this host; at least 1."""
    return max(1, num_cores() // num_local_ranks())


def available_bytes(*, proc_cgroup: Path = PROC_CGROUP, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Memory that can be taken without swapping or being killed.

    The minimum over the machine's available memory and, for this process's control group and all its parents (v1 and
    v2), of limit - current + inactive page cache.
    """
    import psutil  # a megabyte that a worker process, which imports this file, has no use for

    rooms = [psutil.virtual_memory().available]
    for directory in _directories(proc_cgroup, cgroup_root, controller="memory"):
        for limit_name, usage_name in _MEMORY_FILES:
            room = _room(directory / limit_name, directory / usage_name, directory / "memory.stat")
            if room is not None:
                rooms.append(room)
    return max(0, min(rooms))


def release_freed_memory() -> None:
    """Give memory that was freed back to the system. glibc keeps it otherwise: 50 MB after a million paths."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries give back by themselves
        if trim is not None:
            trim(0)


def oom_kills(*, proc_cgroup: Path = PROC_CGROUP, cgroup_root: Path = CGROUP_ROOT) -> int | None:
    """Processes that the kernel has killed for memory in this process's control group; None where it does not tell."""
    for directory in _directories(proc_cgroup, cgroup_root, controller="memory"):
        for name in ("memory.events", "memory.oom_control"):
            stat = _stat(directory / name)
            if "oom_kill" in stat:
                return stat["oom_kill"]
    return _stat(PROC_VMSTAT).get("oom_kill")  # no such group here: those of the whole machine


_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _directories(proc_cgroup: Path, cgroup_root: Path, *, controller: str) -> list[Path]:
    """This process's control group and all its parents, for version 2 and for version 1's `controller`."""
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:  # no control groups on this system
        return []
    directories: list[Path] = []
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops = [cgroup_root]
        elif controller in controllers.split(","):
            # Controllers mounted together ("cpu,cpuacct") often have a link for each; not everywhere.
            tops = [cgroup_root / name for name in dict.fromkeys((controller, controllers))]
        else:
            continue
        # Inside a container the path may not exist, its directory being mounted as the root: the root always counts.
        relative = Path(path.lstrip("/"))
        directories += [top / group for top in tops for group in (relative, *relative.parents)]
    return directories


def _room(limit_file: Path, usage_file: Path, stat_file: Path) -> int | None:
    limit, used = _numbers(limit_file), _numbers(usage_file)
    if not limit or not used:  # this group has no limit of its own
        return None
    stat = _stat(stat_file)
    # Version 1 counts a group's children under total_; inactive page cache is given up before anybody is killed.
    return limit[0] - used[0] + stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _stat(file: Path) -> dict[str, int]:
    """The `name number` lines of a file; none where it is missing."""
    try:
        rows = [row.split() for row in file.read_text().splitlines()]
    except OSError:
        rows = []
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a small file; none where it is missing, says "max", or holds anything else."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
