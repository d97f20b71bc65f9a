"""Directories of sweeps, as `bench.py -m` leaves them: real files, whose numbers a test chooses."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bench.report import write_report

HOST = {
    "name": "vm-1",
    "system": "Linux-6.1.0-x86_64",
    "processor": "AMD EPYC 7763 64-Core Processor",
    "num_cores": 2,
    "num_usable_cores": 2,
    "memory_gib": 7.7,
    "num_torch_threads": 1,
    "gpu": None,
}
VERSIONS = {"python": "3.11.9", "headrace": "0.1.0", "torch": "2.9.0", "torchvision": "0.24.0", "pillow": "11.3.0"}
COMMIT = "507a6e0c2f1d4b7a9e8c6d5f4a3b2c1d0e9f8a7b"
DATASET = "3fa1c09b7d5e4f2a8b6c1d0e9f8a7b6c"
SLOW, FAST = "loader.num_workers=0", "loader.num_workers=2"

LADDER = {
    "torch_serial": 226.0,
    "torch_workers": 431.0,
    "serial": 612.0,
    "workers": 1147.0,
    "lru": 1189.0,
    "preloaded": 2874.0,
    "all": 2902.0,
}
"""Images/s that a two-core machine gave for the rows of sweep=ladder."""


def rates_near(rate: float, num_rounds: int = 7, *, noise: float = 0.02, seed: int = 0) -> list[float]:
    """Rates that spread around `rate` by a part of it, slower and slower over the rounds, as a machine that heats."""
    drawn = random.Random(f"{rate} {seed}")
    return [rate * math.exp(drawn.gauss(0, noise) - 0.01 * number) for number in range(num_rounds)]


def completed(
    rates: Sequence[float], *, sitting: str | None = "2026-11-22T20:00:00", first_round: int = 0, **changes: Any
) -> dict[str, Any]:
    """A result of those rounds; `changes` replace what stands at its top, and what `config` holds by dotted key."""
    config = {
        "bench": {"contender": "headrace", "mode": "load", "warmup": "auto", "batches": 50, "tell_pct": 10.0},
        "loader": {"num_workers": 2, "batch_size": 32},
        "cache": {"policy": "none"},
        "preload": {"mode": "none"},
    }
    for key, value in changes.pop("config", {}).items():
        group, _, name = key.partition(".")
        config.setdefault(group, {})[name] = value
    rate = statistics.median(rates)
    result = {
        "status": "completed",
        "contender": "headrace",
        "samples_per_sec": rate,
        "samples_per_sec_min": min(rates),
        "samples_per_sec_max": max(rates),
        "samples_per_cpu_sec": 0.52 * rate,
        "cold_samples_per_sec": None,
        "cold_resident_pct": None,
        "build_s": 0.412,
        "first_batch_s": 0.731,
        "first_batch_from_start_s": 3.42,
        "epoch_gap_s": 0.0121,
        "data_wait_pct": None,
        "peak_pss_mb": 212.4,
        "cache_hit_pct": None,
        "cache_bound_pct": None,
        "cache_capacity_pct": None,
        "read_ms": 0.02,
        "decode_ms": 1.05,
        "transform_ms": 0.55,
        "decode_ceiling_per_sec": 1850.0,
        "resident_per_sec": 21_400.0,
        "num_workers": 2,
        "num_samples": 1800,
        "batch_size": 32,
        "served_from": "files",
        "resize": "antialiased (Gaussian and bilinear)",
        "layout": "channels-last",
        "deviations": [],
        "dataset": DATASET,
        "config": config,
        "versions": dict(VERSIONS),
        "host": dict(HOST),
        "commit": COMMIT,
        **changes,
    }
    of_round = {key: result[key] for key in ("first_batch_s", "peak_pss_mb", "cache_hit_pct", "decode_ceiling_per_sec")}
    result["repeats"] = [
        {"round": first_round + number, "sitting": sitting, "samples_per_sec": one, **of_round}
        for number, one in enumerate(rates)
    ]
    return result


def failed(error: str) -> dict[str, Any]:
    return {"status": "failed", "error": error, "repeats": [], "config": {}}


def skipped(error: str) -> dict[str, Any]:
    return {"status": "skipped", "error": error, "repeats": [], "config": {}}


def write_sweep(
    directory: Path,
    trials: Sequence[tuple[str, Mapping[str, Any] | None]],
    *,
    baseline: str | None = None,
    vs_previous: bool = False,
    published: Mapping[str, float] | None = None,
    base: Mapping[str, Any] | None = None,
    command: str = "python bench.py -m loader.num_workers=0,2",
) -> Path:
    """Write a sweep of `trials`: overrides as one would type them, and the result; None: the job never ran."""
    directory.mkdir(parents=True)
    described = {
        "program": "bench",
        "command": command,
        "began": "2026-11-22T20:00:00",
        "base": base or {"bench": {"tell_pct": 10.0, "repeats": 7}, "loader": {"num_workers": 0}},
        "jobs": [overrides.split() for overrides, _ in trials],
        "sweep": {"baseline": baseline, "vs_previous": vs_previous, "published": dict(published or {})},
    }
    (directory / "sweep.json").write_text(json.dumps(described, indent=2))
    for number, (_, result) in enumerate(trials):
        if result is None:
            continue
        (directory / str(number)).mkdir()
        (directory / str(number) / "result.json").write_text(json.dumps(result, indent=2))
    return directory


def ladder(directory: Path, *, num_rounds: int = 7, noise: float = 0.02) -> Path:
    """The sweep of conf/sweep/ladder.yaml as a machine of two cores did it, beside the published speed-ups."""
    pillow = {"resize": "antialiased bilinear (Pillow)", "layout": "contiguous", "contender": "torch"}
    unmeasured = {"read_ms": None, "decode_ms": None, "transform_ms": None, "decode_ceiling_per_sec": None}
    ceiling = {"decode_ceiling_per_sec": 1850.0}
    lru = {"cache_hit_pct": 34.8, "cache_bound_pct": 99.0, "cache_capacity_pct": 100.0, "read_ms": 0.01}
    ram = {"read_ms": 0.0, "decode_ms": 0.0, "transform_ms": 0.55, "served_from": "memory (preload=ram)"}
    rows: dict[str, dict[str, Any]] = {
        "torch_serial": {**pillow, **unmeasured, "num_workers": 0, "peak_pss_mb": 421.3},
        "torch_workers": {**pillow, **unmeasured, "peak_pss_mb": 1312.8},
        "serial": {"num_workers": 0, "peak_pss_mb": 318.1},
        "workers": {**ceiling, "peak_pss_mb": 331.9},
        "lru": {**ceiling, **lru, "served_from": "cache=lru before files", "peak_pss_mb": 1210.4},
        "preloaded": {**ceiling, **ram, "peak_pss_mb": 1180.2},
        "all": {**ceiling, **ram, "peak_pss_mb": 1190.7},
    }
    trials = [
        (f"sweep=ladder rung={rung}", completed(rates_near(LADDER[rung], num_rounds, noise=noise), **of_row))
        for rung, of_row in rows.items()
    ]
    published = {"workers": 3.38, "lru": 4.10, "preloaded": 10.04, "all": 4.74}
    return write_sweep(
        directory, trials, vs_previous=True, published=published, command="python bench.py -m sweep=ladder"
    )


def many(directory: Path, num: int, *, awkward: bool = False) -> Path:
    """A sweep of `num` trials by workers and batch size; awkward: long values, failures, a job that never ran."""
    trials: list[tuple[str, Mapping[str, Any] | None]] = []
    for number in range(num):
        overrides = f"loader.num_workers={number % 8} loader.batch_size={32 * (1 + number // 8)}"
        result: Mapping[str, Any] | None = completed(
            rates_near(300 + 1847.0 * (number % 8), noise=0.05), peak_pss_mb=200 + 90.0 * (number % 8)
        )
        if awkward:
            overrides += f" transforms.mean=[{number}.4914,0.4822,0.4465] transforms.std=[0.2470,0.2435,0.2616]"
            overrides += f" data.root=/data/imagenette-{number % 2}"
            result = failed("RuntimeError: disk on fire") if number % 5 == 1 else result
            result = None if number % 7 == 3 else result
        trials.append((overrides, result))
    return write_sweep(directory, trials)


def caches(directory: Path) -> Path:
    """The sweep of conf/sweep/cache.yaml: hit rates a little off what theory says, as measured ones are."""
    trials: list[tuple[str, Mapping[str, Any] | None]] = []
    for policy, off_pct in (("lru", 0.9), ("pinned", -0.3), ("valued", 0.4)):
        for kept in (180, 630, 1260):
            c = kept / 1800
            hits = c + (1 - c) * math.log(1 - c) if policy == "lru" else c
            result = completed(
                rates_near(900 + 900 * hits),
                cache_hit_pct=100 * hits + off_pct,
                cache_bound_pct=100 * c,
                cache_capacity_pct=100 * c,
                served_from=f"cache={policy} before files",
                config={"cache.policy": policy},
            )
            trials.append((f"sweep=cache cache={policy} cache.max_images={kept}", result))
    return write_sweep(directory, trials, command="python bench.py -m sweep=cache")


def two(directory: Path, first: dict[str, Any] | None, second: dict[str, Any] | None, **options: Any) -> Path:
    return write_sweep(directory, [(SLOW, first), (FAST, second)], **options)


def report(*directories: Path, out: Path | None = None) -> str:
    """What the terminal gets."""
    terminal = io.StringIO()
    write_report(list(directories), out or directories[0], terminal=terminal)
    return terminal.getvalue()


def csv_of(directory: Path) -> list[dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))
