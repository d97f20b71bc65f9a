"""One override that would make a run faster, by the costs of its stages; or that none would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.config import CachePolicy, Decode, PreloadMode, Store, TrainConfig
from pipeline.stalls.bound import Bound, Lane, find_bound
from pipeline.stalls.costs import Costs
from pipeline.stats import COLLATE, Lanes

WORTH_IT = 1.1
"""Times as fast that an override must promise to be told: less is within what a machine does by itself."""
MOST_WORKERS_A_CORE = 8
"""Workers that wait for storage take no core; more than these take memory for nothing."""
ROOM = 0.8
"""The part of free memory that a store of all samples may need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is lent to this rank, and how much a store of all decoded samples would take of it."""

    num_cores: int
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
    now_s = max(bound.pace_s, _cpu_pace_s(costs, machine))
    best = Advice(override=None, speedup=1.0, why=_why_none(bound, costs, machine))
    for override, later_costs, later_lanes in _candidates(bound, costs, lanes, config, machine):
        pace_s = max(find_bound(later_costs, later_lanes).pace_s, _cpu_pace_s(later_costs, machine))
        speedup = now_s / pace_s
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
            yield "cache=pinned", _without(costs, "read", "decode"), lanes
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
        paces_s[num_workers] = max(find_bound(costs, later).pace_s, _cpu_pace_s(costs, machine))
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


def _cpu_pace_s(costs: Costs, machine: Machine) -> float:
    """Seconds a sample that the cores need at least, if nothing ever waits."""
    return costs.cpu_s / max(1, costs.num_samples) / machine.num_cores


def _why_none(bound: Bound, costs: Costs, machine: Machine) -> str:
    if bound.lane is Lane.loop:
        return f"nothing in the input pipeline would: {bound.stage} sets the pace"
    busy_pct = 100 * costs.cpu_s / max(1e-9, costs.wall_s * machine.num_cores)
    if busy_pct > 80:
        return f"nothing would: {bound.stage} sets the pace, and the cores are {min(100, busy_pct):.0f} % busy"
    return f"no setting would: {bound.stage} sets the pace"
