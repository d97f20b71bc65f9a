"""What a run records of each of its epochs."""

from __future__ import annotations

from dataclasses import dataclass


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
