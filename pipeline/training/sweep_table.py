"""The end of a sweep of training runs: one table over what they left in their directories.

It reads files only, so it also shows a sweep that was interrupted: `print_sweep(Path("outputs/train/multirun/..."))`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.training.replacing import replace_json
from pipeline.training.tables import WIDTH, format_table, short_names

_SUMMARY = {"train": "summary.json", "bench": "result.json"}
_METRICS = ("eval_top1", "train_samples_per_sec", "data_wait_pct")


def record_failure(run_dir: Path, error: Exception, *, program: str) -> None:
    """Write a summary that says the run failed and why, unless the run itself came to write it.

    That a rank lost another is no reason: it stands until the one who knows better writes.
    """
    path = run_dir / _SUMMARY[program]
    summary = _summary(path) if path.exists() else {}
    if summary.get("status") == "failed" and not str(summary["error"]).startswith("LostRankError"):
        return
    replace_json(path, summary | {"status": "failed", "error": f"{type(error).__name__}: {error}"})


def print_sweep(sweep_dir: Path) -> int:
    """Print the table of the runs in `sweep_dir`, if any was started, and return how many of them failed."""
    jobs = sorted((path for path in sweep_dir.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not jobs:
        return 0
    summaries = [_summary(job / _SUMMARY["train"]) for job in jobs]
    rows = sweep_rows(summaries, [_overrides(job) for job in jobs], _METRICS)
    failed = [number for number, summary in enumerate(summaries) if summary["status"] == "failed"]
    lines = [*format_table(rows, width=WIDTH), *(f"{job}: {summaries[job].get('error', '')}" for job in failed)]
    sys.stdout.write("\n".join(["", *lines, f"sweep: {sweep_dir}", ""]))
    return len(failed)


def sweep_rows(
    summaries: list[dict[str, Any]], overrides: list[dict[str, str]], metrics: tuple[str, ...]
) -> list[list[str]]:
    """Return the table's cells, header first: job, the overrides that differ between jobs, `metrics`, status."""
    keys = list(dict.fromkeys(key for job in overrides for key in job))
    varied = [key for key in keys if len({job.get(key, "") for job in overrides}) > 1]
    rows = [["job", *short_names(varied), *metrics, "status"]]
    for number, (summary, job) in enumerate(zip(summaries, overrides, strict=True)):
        values = [_cell(summary.get(metric)) for metric in metrics]
        rows.append([str(number), *(job.get(key, "") for key in varied), *values, summary["status"]])
    return rows


def _overrides(job: Path) -> dict[str, str]:
    path = job / ".hydra" / "overrides.yaml"
    if not path.exists():
        return {}
    return {key: value for key, _, value in (str(line).partition("=") for line in OmegaConf.load(path))}


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"status": "failed", "error": f"no {path.name} in {path.parent}"}
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
