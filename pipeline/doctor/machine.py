"""Cores and open files: what the machine lends this process against what the run would ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config import Backend, TrainConfig
from pipeline.doctor.finding import Finding, ok, warning
from pipeline.machine import num_cores

if TYPE_CHECKING:
    from pipeline.doctor.plan import RunPlan  # a wrong configuration is told without torch

_MOST_PER_CORE = 4
"""Loading threads for each core, above which they wait for each other; two hide a disk's latency."""

_FILES_OF_A_RUN = 64
"""Descriptors of an interpreter with torch, its logs, a checkpoint and a store, with room to spare."""
_FILES_PER_PROCESS = 3
"""Of each worker process its parent holds a socket, a report and a pidfd; of a thread the file it reads."""
_FILES_PER_THREAD = 1
_SPLITS = 2


def check_cores(cfg: TrainConfig) -> Iterator[Finding]:
    """Cores by affinity and by the quota of control groups, against ranks and workers."""
    usable, ranks = num_cores(), cfg.dist.nproc
    yield ok("cores", f"{usable} to be used of {os.cpu_count()}{_who_limits(usable)}")
    if ranks > usable:
        yield warning("ranks", f"dist.nproc={ranks} on {_cores(usable)}: they wait for each other; lower dist.nproc")
    wanted = ranks * cfg.loader.resolved_num_workers(max(1, usable // ranks)) * cfg.loader.threads_per_worker
    if wanted > _MOST_PER_CORE * usable:
        yield warning(
            "workers",
            f"{wanted} threads would decode on {_cores(usable)}; lower loader.num_workers (auto: one a core) "
            "or loader.threads_per_worker",
        )


def check_open_files(plan: RunPlan) -> Iterator[Finding]:
    """`ulimit -n` against what workers need."""
    if sys.platform == "win32":
        yield ok("open files", "no limit that a process could ask for on this system")
        return
    import resource

    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(plan)
    is_unlimited = limit == resource.RLIM_INFINITY
    if is_unlimited or needed <= limit:
        allowed = "unlimited" if is_unlimited else f"{limit:,}"
        yield ok("open files", f"ulimit -n is {allowed}, a rank needs about {needed:,}")
        return
    can_raise = highest == resource.RLIM_INFINITY or highest >= needed
    cure = f"ulimit -n {needed}, or lower" if can_raise else f"the hard limit is {highest:,}, so lower"
    yield warning("open files", f"ulimit -n is {limit:,} and a rank needs about {needed:,}; {cure} loader.num_workers")


def files_needed(plan: RunPlan) -> int:
    """Descriptors that one rank has open at the same time, about; training and evaluation have workers each."""
    each = _FILES_PER_PROCESS if plan.backend is Backend.processes else _FILES_PER_THREAD
    return _FILES_OF_A_RUN + _SPLITS * each * max(1, plan.num_workers)


def _who_limits(usable: int) -> str:
    by_affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = []
    if by_affinity < (os.cpu_count() or 1):
        limits.append(f"the affinity mask has {by_affinity}")
    if usable < by_affinity:
        limits.append(f"a control group's quota is for {usable}")
    return f": {' and '.join(limits)}" if limits else ", no mask and no quota"


def _cores(count: int) -> str:
    return f"{count} core{'' if count == 1 else 's'}"
