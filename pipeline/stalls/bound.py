"""What bounds an epoch, and how fast it should have been by the costs of its stages.

Workers, the prefetcher's thread, the loop and its device go on at the same time, so that the slowest of them sets the
pace: the bottleneck law of operational analysis (Denning and Buzen, "The operational analysis of queueing network
models", Computing Surveys 10, 1978). What one of them does, it does one thing after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.stalls.costs import COMPUTE, LOOP_KINDS, Costs
from pipeline.stats import BUSY, COLLATE, STAGES, TRANSFER, Lanes

PYTHON = "python"
"""What a worker does for a sample beside its stages."""
FIRST_BATCH = "first_batch"
"""Waiting for each epoch's first batch, which nothing was made ahead of."""
START = "start"
"""Waiting for the run's first batch, before which workers start."""


class Lane(StrEnum):
    """Who works at the same time as the others."""

    workers = "workers"
    prefetcher = "prefetcher"
    loop = "loop"
    device = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The lane that sets the pace, and the stage that takes most of its time; `pace_s` are its seconds a sample."""

    lane: Lane
    stage: str
    pace_s: float


def parts_of(costs: Costs, lanes: Lanes) -> dict[Lane, dict[str, float]]:
    """Seconds a sample of each lane, by stage; workers share theirs out."""
    making = {stage: costs.sample_s[stage] for stage in STAGES} | {PYTHON: python_s(costs.sample_s)}
    parts: dict[Lane, dict[str, float]] = {
        Lane.loop: _between_batches(costs),
        Lane.workers: {},
        Lane.prefetcher: {},
        Lane.device: {},
    }
    taker = Lane.prefetcher if lanes.prefetched_batches else Lane.loop
    if lanes.num_threads:
        parts[Lane.workers] = {stage: spent_s / lanes.num_threads for stage, spent_s in making.items()}
    else:
        parts[taker] |= making
    parts[taker][COLLATE] = costs.sample_s[COLLATE]
    if lanes.prefetched_batches:
        parts[Lane.prefetcher][TRANSFER] = costs.sample_s[TRANSFER]
    if costs.device_s is not None:
        parts[Lane.device] = {COMPUTE: costs.device_s / max(1, costs.num_samples)}
    return parts


def find_bound(costs: Costs, lanes: Lanes) -> Bound:
    """The slowest lane of an epoch of these costs."""
    parts = parts_of(costs, lanes)
    lane = max(parts, key=lambda lane: sum(parts[lane].values()))
    stage = max(parts[lane], key=lambda stage: parts[lane][stage])
    return Bound(lane=lane, stage=stage, pace_s=sum(parts[lane].values()))


def find_bound_of_starts(epochs: Sequence[Costs], lanes: Lanes) -> Bound | None:
    """What bounds a run whose epochs waited longer for their first batches than all else took; None for others."""
    firsts_s, *others_s = (sum(phase) for phase in zip(*(_phases_s(costs, lanes) for costs in epochs), strict=True))
    if firsts_s <= sum(others_s):
        return None
    maker = Lane.workers if lanes.num_threads else Lane.prefetcher if lanes.prefetched_batches else Lane.loop
    stage = START if 2 * epochs[0].first_batch_s > firsts_s else FIRST_BATCH
    return Bound(lane=maker, stage=stage, pace_s=firsts_s / sum(costs.num_samples for costs in epochs))


def predicted_s(costs: Costs, lanes: Lanes) -> float:
    """The wall time of an epoch of these costs: its first batch, then the pace of the slowest lane.

    The workers' part is what they had not made before it began, and the loop ends a batch after them.
    """
    return sum(_phases_s(costs, lanes))


def _phases_s(costs: Costs, lanes: Lanes) -> tuple[float, float, float]:
    """The first batch; the others, at the pace of the slowest lane; what the loop does with the last."""
    pace_s = {lane: sum(parts.values()) for lane, parts in parts_of(costs, lanes).items()}
    a_batch = costs.num_samples / max(1, costs.num_batches)
    num_later = max(0.0, costs.num_samples - a_batch)
    num_to_make = max(0.0, num_later - max(0.0, costs.num_ahead - a_batch))
    slowest_s = max(
        num_to_make * lane_s if lane is Lane.workers else num_later * lane_s for lane, lane_s in pace_s.items()
    )
    return costs.first_batch_s, slowest_s, a_batch * sum(_between_batches(costs).values())


def python_s(sample_s: Mapping[str, float]) -> float:
    """Seconds a sample that a worker spends beside its stages."""
    return max(0.0, sample_s[BUSY] - sum(sample_s[stage] for stage in STAGES))


def _between_batches(costs: Costs) -> dict[str, float]:
    return {kind: costs.loop_s[kind] / max(1, costs.num_samples) for kind in LOOP_KINDS}
