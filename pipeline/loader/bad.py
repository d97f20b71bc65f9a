"""Rows whose samples cannot be made for a fault of their own bytes, and what stands in their place.

Nothing here depends on who makes a row, or when: batches are the same under every backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import BadImageError
from pipeline.draws import key
from pipeline.loader.order import Plan

MOST_TRIES = 64
"""Samples that are tried in the place of a bad one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What becomes of a bad sample: another of the `num_samples` takes its place, or with None its batch is shorter."""

    replaced_from: int | None
    seed: int = 0

    def candidates(self, id: int, epoch: int) -> Iterator[int]:
        """Samples to try in the place of `id`, a function of (seed, epoch, id)."""
        if self.replaced_from is None:
            return
        for number in range(MOST_TRIES):
            yield key("replace", seed=self.seed, epoch=epoch, id=id, number=number) % self.replaced_from


@runtime_checkable
class TolerantFunction(Protocol):
    """A sample function that does not end a loop for every bad sample."""

    tolerance: Tolerance | None


class BadRow(NamedTuple):
    """A row of a batch that its own sample is not in."""

    row: int
    causes: list[tuple[int, str]]
    """The samples that could not be made, and why: the row's own, and what was tried in its place."""
    replaced_by: int | None
    """The sample that the row has; None: it is left out."""


def mend(error: BadImageError, row: int, id: int, *, candidates: Iterator[int], make: Make) -> BadRow:
    """What stands in the row of sample `id`, which `error` kept from being made.

    Raises:
        BadImageError: that error, where all of many candidates are bad too.
        Exception: what else a candidate fails with.
    """
    causes, is_replaced = [(id, str(error))], False
    for candidate in candidates:
        is_replaced = True
        try:
            make(candidate)
        except BadImageError as another:
            causes.append((candidate, str(another)))
        else:
            return BadRow(row, causes, candidate)
    if is_replaced:
        raise error
    return BadRow(row, causes, None)


class Make(Protocol):
    """Makes the row of a sample."""

    def __call__(self, id: int, /) -> object:
        """Of sample `id`."""


def mended(plan: Plan, rows: NDArray[np.generic], bad: list[BadRow], labels: NDArray[np.generic]) -> Plan:
    """The plan as it was carried out: replaced samples by their ids and labels, without rows that are left out.

    What is left of `rows` is moved up, in order, to the first ones. `labels` are the source's.
    """
    ids, left_out = plan.ids.copy(), [bad_row.row for bad_row in bad if bad_row.replaced_by is None]
    for bad_row in bad:
        if bad_row.replaced_by is not None:
            ids[bad_row.row] = bad_row.replaced_by
    kept = np.delete(np.arange(len(ids)), left_out)
    for place, row in enumerate(kept.tolist()):
        if place != row:
            rows[place] = rows[row]
    return replace(plan, ids=ids[kept], labels=labels[ids[kept]], draws=plan.draws[kept])
