"""One batch in the making, and the tasks that make it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import BadImageError
from pipeline.loader.bad import BadRow, TolerantFunction, mend
from pipeline.loader.order import Plan


class SampleFunction(Protocol):
    """Makes one sample. Called by several threads at once; must write every element of `row`."""

    def __call__(self, id: int, draws: NDArray[np.float64], row: NDArray[np.generic]) -> None:
        """Read sample `id` and write it into `row`, a row of a slot, using only `draws` for randomness."""


Begin = Callable[[int, int], bool]
"""Told the first and the number of rows, counted from the task's first, that come next; False: nobody wants them."""


@runtime_checkable
class ManySamplesFunction(SampleFunction, Protocol):
    """A `SampleFunction` that can make samples together in less time than one by one."""

    most_rows: int
    """So many at a time, at most; 1: it makes no use of that."""

    def many(
        self, ids: Sequence[int], draws: NDArray[np.float64], rows: NDArray[np.generic], begin: Begin
    ) -> Iterator[int]:
        """Write samples `ids` into `rows`, in order; yields how many more are made, whenever some are.

        Asks `begin` first, each time. What it raises is the failure of the first row that is not made.
        """


class Job:
    """A planned batch, the slot it is written into, and what is still to be done.

    The slot may be used again only after `wait` returned: a cancelled job's last tasks may still be writing.
    """

    __slots__ = ("_done", "_lock", "_remaining", "bad", "cancelled", "failures", "ids", "plan", "rows", "slot")

    def __init__(self, plan: Plan, slot: int, rows: NDArray[np.generic]) -> None:
        self.plan = plan
        self.slot = slot
        self.rows = rows
        self.ids: list[int] = plan.ids.tolist()
        self.failures: list[tuple[int, BaseException]] = []
        self.bad: list[BadRow] = []
        self.cancelled = False
        self._remaining = 0
        self._lock = threading.Lock()
        self._done = threading.Event()

    def split(self, rows_per_task: int) -> list[Task]:
        """The tasks that make this batch; a job without rows is done at once."""
        starts = range(0, len(self.ids), rows_per_task)
        self._remaining = len(starts)
        if not starts:
            self._done.set()
        return [Task(self, start, min(start + rows_per_task, len(self.ids))) for start in starts]

    def add_tasks(self, count: int) -> None:
        """A task that has not ended becomes `count` more."""
        with self._lock:
            self._remaining += count

    def add_bad(self, bad: list[BadRow], *, first: int) -> None:
        """Rows of a task, counted from its `first`, that their own samples are not in."""
        for bad_row in bad:
            self.bad.append(bad_row._replace(row=first + bad_row.row))  # atomic: tasks end in several threads

    def finish_task(self) -> None:
        """Called once by every task, however it ended."""
        with self._lock:
            self._remaining -= 1
            last = self._remaining == 0
        if last:
            self._done.set()

    def wait(self, limit_s: float | None = None) -> bool:
        """Return when no task of this job runs or will run, or after `limit_s` seconds; say whether it is so."""
        return self._done.wait(limit_s)

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._done.is_set()

    def first_failure(self) -> BaseException | None:
        """The failure at the lowest row, forgotten here: its traceback refers back to this job."""
        failures, self.failures = self.failures, []
        return min(failures, key=lambda failure: failure[0])[1] if failures else None


class Task(NamedTuple):
    """A few rows of one batch: small enough that one slow image does not hold the others up."""

    job: Job
    start: int
    stop: int

    def cancel(self) -> None:
        """Called instead of `run`: its batch is not wanted any more."""
        self.job.cancelled = True
        self.job.finish_task()

    def run(self, sample: SampleFunction, take: Callable[[list[int]], None] | None = None) -> None:
        """Make the rows up to the first that fails; its error is kept for the consumer, who meets it in order.

        Other tasks of the batch go on: which error the consumer sees must not depend on who was faster. `take` is told
        the ids of the samples that are made next, mostly one.
        """
        job, start, stop = self
        ids = job.ids[start:stop]

        def begin(first: int, count: int) -> bool:
            if job.cancelled:
                return False
            if take is not None:
                take(ids[first : first + count])
            return True

        try:
            draws, rows = job.plan.draws[start:stop], job.rows[start:stop]
            made, error, bad = make_rows(sample, ids, draws, rows, begin, epoch=job.plan.epoch)
            job.add_bad(bad, first=start)
            if error is not None:
                job.failures.append((start + made, error))
            del error  # this frame must not hold it, and through its traceback the loader, when the consumer has it
        finally:
            job.finish_task()


class Made(NamedTuple):
    """What became of a task's rows."""

    num_rows: int
    """Rows made, in order; those of bad samples that are tolerated among them."""
    error: BaseException | None
    """Why the next was not; None where nobody wanted it."""
    bad: list[BadRow]


def make_rows(
    sample: SampleFunction,
    ids: list[int],
    draws: NDArray[np.float64],
    rows: NDArray[np.generic],
    begin: Begin,
    *,
    epoch: int = 0,
) -> Made:
    """Make rows up to the first that fails or that nobody wants."""
    tolerance = sample.tolerance if isinstance(sample, TolerantFunction) else None
    start, bad = 0, list[BadRow]()
    while True:
        later = partial(_begin_later, begin, start)
        made, error = _make_some(sample, ids[start:], draws[start:], rows[start:], later)
        row = start + made
        try:
            if tolerance is None or not isinstance(error, BadImageError):
                return Made(row, error, bad)
            make = partial(sample, draws=draws[row], row=rows[row])
            bad.append(mend(error, row, ids[row], candidates=tolerance.candidates(ids[row], epoch), make=make))
        except BaseException as another:
            return Made(row, another, bad)
        finally:
            del error  # its traceback refers to this frame: a cycle would keep all it holds
        start = row + 1


def _begin_later(begin: Begin, start: int, first: int, count: int) -> bool:
    return begin(start + first, count)


def _make_some(
    sample: SampleFunction, ids: list[int], draws: NDArray[np.float64], rows: NDArray[np.generic], begin: Begin
) -> tuple[int, BaseException | None]:
    """How many rows were made, in order, and why the next was not; None where nobody wanted it."""
    made = 0
    try:
        if isinstance(sample, ManySamplesFunction):
            steps = sample.many(ids, draws, rows, begin)
        else:
            steps = _one_by_one(sample, ids, draws, rows, begin)
        for count in steps:
            made += count
    except BaseException as error:  # whatever it is, it belongs to the loop, not to this thread
        return made, error
    return made, None


def _one_by_one(
    sample: SampleFunction, ids: Sequence[int], draws: NDArray[np.float64], rows: NDArray[np.generic], begin: Begin
) -> Iterator[int]:
    for row, id in enumerate(ids):
        if not begin(row, 1):
            return
        sample(id, draws[row], rows[row])
        yield 1


def most_rows_per_task(sample: SampleFunction) -> int:
    """Eight, for one slow image should not hold up many others; but as many as `sample` can make together."""
    return max(8, sample.most_rows) if isinstance(sample, ManySamplesFunction) else 8


def rows_per_task(num_rows: int, num_threads: int, *, tasks_per_thread: int, most: int) -> int:
    """Rows for about so many tasks a thread, but at most `most`."""
    return max(1, min(most, -(-num_rows // (tasks_per_thread * num_threads))))
