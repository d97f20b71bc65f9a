"""What the machine, and every control group around this process, lets it use: cores and memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def num_cores(*, proc_cgroup: Path = PROC_CGROUP, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Cores that can be kept busy: the affinity mask's, or fewer where a control group's quota allows fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for directory in _directories(proc_cgroup, cgroup_root, controller="cpu"):
        try:
            if (directory / "cpu.max").exists():
                quota, period = (directory / "cpu.max").read_text().split()
            else:
                quota = (directory / "cpu.cfs_quota_us").read_text().strip()
                period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:  # this group has no limit of its own
            continue
        if quota not in ("max", "-1"):
            cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    return cores


def available_bytes(*, proc_cgroup: Path = PROC_CGROUP, cgroup_root: Path = CGROUP_ROOT) -> int:
    """Memory that can be taken without swapping or being killed.

    The minimum over the machine's available memory and, for this process's control group and all its parents (v1 and
    v2), of limit - current + inactive page cache.
    """
    rooms = [psutil.virtual_memory().available]
    for directory in _directories(proc_cgroup, cgroup_root, controller="memory"):
        for limit_name, usage_name in _MEMORY_FILES:
            room = _room(directory / limit_name, directory / usage_name, directory / "memory.stat")
            if room is not None:
                rooms.append(room)
    return max(0, min(rooms))


_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _directories(proc_cgroup: Path, cgroup_root: Path, *, controller: str) -> list[Path]:
    """This process's control group and all its parents, for version 2 and for version 1's `controller`."""
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:  # no control groups on this system
        return []
    directories: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = cgroup_root
        elif controller in controllers.split(","):
            top = cgroup_root / controller
        else:
            continue
        # Inside a container the path may not exist, its directory being mounted as the root: the root always counts.
        relative = Path(path.lstrip("/"))
        directories += [top / group for group in (relative, *relative.parents)]
    return directories


def _room(limit_file: Path, usage_file: Path, stat_file: Path) -> int | None:
    try:
        limit = limit_file.read_text().strip()
        if limit == "max":
            return None
        used = int(usage_file.read_text())
        rows = stat_file.read_text().splitlines()
    except OSError:  # this group has no limit of its own
        return None
    stat = {name: int(value) for name, value in (row.split() for row in rows)}
    # Version 1 counts a group's children under total_; inactive page cache is given up before anybody is killed.
    return int(limit) - used + stat.get("total_inactive_file", stat.get("inactive_file", 0))
