"""Which samples stand in which batch: the part of a batch that is decided before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import draws
from pipeline.sampler import Sampler, num_steps, rank_positions


@dataclass(frozen=True, slots=True)
class Plan:
    """One rank's part of a global batch, before it is read."""

    epoch: int
    step: int
    ids: NDArray[np.int64]
    labels: NDArray[Any]
    draws: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """(epoch, step) -> `Plan`, a pure function.

    Attributes:
        sampler: maps (epoch, positions) to ids.
        labels: the source's labels, first dimension the number of samples.
        batch_size: samples per rank; a global batch has `batch_size * world_size`.
        num_draws: uniforms per crop.
        num_crops: crops of each sample; their draws follow one another in a row of the plan's.
        fingerprint: gives the identity of the source, so that a saved state is not continued on another one; asked
            only for a state, for it hashes every path.
    """

    sampler: Sampler
    labels: NDArray[Any]
    seed: int
    batch_size: int
    num_draws: int
    num_crops: int = 1
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    fingerprint: Callable[[], str] = str

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"loader.batch_size must be >= 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size={self.world_size}), got {self.rank}")

    def __len__(self) -> int:
        """Global batches in an epoch; the same on every rank."""
        return num_steps(self.sampler.num_samples, self.global_batch_size, drop_last=self.drop_last)

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks together in a full batch."""
        return self.batch_size * self.world_size

    def plan(self, epoch: int, step: int) -> Plan:
        """This rank's ids, labels and draws of global batch `step`; costs the same for every step."""
        positions = rank_positions(
            step,
            num_samples=self.sampler.num_samples,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )
        ids = self.sampler.ids(epoch, positions)
        # An id comes twice in an epoch only when drawn with replacement; its position then tells the copies apart.
        occurrence = positions if self.sampler.with_replacement else 0
        own = [
            draws(self.seed, epoch, ids, self.num_draws, occurrence * self.num_crops + crop)
            for crop in range(self.num_crops)
        ]
        return Plan(epoch, step, ids, self.labels[ids], own[0] if len(own) == 1 else np.concatenate(own, axis=1))
