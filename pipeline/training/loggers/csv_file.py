"""`metrics.csv`: a row an epoch, readable at any moment."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.training.epoch_metrics import EpochMetrics
from pipeline.training.loggers.logger import RunStart
from pipeline.training.replacing import replacing

if TYPE_CHECKING:
    from pipeline.training.loop import Totals


class CsvLogger:
    """Writes the file anew for each row, so that whoever reads it, and whenever, finds it whole."""

    def __init__(self) -> None:
        self._path = Path()
        self._rows: list[EpochMetrics] = []

    def start(self, run: RunStart) -> None:
        """Takes rows out that an earlier part of the run wrote after its last checkpoint: they come again."""
        self._path = run.run_dir / "metrics.csv"
        self._rows = list(run.rows)
        if self._rows or self._path.exists():
            self._write()

    def step(self, step: int, totals: Totals) -> None:
        """Nothing: the file has epochs only."""

    def epoch(self, row: EpochMetrics) -> None:
        """The row is in the file when this returns. OSError where it cannot be."""
        self._rows.append(row)
        self._write()

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing is open."""

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [column.name for column in fields(EpochMetrics)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self._rows)
        with replacing(self._path) as file:
            file.write(text.getvalue().encode())
