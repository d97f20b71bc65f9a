"""Python's lock (the GIL), where it is what bounds a run: worker threads of the loop's process read by Python code.

Only one thread of a process runs Python at a time, and the loop needs that turn for every operation of a step: beside a
thread that computes in Python it waits up to the interpreter's switch interval, 5 ms, for each.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.stalls.bound import Bound, Lane, find_bound
from pipeline.stalls.costs import COMPUTE, Costs
from pipeline.stats import BUSY, MAKING_CPU, READ_CPU, Lanes

LOCK = "lock"
BUSY_PCT = 80.0
"""Cores that are busier have no time left for anybody else; who waits there waits for a core."""
_READS_PART = 0.25
"""The part of the wall time that reading has to take of a core for the lock to be what a step waits for."""
_WAITS_PART = 0.25
"""The part of its steps that the loop's thread has to be off a core for it to wait for the lock."""
_READS_ALONE_PART = 0.75
"""The part of the wall time above which readers leave one another next to no turn."""


def find_bound_or_lock(costs: Costs, lanes: Lanes, num_cores: int) -> Bound:
    """The slowest lane; or the lock, where that is why it is slow."""
    bound = find_bound(costs, lanes)
    if not lanes.in_threads or not lanes.num_threads or costs.busy_pct(num_cores) > BUSY_PCT:
        return bound
    reads_part = costs.sample_s[READ_CPU] * costs.num_samples / max(1e-9, costs.wall_s)
    reads = bound.lane is Lane.workers and bound.stage == "read"
    steps = bound.lane is Lane.loop and bound.stage == COMPUTE
    waits_s = costs.loop_s[COMPUTE] - costs.compute_cpu_s if costs.device_s is None else 0.0
    steps_wait = reads_part > _READS_PART and waits_s > _WAITS_PART * costs.loop_s[COMPUTE]
    holds = (reads and reads_part > _READS_ALONE_PART) or ((reads or steps) and steps_wait)
    return replace(bound, lane=Lane.workers, stage=LOCK) if holds else bound


def with_steps_alone(costs: Costs) -> Costs:
    """The costs where nobody else takes Python's turn: a step is as long as its thread was on a core."""
    if costs.device_s is not None:
        return costs
    compute_s = min(costs.loop_s[COMPUTE], costs.compute_cpu_s)
    return replace(costs, loop_s={**costs.loop_s, COMPUTE: compute_s})


def in_processes(costs: Costs, lanes: Lanes) -> tuple[Costs, Lanes]:
    """The costs and lanes of as many worker processes, each with a lock of its own."""
    sample_s = {**costs.sample_s, "read": costs.sample_s[READ_CPU], BUSY: costs.sample_s[MAKING_CPU]}
    return with_steps_alone(replace(costs, sample_s=sample_s)), replace(lanes, in_threads=False)
