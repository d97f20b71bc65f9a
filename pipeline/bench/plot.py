"""The picture of a sweep: throughput with its interval and memory, a row a trial. Every length is in inches."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.bench.compare import Section
from pipeline.bench.conditions import how, title, where
from pipeline.bench.labels import Labels
from pipeline.bench.notes import references
from pipeline.bench.sweep_dir import FAILED, Trial
from pipeline.bench.wording import count, ratio, spread
from pipeline.training.replacing import replacing

# Okabe and Ito's palette stays apart under colour blindness; hatch, marker and dash say the same without colour.
_OURS, _OTHERS, _MEMORY, _FAILED, _COLD = "#0072B2", "#E69F00", "#999999", "#D55E00", "#56B4E9"
_DASHES: tuple[Literal["--", ":", "-."], ...] = ("--", ":", "-.")

_DPI = 120
_WIDTH, _MARGIN, _GAP = 10.0, 0.25, 0.3
_TITLE, _LINE, _ROW, _AXIS = 0.26, 0.19, 0.3, 0.62
"""Heights: a line of the title, of text, the least of a trial's row, an axis with its numbers and its name."""
_PAD = 0.08
"""Between a bar and its number."""
_TEXT_PT, _TITLE_PT = 9.0, 12.0
_LABEL_WIDTH, _LABEL_LINES = 2.6, 3
_RATE_PART = 0.64
"""Of what the labels leave, the part that the panel of rates gets."""
_SQUASHED = 1.8
"""A reference line further out than so many times the greatest rate is told in words: it would squash the rest."""


def draw_throughput(sections: Sequence[Section], labels: Labels, path: Path) -> None:
    """Draws all trials of `sections`, of which one at least completed, as a PNG 1200 pixels wide at `path`."""
    with replacing(path) as file:
        throughput_figure(sections, labels).savefig(file, format="png")


def throughput_figure(sections: Sequence[Section], labels: Labels) -> Figure:
    """The figure that `draw_throughput` saves; a section has axes of its own: its rates are compared with no other."""
    sketch = _Sketch()
    several = len(sections) > 1
    blocks = [_Block(section, labels, sketch, number=i + 1 if several else None) for i, section in enumerate(sections)]
    head = sketch.wrap(title(labels), _WIDTH - 2 * _MARGIN, size=_TITLE_PT, weight="bold")
    height = _MARGIN + _TITLE * len(head) + 0.05 + sum(block.height for block in blocks)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    left = _MARGIN + max(sketch.width(line) for block in blocks for label in block.labels for line in label) + 0.12
    page = _Page(figure, height, left)
    for line in head:
        page.write(line, size=_TITLE_PT, weight="bold", step=_TITLE)
    page.top += 0.05
    for block in blocks:
        _draw_block(page, block, sketch)
    return figure


class _Sketch:
    """Measures text before there is a figure to put it in."""

    def __init__(self) -> None:
        self._figure = Figure(dpi=_DPI)
        FigureCanvasAgg(self._figure)

    def width(self, text: str, *, size: float = _TEXT_PT, weight: str = "normal") -> float:
        """Inches of one line."""
        drawn = self._figure.text(0, 0, text, size=size, weight=weight)
        inches = drawn.get_window_extent().width / _DPI
        drawn.remove()
        return float(inches)

    def wrap(self, text: str, width: float, *, size: float = _TEXT_PT, weight: str = "normal") -> list[str]:
        """The text in lines of at most `width` inches."""
        num_chars = max(8, len(text))
        while True:
            lines = textwrap.wrap(text, num_chars, break_on_hyphens=False)
            widest = max((self.width(line, size=size, weight=weight) for line in lines), default=0.0)
            if widest <= width or num_chars <= 8:
                return lines
            num_chars = max(8, min(num_chars - 1, int(num_chars * width / widest) + 2))


@dataclass
class _Page:
    """A figure that is filled from the top."""

    figure: Figure
    height: float
    left: float
    top: float = _MARGIN

    def write(self, text: str, *, size: float = _TEXT_PT, step: float = _LINE, **style: Any) -> None:
        """A line at the left margin."""
        x, y = _MARGIN / _WIDTH, 1 - self.top / self.height
        self.figure.text(x, y, text, size=size, ha="left", va="top", **style)
        self.top += step

    def axes(self, left: float, width: float, height: float) -> Axes:
        """Axes below what there is; the caller moves `top`."""
        bottom = 1 - (self.top + height) / self.height
        return self.figure.add_axes((left / _WIDTH, bottom, width / _WIDTH, height / self.height))


