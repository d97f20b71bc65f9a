"""What a run leaves to be read: a row of `metrics.csv` an epoch, and `summary.json` however it ends."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from pipeline.training import environment
from pipeline.training.evaluate import Evaluation
from pipeline.training.loop import Clock, Totals
from pipeline.training.replacing import replacing

Status = Literal["completed", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """A row of `metrics.csv`.

    `epoch` counts from 1, `step` from the start of the run; `lr` is the epoch's first; top-1 is in [0, 1].
    None: the epoch was not evaluated.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_top1: float
    eval_loss: float | None
    eval_top1: float | None
    eval_num_samples: int | None
    train_samples_per_sec: float
    data_wait_pct: float
    train_s: float
    eval_s: float | None


class RunRecord:
    """Writes a run's `metrics.csv` as it goes, and its `summary.json` however the `with` block ends.

    The summary's `status` is `completed`; `stopped` if `run.max_steps`, Ctrl-C or SIGTERM ended it early; or `failed`,
    with the exception in `error`, which goes on to the caller. `summary` is what was written.

    A run that was interrupted and resumed is one run: both files cover all of it, `resumed` counts its resumptions and
    `wall_s` adds up its parts, each as far as a checkpoint of it was gone on from. `cache_hit_pct` and the like are of
    the last part, for every part begins with an empty cache.

    Of several ranks the first one writes; the others keep the same record and write nothing.

    `peak_pss_mb` is this process's proportional set size at its highest epoch end, in 10^6 bytes; worker
    processes are not in it, and it is None where the system does not tell.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        config: dict[str, Any],
        writes: bool = True,
        write_csv: bool = True,
        earlier: Mapping[str, Any] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Begins a record, or goes on with `earlier`, what `state_dict` gave in the part before.

        Without `writes` it leaves no file, whatever `write_csv` says.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self.rows: list[EpochMetrics] = []
        self.num_steps = 0
        self.summary: dict[str, Any] = {}
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
        self._write_csv = write_csv and writes
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

    def add_epoch(self, *, step: int, trained: Totals, evaluation: Evaluation | None) -> EpochMetrics:
        """Records the next epoch; its row is in the file when this returns."""
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
        if self._write_csv:
            self._rewrite_csv()
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
        if not self._writes:
            return
        text = json.dumps(self.summary, indent=2, allow_nan=False) + "\n"
        try:
            with replacing(self._run_dir / "summary.json") as file:
                file.write(text.encode())
        except OSError:
            # A full disk is often why the run failed: then its own error is the one to see.
            if error is None:
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
        }

    def _go_on(self, earlier: Mapping[str, Any]) -> None:
        self.rows = [EpochMetrics(**row) for row in earlier["rows"]]
        self.num_steps = earlier["num_steps"]
        self._trained = [Totals(**totals) for totals in earlier["trained"]]
        self._earlier_s = earlier["wall_s"]
        self._num_resumed = earlier["num_resumed"] + 1
        self._peak_pss_bytes = earlier["peak_pss_bytes"]
        if self._write_csv:
            self._rewrite_csv()  # a row later than the checkpoint is going to come again

    def _wall_s(self) -> float:
        return self._earlier_s + self._clock() - self._start_s

    def _conditions(self) -> dict[str, Any]:
        return {
            "config": self._config,
            "versions": environment.versions(),
            "host": environment.host(),
            "commit": environment.commit(),
        }

    def _rewrite_csv(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [column.name for column in fields(EpochMetrics)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        with replacing(self._run_dir / "metrics.csv") as file:
            file.write(text.getvalue().encode())


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
