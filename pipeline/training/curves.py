"""The picture of a run: loss, top-1, throughput and data-wait over its epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.training.epoch_metrics import EpochMetrics
from pipeline.training.replacing import replacing

# Okabe and Ito's palette stays apart under colour blindness; marker and dash say the same without colour.
_TRAIN = {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "training (augmented, running)"}
_EVAL = {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "validation"}
_SPEED = {"color": "#009E73", "marker": "o", "linestyle": "-"}
_WAIT = {"color": "#CC79A7", "marker": "s", "linestyle": "-"}


def draw_curves(rows: Sequence[EpochMetrics], path: Path) -> None:
    """Draws the epochs of `rows`, at least one, as a PNG of 1600 by 1000 pixels at `path`."""
    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    (loss, top1), (speed, wait) = figure.subplots(2, 2, sharex=True)

    _line(loss, rows, lambda row: row.train_loss, _TRAIN)
    _line(loss, rows, lambda row: row.eval_loss, _EVAL)
    loss.set(title="Loss", ylabel="cross-entropy (nats)")

    _line(top1, rows, lambda row: 100 * row.train_top1, _TRAIN)
    _line(top1, rows, lambda row: None if row.eval_top1 is None else 100 * row.eval_top1, _EVAL)
    top1.set(title="Top-1 accuracy", ylabel="right (%)", ylim=(0, 102))

    _line(speed, rows, lambda row: row.train_samples_per_sec, _SPEED)
    speed.set(title="Training speed", ylabel="images per second", xlabel="epoch")
    speed.set_ylim(0, 1.1 * max(row.train_samples_per_sec for row in rows))

    _line(wait, rows, lambda row: row.data_wait_pct, _WAIT)
    wait.set(title="Waiting for data", ylabel="share of training time (%)", xlabel="epoch", ylim=(0, 102))

    for axes in (loss, top1, speed, wait):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    wait.set_xlim(rows[0].epoch - 0.5, rows[-1].epoch + 0.5)
    # Of both upper pictures, and outside them: inside, it lies on the curves of some run.
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png")


def _line(
    axes: Axes,
    rows: Sequence[EpochMetrics],
    value: Callable[[EpochMetrics], float | None],
    style: dict[str, str],
) -> None:
    points = [(row.epoch, y) for row in rows if (y := value(row)) is not None]
    axes.plot([epoch for epoch, _ in points], [y for _, y in points], markersize=5, linewidth=1.8, **style)  # type: ignore[arg-type]  # style is text only
