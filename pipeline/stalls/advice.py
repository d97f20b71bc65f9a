"""One override that would make a run faster, by the costs of its stages; or that none was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.config import Backend, CachePolicy, Decode, PrefetchDevice, PreloadMode, Store, TrainConfig
from pipeline.stalls.bound import FIRST_BATCH, PYTHON, START, Bound, Lane, find_bound, predicted_s, python_s
from pipeline.stalls.costs import COMPUTE, OVERHEAD, RANKS, SAVING, Costs
from pipeline.stalls.lock import BUSY_PCT, LOCK, find_bound_or_lock, in_processes, with_steps_alone
from pipeline.stats import BUSY, COLLATE, MAKING_CPU, READ_CPU, TRANSFER, Lanes

WORTH_IT = 1.1
"""Times as fast that an override must promise to be told: less is within what a machine does by itself."""
MOST_WORKERS_A_CORE = 8
"""Workers that wait for storage take no core; more than these take memory for nothing."""
KEEP_PIXELS = "cache=pinned"
SAVING_PART = 0.02
"""The part of the loop's other time that checkpoints may take where fewer of them are advised."""
NAMES = {
    "read": "storage",
    "decode": "decode",
    "transform": "transforms",
    PYTHON: "Python between the stages",
    COLLATE: "collating",
    TRANSFER: "transfer",
    COMPUTE: "compute",
    SAVING: "saving checkpoints",
    RANKS: "other ranks",
    OVERHEAD: "what stands beside the steps",
    FIRST_BATCH: "the first batch of each epoch",
    START: "the start of the run (workers, first batch)",
    LOCK: "Python's lock (GIL), held in reading",
}
"""Stages, as people are told of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is lent to this rank, and what would fit.

    Attributes:
        num_cores: cores of this rank.
        computes: whether the model runs on these cores too.
        num_threads: torch's threads.
        num_epochs: epochs, or a part of one, that the run has.
        keeps_pixels: whether a pinned cache would have room for all samples decoded, and be asked for them again.
    """

    num_cores: int
    computes: bool
    num_threads: int
    num_epochs: float
    keeps_pixels: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """An override, with how many times as fast the whole run would be with it; or None and why there is none.

    It may be two overrides that go together, with a space in between. `when` ends the promise with what it is of.
    """

    override: str | None
    speedup: float
    why: str
    when: str = ""


def advise(costs: Costs, lanes: Lanes, config: TrainConfig, machine: Machine) -> Advice:
    """The override that promises most. It changes no sample."""
    bound = find_bound_or_lock(costs, lanes, machine.num_cores)
    capacity = _capacity(costs, machine)
    now_s = predicted_s(costs, lanes)
    speedups = {}
    for override, later_costs, later_lanes in _candidates(bound, costs, lanes, config, machine):
        later_s = max(predicted_s(later_costs, later_lanes), later_costs.cpu_s / capacity)
        speedups[override] = _of_the_run(now_s / later_s, override, machine)
    best = max(speedups, key=lambda override: speedups[override], default=None)
    if best is None or speedups[best] < WORTH_IT:
        return Advice(override=None, speedup=1.0, why=_why_none(bound, costs, machine))
    when = f" over {machine.num_epochs:g} epochs" if best == KEEP_PIXELS else ""
    return Advice(override=best, speedup=speedups[best], why=f"{NAMES[bound.stage]} sets the pace", when=when)


def _of_the_run(speedup: float, override: str, machine: Machine) -> float:
    """How many times as fast all epochs are: a cache is filled in the first, which is no faster."""
    if override != KEEP_PIXELS:
        return speedup
    return machine.num_epochs / (1 + (machine.num_epochs - 1) / speedup)


def none_for_slow_starts(bound: Bound) -> Advice:
    """Of a run that mostly waited for first batches."""
    return Advice(override=None, speedup=1.0, why=f"none looked for: {NAMES[bound.stage]} takes longer than all else")


def _candidates(
    bound: Bound, costs: Costs, lanes: Lanes, config: TrainConfig, machine: Machine
) -> Iterator[tuple[str, Costs, Lanes]]:
    """Overrides that work against `bound`, with the costs and lanes that a run with them would have."""
    if bound.stage == LOCK:
        yield "loader.backend=processes", *in_processes(costs, lanes)
        if may_keep_pixels(costs, config, machine):
            yield KEEP_PIXELS, with_steps_alone(without_decoding(costs)), lanes
    elif bound.lane is Lane.workers or lanes.num_threads == 0:
        yield from _more_workers(costs, lanes, config, machine)
        if may_keep_pixels(costs, config, machine):
            yield KEEP_PIXELS, without_decoding(costs), lanes
    elif bound.stage == COMPUTE and _shares_cores(costs, machine) and may_keep_pixels(costs, config, machine):
        yield KEEP_PIXELS, _with_freed_cores(costs, machine), lanes
    if bound.stage == COLLATE and lanes.num_threads and not lanes.prefetched_batches:
        yield "prefetch=cpu", costs, replace(lanes, prefetched_batches=config.prefetch.num_batches)
    if bound.stage == TRANSFER and config.prefetch.device is PrefetchDevice.none and not machine.computes:
        sample_s = {**costs.sample_s, TRANSFER: costs.loop_s[TRANSFER] / max(1, costs.num_samples)}
        moved = replace(costs, sample_s=sample_s, loop_s={**costs.loop_s, TRANSFER: 0.0})
        yield "prefetch=auto", moved, replace(lanes, prefetched_batches=config.prefetch.num_batches)
    if bound.stage == SAVING and config.run.save_every_steps is not None:
        yield _save_less_often(costs, config.run.save_every_steps, lanes)


