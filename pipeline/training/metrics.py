"""The record of a run: its epochs, told to its loggers, and `summary.json` however it ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from pipeline.stalls import StallReport
from pipeline.training import environment
from pipeline.training.epoch_metrics import EpochMetrics
from pipeline.training.evaluate import Evaluation
from pipeline.training.loggers import Loggers, RunStart
from pipeline.training.loop import Totals
from pipeline.training.loop_clock import Clock
from pipeline.training.replacing import replacing

Status = Literal["completed", "stopped", "failed"]


class RunRecord:
    """Tells a run's loggers how it goes, and writes its `summary.json` however the `with` block ends.

    The summary's `status` is `completed`; `stopped` if `run.max_steps`, Ctrl-C or SIGTERM ended it early; or `failed`,
    with the exception in `error`, which goes on to the caller. `summary` is what was written.

    A run that was interrupted and resumed is one run: the reports cover all of it, `resumed` counts its resumptions and
    `wall_s` adds up its parts, each as far as a checkpoint of it was gone on from. The stall report,
    `cache_hit_pct` and the like are of the last part, for every part begins with an empty cache.

    Of several ranks the first one writes; the others keep the same record, have no loggers and write nothing.

    `peak_pss_mb` is this process's proportional set size at its highest epoch end, in 10^6 bytes; worker
    processes are not in it, and it is None where the system does not tell.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        config: dict[str, Any],
        writes: bool = True,
        loggers: Loggers | None = None,
        earlier: Mapping[str, Any] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Begins a record, or goes on with `earlier`, what `state_dict` gave in the part before.

        Without `writes` it leaves no summary. The loggers are closed with the block.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self.rows: list[EpochMetrics] = []
        self.loggers = loggers or Loggers()
        self.num_steps = 0
        self.summary: dict[str, Any] = {}
        self.stalls: StallReport | None = None
        self.cache_hit_pct: float | None = None
        self.cache_bound_pct: float | None = None
        """The most hits there could have been."""
        self.cache_advice: str | None = None
        self.evaluation: Evaluation | None = None
        """Of a run that trains nothing."""
        self.status: Status = "completed"
        self._run_dir = run_dir
        self._config = config
        self._writes = writes
        self._clock = clock
        self._start_s = clock()
        self._earlier_s = 0.0
        self._num_resumed = 0
        self._trained: list[Totals] = []
        self._peak_pss_bytes: int | None = None
        if earlier is not None:
            self._go_on(earlier)

    @property
    def best_top1(self) -> float | None:
        """The best evaluation's; None: there was none yet."""
        return max((row.eval_top1 for row in self.rows if row.eval_top1 is not None), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which a later process goes on with this record."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "trained": [asdict(totals) for totals in self._trained],
            "num_steps": self.num_steps,
            "wall_s": self._wall_s(),
            "num_resumed": self._num_resumed,
            "peak_pss_bytes": self._peak_pss_bytes,
        }

    def start_loggers(self, *, first_step: int) -> None:
        """Tells them of the run, of which `first_step` is the first step that they are still to hear of.

        Raises:
            Exception: one of them could not begin.
        """
        rows = tuple(self.rows)
        self.loggers.start(RunStart(config=self._config, run_dir=self._run_dir, rows=rows, first_step=first_step))

    def add_epoch(self, *, step: int, trained: Totals, evaluation: Evaluation | None) -> EpochMetrics:
        """Records the next epoch; its row is in the files when this returns."""
        self.num_steps = step
        row = EpochMetrics(
            epoch=len(self.rows) + 1,
            step=step,
            lr=trained.lr,
            train_loss=trained.loss,
            train_top1=trained.top1,
            eval_loss=evaluation.loss if evaluation else None,
            eval_top1=evaluation.top1 if evaluation else None,
            eval_num_samples=evaluation.num_samples if evaluation else None,
            train_samples_per_sec=trained.samples_per_sec,
            data_wait_pct=trained.data_wait_pct,
            train_s=trained.wall_s,
            eval_s=evaluation.wall_s if evaluation else None,
        )
        self.rows.append(row)
        self._trained.append(trained)
        pss_bytes = _pss_bytes()
        if pss_bytes is not None:
            self._peak_pss_bytes = max(pss_bytes, self._peak_pss_bytes or 0)
        self.loggers.epoch(row)
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        message = f"{type(error).__name__}: {error}" if error is not None else None
        self.summary = _finite(self._results() | {"status": self.status, "error": message} | self._conditions())
        try:
            if self._writes:
                self._write_summary(may_raise=error is None)
        finally:
            self.loggers.close(self.summary)

    def _write_summary(self, *, may_raise: bool) -> None:
        text = json.dumps(self.summary, indent=2, allow_nan=False) + "\n"
        try:
            with replacing(self._run_dir / "summary.json") as file:
                file.write(text.encode())
        except OSError:
            # A full disk is often why the run failed: then its own error is the one to see.
            if may_raise:
                raise

    def _results(self) -> dict[str, Any]:
        evaluated = [row for row in self.rows if row.eval_top1 is not None]
        last = self.evaluation
        train_s = sum(trained.wall_s for trained in self._trained)
        wait_s = sum(trained.wait_s for trained in self._trained)
        num_samples = sum(trained.num_samples for trained in self._trained)
        return {
            "train_samples_per_sec": num_samples / train_s if train_s else None,
            "eval_top1": evaluated[-1].eval_top1 if evaluated else last.top1 if last else None,
            "best_top1": self.best_top1,
            "eval_loss": evaluated[-1].eval_loss if evaluated else last.loss if last else None,
            "eval_num_samples": evaluated[-1].eval_num_samples if evaluated else last.num_samples if last else None,
            "data_wait_pct": 100 * wait_s / train_s if train_s else None,
            "first_batch_s": self._trained[0].first_batch_s if self._trained else None,
            "peak_pss_mb": self._peak_pss_bytes / 1e6 if self._peak_pss_bytes else None,
            "cache_hit_pct": self.cache_hit_pct,
            "cache_bound_pct": self.cache_bound_pct,
            "cache_advice": self.cache_advice,
            "epochs": len(self.rows),
            "steps": self.num_steps,
            "wall_s": self._wall_s(),
            "resumed": self._num_resumed,
            "stalls": None if self.stalls is None else self.stalls.numbers(),
            "dropped_loggers": self.loggers.dropped,
        }

    def _go_on(self, earlier: Mapping[str, Any]) -> None:
        self.rows = [EpochMetrics(**row) for row in earlier["rows"]]
        self.num_steps = earlier["num_steps"]
        self._trained = [Totals(**totals) for totals in earlier["trained"]]
        self._earlier_s = earlier["wall_s"]
        self._num_resumed = earlier["num_resumed"] + 1
        self._peak_pss_bytes = earlier["peak_pss_bytes"]

    def _wall_s(self) -> float:
        return self._earlier_s + self._clock() - self._start_s

    def _conditions(self) -> dict[str, Any]:
        return {
            "config": self._config,
            "versions": environment.versions(),
            "host": environment.host(),
            "commit": environment.commit(),
        }


def _pss_bytes() -> int | None:
    # Only Linux has it: shared pages count by the number of processes that share them.
    pss = getattr(psutil.Process().memory_full_info(), "pss", None)
    return int(pss) if pss is not None else None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
