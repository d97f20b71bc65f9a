"""A section's rows as tables: of plain text for the terminal, of Markdown for the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.bench.compare import Ratio, Section
from pipeline.bench.labels import Labels
from pipeline.bench.sweep_dir import Trial
from pipeline.bench.wording import count, percent, ratio_cell, spread_cell, wrapped
from pipeline.training.tables import WIDTH, format_table

_LABELS_WIDTH = 36
"""Wider values than this do not stand in the table but in a line each above it."""


@dataclass(frozen=True)
class Column:
    """A column; those of a low `place` stay in the first table when not all fit beside each other."""

    head: str
    cells: tuple[str, ...]
    place: int
    is_number: bool = True

    @property
    def width(self) -> int:
        """Characters, with the gap before it."""
        return 2 + max(map(len, (self.head, *self.cells)))


def columns(section: Section, labels: Labels) -> list[Column]:
    """All columns that say something of this section, in the order they are shown."""
    trials = section.trials

    def column(head: str, place: int, cell: Callable[[Trial], str], *, is_number: bool = True) -> Column:
        return Column(head, tuple(map(cell, trials)), place, is_number)

    def measured(head: str, place: int, key: str, cell: Callable[[float | None], str] = count) -> list[Column]:
        is_there = any(trial.number_of(key) is not None for trial in trials)
        return [column(head, place, lambda trial: cell(trial.number_of(key)))] if is_there else []

    shown = [
        *measured("images/s", 1, "samples_per_sec"),
        column("95 %", 8, lambda trial: spread_cell(trial) if trial.completed else "-"),
        column("vs baseline", 1, lambda trial: _ratio(section.vs_baseline, trial, section.baseline)),
    ]
    if section.has_published and any(labels.published(trial) for trial in trials):
        shown.append(column("published", 5, lambda trial: published_cell(section, labels, trial)))
    if section.vs_previous:
        shown.append(column("vs previous", 4, lambda trial: _ratio(section.vs_previous, trial, None)))
    shown += measured("cold images/s", 6, "cold_samples_per_sec")
    shown += measured("per CPU-s", 9, "samples_per_cpu_sec") + measured("memory MB", 3, "peak_pss_mb")
    shown += measured("hit %", 7, "cache_hit_pct", percent) + measured("data-wait %", 7, "data_wait_pct", percent)
    if len({len(trial.repeats) for trial in section.completed}) > 1:
        shown.append(column("rounds", 10, lambda trial: str(len(trial.repeats)) if trial.completed else "-"))
    return [*shown, column("verdict", 2, lambda trial: verdict_cell(section, trial), is_number=False)]


def detail_columns(section: Section) -> list[Column]:
    """What `results.csv` has besides and a report wants to show: start-up and stages, where they were measured."""
    heads = {
        "build_s": "build s",
        "first_batch_s": "first batch s",
        "first_batch_from_start_s": "from process start s",
        "epoch_gap_s": "between epochs s",
        "read_ms": "read ms",
        "decode_ms": "decode ms",
        "transform_ms": "transform ms",
    }
    return [
        Column(head, tuple(count(trial.number_of(key)) for trial in section.trials), 0)
        for key, head in heads.items()
        if any(trial.number_of(key) is not None for trial in section.trials)
    ]


def published_cell(section: Section, labels: Labels, trial: Trial) -> str:
    """The published ratio, and how ours stands to it: beaten (the whole interval is above), reached, or missed."""
    published = labels.published(trial)
    if published is None:
        return "-"
    ours = section.vs_baseline.get(trial)
    if ours is None:
        return f"{published:.2f}"
    surely = ours.is_interval and ours.low is not None and ours.low > published
    return f"{published:.2f} {'beaten' if surely else 'reached' if ours.value >= published else 'missed'}"


def verdict_cell(section: Section, trial: Trial) -> str:
    """What the trial is beside the baseline, or its status."""
    if not trial.completed:
        return trial.status
    ours = section.vs_baseline.get(trial)
    return "baseline" if ours is None else str(ours.verdict)


def text_tables(section: Section, labels: Labels) -> list[str]:
    """Lines of at most 100 columns; what does not fit beside the rest stands in further tables, and nothing is cut."""
    job, keys = _naming(section, labels)
    lines = []
    if sum(key.width for key in keys) > _LABELS_WIDTH:
        pairs = [" ".join(f"{key.head}={key.cells[row]}" for key in keys) for row in range(len(section.trials))]
        lines = [line for name, pair in zip(job.cells, pairs, strict=True) for line in wrapped(f"{name}: {pair}")]
        keys = []
    rest = columns(section, labels)
    while rest:
        shown = _fitting(rest, WIDTH - sum(column.width for column in (job, *keys)) + 2)
        rest = [column for column in rest if column not in shown]
        lines += [*([""] if lines else []), *_text([job, *keys, *shown])]
    return lines


def markdown_tables(section: Section, labels: Labels) -> list[str]:
    """The whole table, and a second one of start-up and stages, as GitHub shows them."""
    job, keys = _naming(section, labels)
    details = detail_columns(section)
    first, second = [job, *keys, *columns(section, labels)], [job, *keys, *details]
    return _markdown(first) + (["", *_markdown(second)] if details else [])


def markdown_text(text: str) -> str:
    """The text as Markdown that shows exactly it, in a cell too."""
    return re.sub(r"([\\`*|<>\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _naming(section: Section, labels: Labels) -> tuple[Column, list[Column]]:
    job = Column("job", tuple(trial.name for trial in section.trials), 0, is_number=False)
    values = [labels.values(trial) for trial in section.trials]
    return job, [
        Column(key, tuple(row[number] for row in values), 0, is_number=False)
        for number, key in enumerate(labels.short_keys)
    ]


def _ratio(ratios: dict[Trial, Ratio], trial: Trial, one: Trial | None) -> str:
    return "1" if trial is one else ratio_cell(ratios[trial]) if trial in ratios else "-"


def _fitting(candidates: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit in `width`, the important ones first; at least one, in the order they were given."""
    kept: list[Column] = []
    for column in sorted(candidates, key=lambda column: column.place):
        if not kept or sum(other.width for other in (*kept, column)) <= width:
            kept.append(column)
    return [column for column in candidates if column in kept]


def _text(shown: Sequence[Column]) -> list[str]:
    rows = [[column.head for column in shown], *map(list, zip(*(column.cells for column in shown), strict=True))]
    return format_table(rows, width=WIDTH, right=[number for number, column in enumerate(shown) if column.is_number])


def _markdown(shown: Sequence[Column]) -> list[str]:
    rows = [[column.head for column in shown], *map(list, zip(*(column.cells for column in shown), strict=True))]
    head, *body = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    return [head, "|" + "|".join("--:" if column.is_number else ":--" for column in shown) + "|", *body]