def _more_workers(
    costs: Costs, lanes: Lanes, config: TrainConfig, machine: Machine
) -> Iterator[tuple[str, Costs, Lanes]]:
    """The fewest more workers that promise what any number of them would, to 2 %."""
    loader, each = config.loader, config.loader.threads_per_worker
    if lanes.num_threads == 0 and each > 1 and loader.backend is not Backend.processes:
        return  # whether there would be threads, which have no threads of their own, is not to be seen from here
    num_in_flight = loader.prefetch_factor * loader.batch_size // each  # others would find nothing to do
    most = min(MOST_WORKERS_A_CORE * machine.num_cores, num_in_flight)
    later = {
        number: (
            _with_threads(costs, lanes, number * each),
            replace(lanes, num_threads=number * each, queue_batches=loader.prefetch_factor),
        )
        for number in range(lanes.num_threads // each + 1, most + 1)
    }
    if not later:
        return
    capacity = _capacity(costs, machine)
    paces_s = {number: _pace_s(*then, capacity) for number, then in later.items()}
    num_workers = next(number for number, pace_s in paces_s.items() if pace_s <= 1.02 * min(paces_s.values()))
    # Torch's threads would be fewer with more workers, and the steps others than those that were measured.
    keeps = machine.computes and config.run.num_threads is None and machine.num_threads > 1
    threads = f" run.num_threads={machine.num_threads}" if keeps else ""
    yield f"loader.num_workers={num_workers}{threads}", *later[num_workers]


def _with_threads(costs: Costs, lanes: Lanes, num_threads: int) -> Costs:
    """The costs with more threads. Those of one process take turns at Python: more of them make none of it faster."""
    if not lanes.in_threads:
        return costs
    waits_s = python_s(costs.sample_s) * (num_threads / max(1, lanes.num_threads) - 1)
    return replace(costs, sample_s={**costs.sample_s, BUSY: costs.sample_s[BUSY] + waits_s})


def may_keep_pixels(costs: Costs, config: TrainConfig, machine: Machine) -> bool:
    """Whether there is no store yet, and one could hold every sample decoded and would be used again."""
    is_free = config.cache.policy is CachePolicy.none and config.preload.mode is PreloadMode.none
    keeps_bytes = config.cache.store is not Store.encoded and config.transforms.decode is Decode.full
    if not is_free or not keeps_bytes or costs.sample_s["read"] + costs.sample_s["decode"] == 0:
        return False
    return machine.keeps_pixels()


def without_decoding(costs: Costs) -> Costs:
    """The costs where a store has every sample decoded.

    What a sample waited, it is taken to have waited for reading, which then took so much less of a core; of what the
    rest took of one, decoding has the share of its time.
    """
    read_s, decode_s = costs.sample_s["read"], costs.sample_s["decode"]
    busy_s, making_cpu_s = costs.sample_s[BUSY], costs.sample_s[MAKING_CPU]
    read_cpu_s = max(0.0, read_s - max(0.0, busy_s - making_cpu_s))
    decode_cpu_s = (making_cpu_s - read_cpu_s) * min(1.0, decode_s / max(1e-12, busy_s - read_s))
    saved_cpu_s = read_cpu_s + min(decode_s, max(0.0, decode_cpu_s))
    rest_s = max(0.0, busy_s - read_s - decode_s)
    stages = {"read": 0.0, READ_CPU: 0.0, "decode": 0.0, BUSY: rest_s, MAKING_CPU: making_cpu_s - saved_cpu_s}
    cpu_s = max(0.0, costs.cpu_s - saved_cpu_s * costs.num_samples)
    return replace(costs, sample_s={**costs.sample_s, **stages}, cpu_s=cpu_s)


def _with_freed_cores(costs: Costs, machine: Machine) -> Costs:
    """The same, for a model on the same cores: it gets what workers no longer take, if its threads can use it."""
    kept = without_decoding(costs)
    compute_s = costs.loop_s[COMPUTE]
    least_s = min(compute_s, costs.other_cpu_s / machine.num_threads)
    faster_s = max(least_s, compute_s * kept.cpu_s / max(1e-9, costs.cpu_s))
    return replace(kept, loop_s={**kept.loop_s, COMPUTE: faster_s})


def _save_less_often(costs: Costs, every_steps: int, lanes: Lanes) -> tuple[str, Costs, Lanes]:
    rest_s = sum(costs.loop_s.values()) - costs.loop_s[SAVING]
    times = max(2, math.ceil(costs.loop_s[SAVING] / max(1e-9, SAVING_PART * rest_s)))
    fewer = replace(costs, loop_s={**costs.loop_s, SAVING: costs.loop_s[SAVING] / times})
    return f"run.save_every_steps={times * every_steps}", fewer, lanes


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
    return machine.computes and costs.busy_pct(machine.num_cores) > BUSY_PCT


def _why_none(bound: Bound, costs: Costs, machine: Machine) -> str:
    name = NAMES[bound.stage]
    if bound.stage in (COMPUTE, SAVING, RANKS, OVERHEAD):
        return f"none in the input pipeline: {name} sets the pace"
    if (busy_pct := costs.busy_pct(machine.num_cores)) > BUSY_PCT:
        return f"none found: {name} sets the pace, and the cores are {busy_pct:.0f} % busy"
    return f"none found: {name} sets the pace"
