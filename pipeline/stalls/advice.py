"""One override that would make a run faster, by the costs of its stages; or that none would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.config import CachePolicy, Decode, PreloadMode, Store, TrainConfig
from pipeline.stalls.bound import COMPUTE, Bound, Lane, find_bound
from pipeline.stalls.costs import Costs
from pipeline.stats import COLLATE, Lanes

WORTH_IT = 1.1
"""Times as fast that an override must promise to be told: less is within what a machine does by itself."""
MOST_WORKERS_A_CORE = 8
"""Workers that wait for storage take no core; more than these take memory for nothing."""
BUSY_PCT = 80.0
"""Cores that are busier have no time left for anybody else."""
KEEP_PIXELS = "cache=pinned"
ROOM = 0.8
"""The part of free memory that a store of all samples may need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is lent to this rank, and how much a store of all decoded samples would take of it."""

    num_cores: int
    computes: bool
    """Whether the model runs on these cores too."""
    free_bytes: Callable[[], int]
    decoded_bytes: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """An override, with how many times as fast the epochs after the first would be; or None and why there is none."""

    override: str | None
    speedup: float
    why: str


def advise(costs: Costs, lanes: Lanes, config: TrainConfig, machine: Machine) -> Advice:
    """The override that promises most. It changes no sample."""
    bound = find_bound(costs, lanes)
    capacity = _capacity(costs, machine)
    best = Advice(override=None, speedup=1.0, why=_why_none(bound, costs, machine))
    for override, later_costs, later_lanes in _candidates(bound, costs, lanes, config, machine):
        speedup = bound.pace_s / _pace_s(later_costs, later_lanes, capacity)
        if speedup >= WORTH_IT * best.speedup:
            best = Advice(override=override, speedup=speedup, why=f"{bound.stage} sets the pace")
    return best


def _candidates(
    bound: Bound, costs: Costs, lanes: Lanes, config: TrainConfig, machine: Machine
) -> Iterator[tuple[str, Costs, Lanes]]:
    """Overrides that work against `bound`, with the costs and lanes that a run with them would have."""
    makes_samples = bound.lane is Lane.workers or lanes.num_threads == 0
    if makes_samples:
        yield from _more_workers(costs, lanes, config, machine)
        if may_keep_pixels(costs, config, machine):
            yield KEEP_PIXELS, _without(costs, "read", "decode"), lanes
    elif bound.stage == COMPUTE and _shares_cores(costs, machine) and may_keep_pixels(costs, config, machine):
        # What the workers no longer do, the model gets.
        kept = _without(costs, "read", "decode")
        yield KEEP_PIXELS, replace(kept, compute_s=costs.compute_s * kept.cpu_s / costs.cpu_s), lanes
    if bound.stage == COLLATE and lanes.num_threads and not lanes.prefetched_batches:
        yield "prefetch=cpu", costs, replace(lanes, prefetched_batches=2)
    if bound.lane is Lane.loop and config.run.save_every_steps is not None:
        yield "run.save_every_steps=null", replace(costs, overhead_s=0.0), lanes


def _more_workers(
    costs: Costs, lanes: Lanes, config: TrainConfig, machine: Machine
) -> Iterator[tuple[str, Costs, Lanes]]:
    """The fewest more workers that promise what any number of them would, to 2 %."""
    each = config.loader.threads_per_worker
    paces_s = {}
    for num_workers in range(lanes.num_threads // each + 1, MOST_WORKERS_A_CORE * machine.num_cores + 1):
        later = replace(lanes, num_threads=num_workers * each, queue_batches=config.loader.prefetch_factor)
        paces_s[num_workers] = _pace_s(costs, later, _capacity(costs, machine))
    if not paces_s:
        return
    num_workers = next(number for number, pace_s in paces_s.items() if pace_s <= 1.02 * min(paces_s.values()))
    later = replace(lanes, num_threads=num_workers * each, queue_batches=config.loader.prefetch_factor)
    yield f"loader.num_workers={num_workers}", costs, later


def may_keep_pixels(costs: Costs, config: TrainConfig, machine: Machine) -> bool:
    """Whether a store could hold every sample decoded, and would be used again."""
    is_free = config.cache.policy is CachePolicy.none and config.preload.mode is PreloadMode.none
    keeps_bytes = config.cache.store is not Store.encoded and config.transforms.decode is Decode.full
    if not is_free or not keeps_bytes or config.schedule.epochs == 1:
        return False
    if costs.sample_s["read"] + costs.sample_s["decode"] == 0:
        return False
    return machine.decoded_bytes() < ROOM * machine.free_bytes()


def _without(costs: Costs, *stages: str) -> Costs:
    saved_s = sum(costs.sample_s[stage] for stage in stages)
    rest = {**costs.sample_s, **dict.fromkeys(stages, 0.0), "busy": costs.sample_s["busy"] - saved_s}
    saved_cpu_s = saved_s * costs.num_samples
    return replace(costs, sample_s=rest, cpu_s=max(0.0, costs.cpu_s - saved_cpu_s))


def _pace_s(costs: Costs, lanes: Lanes, capacity: float) -> float:
    """Seconds a sample with these lanes, if nothing ever waits for a core more than `capacity` cores make it."""
    return max(find_bound(costs, lanes).pace_s, costs.cpu_s / max(1, costs.num_samples) / capacity)


def _capacity(costs: Costs, machine: Machine) -> float:
    """Cores that a run can use: those it does, and half of those that idle.

    Half: two hardware threads share a core, a second adds a quarter or less to such work, and virtual machines do not
    tell which of their cores are such threads.
    """
    used = min(machine.num_cores, costs.cpu_s / max(1e-9, costs.wall_s))
    return max(0.1, (used + machine.num_cores) / 2)


def _shares_cores(costs: Costs, machine: Machine) -> bool:
    return machine.computes and _busy_pct(costs, machine) > BUSY_PCT


def _busy_pct(costs: Costs, machine: Machine) -> float:
    return min(100.0, 100 * costs.cpu_s / max(1e-9, costs.wall_s * machine.num_cores))


def _why_none(bound: Bound, costs: Costs, machine: Machine) -> str:
    if bound.lane is Lane.loop:
        return f"nothing in the input pipeline would: {bound.stage} sets the pace"
    if (busy_pct := _busy_pct(costs, machine)) > BUSY_PCT:
        return f"nothing would: {bound.stage} sets the pace, and the cores are {busy_pct:.0f} % busy"
    return f"no setting would: {bound.stage} sets the pace"