class _Block:
    """A section's place in the picture: its lines of text, its legend, and rows as high as the longest label needs."""

    def __init__(self, section: Section, labels: Labels, sketch: _Sketch, *, number: int | None) -> None:
        self.section = section
        self.labels = [_label_lines(trial, labels, sketch) for trial in section.trials]
        self.row = max(_ROW, _LINE * max(map(len, self.labels)) + 0.08)
        greatest = max((_end(trial) for trial in section.completed), default=0.0)
        found = references(section)
        self.near = {text: value for text, value in found.items() if value <= _SQUASHED * greatest}
        far = [f"{text}: {count(value)}/s, beyond the axis" for text, value in found.items() if text not in self.near]
        above = [] if number is None else [f"Section {number}, not compared with the others"]
        texts = [*above, where(section), how(section), *far]
        self.lines = [line for text in texts for line in sketch.wrap(text, _WIDTH - 2 * _MARGIN)]
        self.handles = _handles(section, self.near)
        self.legend_height = 0.22 * -(-len(self.handles) // 2) + 0.12 if self.handles else 0.0

    @property
    def body(self) -> float:
        """Height of the axes."""
        return self.row * len(self.section.trials)

    @property
    def height(self) -> float:
        """Height of all, with the space below it."""
        return _LINE * len(self.lines) + self.legend_height + self.body + _AXIS + 0.15


def _draw_block(page: _Page, block: _Block, sketch: _Sketch) -> None:
    for line in block.lines:
        page.write(line, color="#333333")
    if block.handles:
        anchor = (_MARGIN / _WIDTH, 1 - (page.top + 0.03) / page.height)
        page.figure.legend(
            handles=block.handles, loc="upper left", bbox_to_anchor=anchor, ncols=2, fontsize=_TEXT_PT, frameon=False,
            borderpad=0, borderaxespad=0, labelspacing=0.45, handlelength=2.4,
        )  # fmt: skip
    page.top += block.legend_height
    room = _WIDTH - page.left - _GAP - _MARGIN - 0.1
    rates = page.axes(page.left, room * _RATE_PART, block.body)
    memory = page.axes(page.left + room * _RATE_PART + _GAP, room * (1 - _RATE_PART), block.body)
    _draw_rates(rates, block, sketch, width=room * _RATE_PART)
    _draw_memory(memory, block.section, sketch, width=room * (1 - _RATE_PART))
    for axes, part in ((rates, _RATE_PART), (memory, 1 - _RATE_PART)):
        axes.set_ylim(len(block.section.trials) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        widest = sketch.width(f"{axes.get_xlim()[1]:,.0f}") + 3 * _PAD
        axes.xaxis.set_major_locator(MaxNLocator(max(1, min(5, int(room * part / widest)))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.tick_params(labelsize=_TEXT_PT)
    rates.set_yticks(range(len(block.labels)), ["\n".join(label) for label in block.labels], ha="left")
    rates.tick_params(axis="y", length=0, pad=72 * (page.left - _MARGIN))  # so that labels begin at the margin
    memory.set_yticks([])
    page.top += block.body + _AXIS + 0.15


def _draw_rates(axes: Axes, block: _Block, sketch: _Sketch, *, width: float) -> None:
    section, texts = block.section, {}
    for row, trial in enumerate(section.trials):
        if not trial.completed:
            colour = _FAILED if trial.status == FAILED else "#555555"
            _write(axes, trial.status, 0, row, color=colour, weight="bold")
            continue
        axes.barh(row, trial.rate, height=0.62, **_bar(section, trial))
        ends = spread(trial)
        if ends is not None:
            below, above = max(0.0, trial.rate - ends[0]), max(0.0, ends[1] - trial.rate)
            axes.errorbar(trial.rate, row, xerr=[[below], [above]], color="black", capsize=3, linewidth=1.2)
        cold = trial.number_of("cold_samples_per_sec")
        if cold is not None:
            axes.plot(cold, row, **_COLD_STYLE)
        found = section.vs_baseline.get(trial)
        texts[row] = (_end(trial), count(trial.rate) + (f"  {ratio(found.value)}x" if found else ""))
    for (_, value), dash in zip(block.near.items(), _DASHES * len(block.near), strict=False):
        axes.axvline(value, color="black", linestyle=dash, linewidth=1.2)
    _write_ends(axes, texts, sketch, width, least=1.02 * max(block.near.values(), default=0.0))
    axes.set_xlabel("images per second", size=_TEXT_PT)


def _draw_memory(axes: Axes, section: Section, sketch: _Sketch, *, width: float) -> None:
    texts = {}
    for row, trial in enumerate(section.trials):
        megabytes = trial.number_of("peak_pss_mb")
        if megabytes is not None:
            style = {**_bar(section, trial), "facecolor": _MEMORY}
            axes.barh(row, megabytes, height=0.62, **style)
            texts[row] = (megabytes, count(megabytes))
    _write_ends(axes, texts, sketch, width)
    axes.set_xlabel("peak memory (MB of PSS)", size=_TEXT_PT)


def _write_ends(
    axes: Axes, texts: dict[int, tuple[float, str]], sketch: _Sketch, width: float, *, least: float = 0.0
) -> None:
    """Write each row's text right of where its bar ends, on an axis that is long enough for all of them."""
    needed = [end / max(0.2, 1 - (sketch.width(text) + 2 * _PAD) / width) for end, text in texts.values()]
    axes.set_xlim(0, max([least, *needed]) or 1.0)
    for row, (end, text) in texts.items():
        _write(axes, text, end, row)


def _write(axes: Axes, text: str, x: float, row: int, **style: Any) -> None:
    """Write right of `x`, on white: a reference line may pass behind."""
    axes.annotate(
        text, (x, row), (72 * _PAD, 0), textcoords="offset points", size=_TEXT_PT, va="center", zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 2}, **style,
    )  # fmt: skip


_COLD_STYLE: dict[str, Any] = {
    "marker": "D", "color": _COLD, "markeredgecolor": "black", "markersize": 6, "linestyle": "none", "zorder": 5,
}  # fmt: skip


def _bar(section: Section, trial: Trial) -> dict[str, Any]:
    is_ours = trial.result.get("contender", "headrace") == "headrace"
    return {
        "facecolor": _OURS if is_ours else _OTHERS,
        "edgecolor": "black",
        "linewidth": 0.6,
        "hatch": "///" if trial is section.baseline and section.vs_baseline else None,
    }


def _handles(section: Section, near: dict[str, float]) -> list[Any]:
    """What a reader needs to have explained, and no more."""
    trials = section.completed
    ours = [trial.result.get("contender", "headrace") == "headrace" for trial in trials]
    found: list[Any] = []
    if any(ours):
        found.append(Patch(facecolor=_OURS, edgecolor="black", linewidth=0.6, label="this loader"))
    if not all(ours):
        found.append(Patch(facecolor=_OTHERS, edgecolor="black", linewidth=0.6, label="another loader"))
    if len(trials) > 1:
        found.append(Patch(facecolor="white", edgecolor="black", linewidth=0.6, hatch="///", label="the baseline (1x)"))
    ends = [ends for trial in trials if (ends := spread(trial)) is not None]
    if ends:
        kinds = {is_interval for _, _, is_interval in ends}
        words = {True: "95 % interval", False: "least and greatest (too few rounds for an interval)"}
        label = words[kinds.pop()] if len(kinds) == 1 else "95 % interval, or least and greatest of too few rounds"
        found.append(Line2D([], [], color="black", marker="|", linewidth=1.2, markersize=7, label=label))
    if any(trial.number_of("cold_samples_per_sec") is not None for trial in trials):
        found.append(Line2D([], [], label="files not in the page cache (cold)", **_COLD_STYLE))
    lines = zip(near.items(), _DASHES * len(near), strict=False)
    return found + [
        Line2D([], [], color="black", linestyle=dash, linewidth=1.2, label=f"{text}: {count(value)}/s")
        for (text, value), dash in lines
    ]


def _end(trial: Trial) -> float:
    """Where the drawing of a trial's rate ends on the axis."""
    ends, cold = spread(trial), trial.number_of("cold_samples_per_sec")
    return max(trial.rate, ends[1] if ends else 0.0, cold or 0.0)


def _label_lines(trial: Trial, labels: Labels, sketch: _Sketch) -> list[str]:
    """The trial's name and varying values in a few lines; what is left out, the table of the same number says."""
    text = f"{trial.name}  {labels.label(trial)}" if labels.keys else trial.name
    lines = sketch.wrap(text, _LABEL_WIDTH)
    if len(lines) > _LABEL_LINES:
        lines = [*lines[: _LABEL_LINES - 1], lines[_LABEL_LINES - 1][:-2] + "…"]
    return lines
