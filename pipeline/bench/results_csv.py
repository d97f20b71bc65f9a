"""`results.csv`: a row a trial, with every number of its result."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.bench.compare import Ratio, Section
from pipeline.bench.labels import UNSAID, Labels
from pipeline.bench.sweep_dir import Trial
from pipeline.bench.table import verdict_cell
from pipeline.bench.wording import spread
from pipeline.training.replacing import replacing

_NUMBERS = (
    "samples_per_sec", "samples_per_sec_min", "samples_per_sec_max", "samples_per_cpu_sec", "cold_samples_per_sec",
    "cold_resident_pct", "build_s", "first_batch_s", "first_batch_from_start_s", "epoch_gap_s", "data_wait_pct",
    "peak_pss_mb", "cache_hit_pct", "cache_bound_pct", "cache_capacity_pct", "read_ms", "decode_ms", "transform_ms",
    "decode_ceiling_per_sec", "resident_per_sec", "num_workers", "num_samples", "batch_size",
)  # fmt: skip
_TEXTS = ("contender", "served_from", "resize", "layout", "dataset", "commit")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a cell that begins so for; an apostrophe makes it text."""

Row = dict[str, Any]


def write_csv(sections: Sequence[Section], labels: Labels, path: Path) -> None:
    """Write the trials of all sections; columns are always in the same order, further numbers after the known ones."""
    listed = [(number, section, trial) for number, section in enumerate(sections) for trial in section.trials]
    known = [_known(section, number, labels, trial) for number, section, trial in listed]
    others = [_further(trial) for _, _, trial in listed]
    errors = [{"error": trial.error} for _, _, trial in listed]
    rows = [{**row, **other, **error} for row, other, error in zip(known, others, errors, strict=True)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*known[0], *sorted({key for other in others for key in other}), "error"], restval="")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _known(section: Section, number: int, labels: Labels, trial: Trial) -> Row:
    host = trial.result.get("host") or {}
    return {
        "job": trial.name,
        "section": number,
        "status": trial.status,
        "verdict": verdict_cell(section, trial),
        **{key: "" if v == UNSAID else v for key, v in zip(labels.keys, labels.values(trial), strict=True)},
        "overrides": " ".join(trial.arguments),
        **{key: trial.result.get(key) if trial.completed else None for key in _NUMBERS},
        **_spread(trial),
        "rounds": len(trial.repeats),
        **_ratio("vs_baseline", section.vs_baseline.get(trial)),
        **_ratio("vs_previous", section.vs_previous.get(trial)),
        "published": labels.published(trial),
        **{key: trial.result.get(key) for key in _TEXTS},
        "deviations": "; ".join(trial.result.get("deviations") or ()),
        "host": host.get("name"),
        "processor": host.get("processor"),
        "num_usable_cores": host.get("num_usable_cores"),
        "directory": str(trial.sweep.directory / str(trial.number)),
    }


def _further(trial: Trial) -> Row:
    """Numbers that a result has besides the known ones."""
    numbers = {key: trial.number_of(key) for key in trial.result if key not in _NUMBERS}
    return {key: value for key, value in numbers.items() if value is not None}


def _spread(trial: Trial) -> Row:
    ends = spread(trial) if trial.completed else None
    low, high, is_interval = ends or (None, None, None)
    return {"samples_per_sec_low": low, "samples_per_sec_high": high, "samples_per_sec_is_interval": is_interval}


def _ratio(name: str, found: Ratio | None) -> Row:
    return {
        name: found and found.value,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
        f"{name}_rounds": found and found.num_rounds,
        f"{name}_is_interval": found and found.is_interval,
    }


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return f"'{text}" if value.startswith(_FORMULA) else text
