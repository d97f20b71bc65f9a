"""What a logger is: a class with these four methods, of any base or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.training.epoch_metrics import EpochMetrics

if TYPE_CHECKING:
    from pipeline.training.loop import Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """The run that a logger is about to hear of, at its beginning or where an interruption left it.

    Attributes:
        config: the whole configuration in dicts, lists and scalars.
        run_dir: the run's directory; it exists.
        rows: the epochs that earlier parts of the run have recorded.
        first_step: the first step that is still to be told. An earlier part that was killed may have told of it and of
            later ones: that is to be dropped, for it comes again. 1 where a run begins.
    """

    config: dict[str, Any]
    run_dir: Path
    rows: tuple[EpochMetrics, ...]
    first_step: int


class Logger(Protocol):
    """Hears of a run, in the first rank's process and in its training loop, which waits for each call to return.

    `start` comes first, before anything is built, and `close` last, however the run ends. What is told may be kept, not
    changed. A `step` never exceeds that of a later call.
    """

    def start(self, run: RunStart) -> None:
        """The run begins, or goes on. What this raises ends the run."""

    def step(self, step: int, totals: Totals) -> None:
        """Every `logger.every_steps` steps: the totals of the epoch so far, after `step` steps of the whole run."""

    def epoch(self, row: EpochMetrics) -> None:
        """An epoch is over, and evaluated if it was to be."""

    def close(self, summary: dict[str, Any]) -> None:
        """The run is over; `summary` is what `summary.json` holds."""
