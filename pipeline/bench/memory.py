"""What the whole process tree uses: memory, CPU time, and how long this process has been there."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

CPU_TICK_S = 0.01
"""What the system counts the CPU time of other processes in: a pass too short for one tick is taken to have used it."""

MAX_LOOKS = 10
"""How often the descendants are counted again because one of them ended meanwhile."""

PROC_STAT = Path("/proc/self/stat")
_START_TIME = 19
"""Field 22 of `/proc/PID/stat`, counted behind the command's name, which may hold spaces."""


def pss_mb() -> float | None:
    """Proportional set size of this process and all its descendants, in 10^6 bytes; None where it is not told."""
    if sys.platform != "linux":
        return None
    total_bytes = 0
    for member in _members():
        try:
            total_bytes += member.memory_full_info().pss
        except psutil.NoSuchProcess:  # it ended while it was looked at
            continue
        except psutil.AccessDenied:  # without it the sum would be of something else
            return None
    return total_bytes / 1e6


def children_cpu_s() -> float:
    """CPU seconds of all descendants, those that have ended and were waited for included, in ticks of the system.

    This process's own are `time.process_time`, which counts finer.
    """
    for _ in range(MAX_LOOKS):
        ended_s, living_s = _ended_cpu_s(), _living_cpu_s()
        # One that ended in between would be counted twice, or not at all.
        if living_s is not None and ended_s == _ended_cpu_s():
            return ended_s + living_s
    raise RuntimeError(f"the CPU time of child processes cannot be told: one ended at each of {MAX_LOOKS} looks")


def process_age_s() -> float:
    """Seconds since this process was started, at most a tick too many."""
    if not PROC_STAT.exists():
        return time.time() - psutil.Process().create_time()
    fields = PROC_STAT.read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")


def _members() -> list[psutil.Process]:
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def _ended_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _living_cpu_s() -> float | None:
    """Of the living descendants and of what they have waited for; None if one ended while it was looked at."""
    total_s = 0.0
    for member in _members()[1:]:
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            return None
        total_s += times.user + times.system + getattr(times, "children_user", 0.0)
        total_s += getattr(times, "children_system", 0.0)
    return total_s
