"""All loggers of a run as one, and what becomes of a logger that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.training.epoch_metrics import EpochMetrics
from pipeline.training.loggers.csv_file import CsvLogger
from pipeline.training.loggers.logger import Logger, RunStart

if TYPE_CHECKING:
    from pipeline.training.loop import Totals

_log = logging.getLogger(__name__)


class Loggers:
    """Tells each of `loggers`, which have the names that messages give them, what a `Logger` hears.

    One that fails to start ends the run, for nothing is lost yet. One that fails later is reported, with its traceback,
    noted in `dropped`, and hears no more: hours of training are worth more than the curves beside it. `metrics.csv` is
    the run's own, and its failure is the run's: a disk that cannot take it will not take a checkpoint either.
    """

    def __init__(self, loggers: Mapping[str, Logger] | None = None) -> None:
        self.dropped: list[str] = []
        """A line for each logger that failed: its name, when, and why."""
        self._loggers = dict(loggers or {})
        self._started: dict[str, Logger] = {}

    def start(self, run: RunStart) -> None:
        """Starts all of them, in order; the exception of one that fails has a note with its name."""
        for name, logger in self._loggers.items():
            self._started[name] = logger  # before: what failed half-way may have something to close
            try:
                logger.start(run)
            except Exception as error:
                error.add_note(f"while the logger {name} was started")
                raise

    def step(self, step: int, totals: Totals) -> None:
        """`Logger.step` of all of them."""
        self._tell(f"at step {step}", lambda logger: logger.step(step, totals))

    def epoch(self, row: EpochMetrics) -> None:
        """`Logger.epoch` of all of them."""
        self._tell(f"after epoch {row.epoch}", lambda logger: logger.epoch(row))

    def close(self, summary: dict[str, Any]) -> None:
        """`Logger.close` of all that were started. May be called twice."""
        self._tell("when it was closed", lambda logger: logger.close(summary))
        self._started.clear()

    def _tell(self, when: str, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._started.items()):
            try:
                call(logger)
            except Exception as error:
                if isinstance(logger, CsvLogger):
                    raise
                del self._started[name]
                line = f"{name} failed {when}: {type(error).__name__}: {error}"
                self.dropped.append(line)
                _log.warning("the logger %s; it hears no more of this run, which goes on", line, exc_info=error)
