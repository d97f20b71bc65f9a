"""A run's curves for TensorBoard, in `tensorboard/` of its directory: `tensorboard --logdir outputs/train`."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.config import ConfigError
from pipeline.training.epoch_metrics import EpochMetrics
from pipeline.training.loggers.logger import RunStart

if TYPE_CHECKING:
    from pipeline.training.loop import Totals


_OF_STEPS = ("loss", "top1", "samples_per_sec", "data_wait_pct")


class TensorBoardLogger:
    """`epoch/NAME` for every number of `metrics.csv`, `steps/NAME` for the epoch so far, over the steps of the run.

    All of it is on disk when a call returns: what precedes a checkpoint is there however the run ends after it.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("logger.tensorboard=true needs TensorBoard; pip install 'headrace[tensorboard]'")
        self._writer: Any = None

    def start(self, run: RunStart) -> None:
        """Opens a file, which takes back what earlier ones hold of `run.first_step` and later steps."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second, which a run without it need not wait

        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=run.first_step)
        # Markdown: four spaces show a line as it is.
        text = "".join(f"    {line}\n" for line in json.dumps(run.config, indent=2).splitlines())
        self._writer.add_text("config", text, run.first_step)
        self._writer.flush()

    def step(self, step: int, totals: Totals) -> None:
        """Loss, top-1, speed and data-wait of the epoch so far."""
        self._add("steps", step, {name: getattr(totals, name) for name in _OF_STEPS})

    def epoch(self, row: EpochMetrics) -> None:
        """What the row has numbers for."""
        self._add("epoch", row.step, {name: value for name, value in asdict(row).items() if name != "step"})

    def close(self, summary: dict[str, Any]) -> None:
        """Closes the file."""
        del summary  # its numbers are in the curves
        if self._writer is not None:
            self._writer.close()

    def _add(self, group: str, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()
