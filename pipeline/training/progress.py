"""What a person sees while a model trains: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from pipeline.training.epoch_metrics import EpochMetrics
from pipeline.training.loop import Totals

_log = logging.getLogger(__name__)


class Progress:
    """Tells `stream` how training goes: an `Observer` of each epoch, and a line at its end, which is logged as well.

    With None for a stream nothing is told: another rank does that.
    """

    def __init__(self, stream: TextIO | None, *, num_epochs: int) -> None:
        self._stream = stream
        self._num_epochs = num_epochs
        self._on_terminal = stream is not None and stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._epoch = 0
        self._num_batches = 0

    def start_epoch(self, epoch: int, *, num_batches: int, num_done: int = 0) -> None:
        """Begins epoch number `epoch`, counted from 1, of which an earlier part of the run did `num_done` batches."""
        self._epoch, self._num_batches = epoch, num_batches
        if self._on_terminal:
            self._bar = tqdm(
                total=num_batches,
                initial=num_done,
                desc=self._name(epoch),
                unit="batch",
                file=self._stream,
                leave=False,
            )

    def advance(self) -> None:
        """Another batch came."""
        if self._bar is not None:
            self._bar.update()

    def show(self, totals: Totals) -> None:
        """Shows the totals of the epoch so far."""
        speeds = _speeds(totals.samples_per_sec, totals.data_wait_pct, totals.loss)
        if self._bar is not None:
            self._bar.set_postfix_str(speeds)
        else:
            step = f"step {totals.num_steps:>{len(str(self._num_batches))}}/{self._num_batches}"
            self._write(f"{self._name(self._epoch)}  {step}  {speeds}")

    def end_epoch(self, row: EpochMetrics) -> None:
        """Closes the bar, if one is open, and writes the epoch's line."""
        self.close()
        scores = f"top-1 {100 * row.train_top1:.1f} %"
        if row.eval_top1 is not None and row.eval_loss is not None:
            scores += f"  val loss {row.eval_loss:.3f}  val top-1 {100 * row.eval_top1:.1f} %"
        speeds = _speeds(row.train_samples_per_sec, row.data_wait_pct, row.train_loss)
        line = f"{self._name(row.epoch)}  {speeds}  {scores}"
        self._write(line)
        if self._stream is not None:
            _log.info(line)

    def close(self) -> None:
        """Takes the bar off the terminal; may be called at any time."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _name(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self._num_epochs))}}/{self._num_epochs}"

    def _write(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(line + "\n")
            self._stream.flush()


def _speeds(samples_per_sec: float, data_wait_pct: float, loss: float) -> str:
    return f"loss {loss:.3f}  {samples_per_sec:.0f} images/s  data-wait {data_wait_pct:.0f} %"


def closing_lines(summary: Mapping[str, Any], run_dir: Path, *, stalls: Sequence[str] = ()) -> str:
    """A finished run in lines of at most 100 columns, long paths apart: results, stalls, and where the report lies."""
    if summary["steps"] == 0:
        return (
            f"evaluated: top-1 {100 * summary['eval_top1']:.1f} % of {summary['eval_num_samples']} validation images, "
            f"loss {summary['eval_loss']:.3f}\n  report     {_short(run_dir / 'summary.json')}\n"
        )
    pss_mb, cache_hit_pct = summary["peak_pss_mb"], summary["cache_hit_pct"]
    lines = [
        "{status}: {epochs} epoch{s}, {steps} steps in {wall_s:.0f} s".format(
            **summary, s="" if summary["epochs"] == 1 else "s"
        ),
        f"  top-1      {100 * summary['eval_top1']:.1f} % of {summary['eval_num_samples']} validation images, "
        f"at best {100 * summary['best_top1']:.1f} %",
        "  speed      {train_samples_per_sec:.0f} images/s; first batch after {first_batch_s:.2f} s".format_map(
            summary
        ),
        *(stalls or ["  data-wait  {data_wait_pct:.1f} % of the training time".format_map(summary)]),
    ]
    if cache_hit_pct is not None:
        possible = summary["cache_bound_pct"]
        lines.append(
            f"  cache      {cache_hit_pct:.1f} % hits" + ("" if possible is None else f" of {possible:.1f} % possible")
        )
    if summary["cache_advice"] is not None:
        lines.append(f"             {summary['cache_advice']}")
    if pss_mb is not None:
        lines.append(f"  memory     {pss_mb:.0f} MB in this process")
    lines.append(f"  report     {_short(run_dir / 'summary.json')}")
    return "\n".join(lines) + "\n"


def _short(path: Path) -> str:
    """The path as given, or from the working directory where that is shorter."""
    try:
        return min(str(path), os.path.relpath(path), key=len)
    except ValueError:  # another drive
        return str(path)
