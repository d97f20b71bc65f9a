"""A trial's result: a plain dict for JSON, and several rounds of one trial made into one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config import BenchConfig, CachePolicy, ConfigError, PreloadMode
from pipeline.config.bench import BenchMode, ContenderName
from pipeline.config.checks import nearest

Result = dict[str, Any]

TYPICAL = (
    "samples_per_sec",
    "samples_per_cpu_sec",
    "cold_samples_per_sec",
    "first_batch_s",
    "first_batch_from_start_s",
    "epoch_gap_s",
    "data_wait_pct",
    "cache_hit_pct",
    "decode_ceiling_per_sec",
    "resident_per_sec",
)
"""What every repeat has, or null: the result gives their medians."""

REPEAT = ("round", "sitting", *TYPICAL, "peak_pss_mb")
"""What is told of a repeat: a timed pass and what was measured beside it.

Two repeats were measured in turn, and may be compared as a pair, if round and sitting are both equal.
"""

COUNTED = ("read_ms", "decode_ms", "transform_ms", "cache_bound_pct", "cache_capacity_pct")
"""What our own loader counts in the timed passes of a process."""

PER_PROCESS = ("build_s", *COUNTED)
"""What a process tells once, whatever its number of repeats."""

_GREATEST = ("peak_pss_mb", "cold_resident_pct")

NUMBERS = (*TYPICAL, "samples_per_sec_min", "samples_per_sec_max", *PER_PROCESS, *_GREATEST)
"""The keys that may be a `bench.objective`."""

MAY_CHANGE = ("sweep.", "run.name", "bench.timeout_s", "bench.budget_s")
"""Keys that decide how a sweep runs and is shown, and nothing of what is measured."""

_SAME_HOST = ("processor", "num_usable_cores", "gpu")


def summary(repeats: Sequence[Result]) -> Result:
    """The medians of `repeats`, and the least and greatest rate; null where no repeat has the number."""
    rates = [repeat["samples_per_sec"] for repeat in repeats]
    typical = {key: median([repeat.get(key) for repeat in repeats]) for key in TYPICAL}
    return {
        **typical,
        "samples_per_sec_min": min(rates, default=None),
        "samples_per_sec_max": max(rates, default=None),
        "peak_pss_mb": greatest([repeat.get("peak_pss_mb") for repeat in repeats]),
    }


def combine(results: Sequence[Result]) -> Result:
    """One result of several rounds of the same trial: all repeats, and the numbers over all of them.

    Facts are those of the first. Rounds that failed leave their status and error; what the others measured stays.

    Raises:
        ValueError: they are of different trials, data or machines; names the key.
    """
    if not results:
        raise ValueError("there is no result to combine")
    for key in ("contender", "config", "dataset", "host"):
        _check_same(key, [result[key] for result in results if result.get(key) is not None])
    measured = [result for result in results if result["repeats"]]
    repeats = sorted((repeat for result in measured for repeat in result["repeats"]), key=_moment)
    failed = next((result for result in results if result["status"] != "completed"), None)
    combined = dict(measured[0] if measured else results[0])
    if measured:
        combined |= summary(repeats)
        combined |= {key: median([result.get(key) for result in measured]) for key in PER_PROCESS}
        combined["cold_resident_pct"] = greatest([result.get("cold_resident_pct") for result in measured])
    combined["repeats"] = repeats
    if failed is not None:
        combined |= {key: failed[key] for key in ("status", "error") if key in failed}
    return combined


def check_objective(cfg: BenchConfig) -> None:
    """Raises ConfigError if no trial of `cfg` can have its `bench.objective`."""
    objective, bench = cfg.bench.objective, cfg.bench
    if objective not in NUMBERS:
        raise ConfigError(f"bench.objective={objective} is no number of result.json; {nearest(objective, NUMBERS)}")
    keeps = cfg.cache.policy is not CachePolicy.none or cfg.preload.mode is PreloadMode.ram
    is_own = bench.contender is ContenderName.headrace
    needs = {
        "data_wait_pct": (bench.mode is BenchMode.train, "bench.mode=train"),
        "cold_": (bench.cold, "bench.cold=true"),
        "cache_": (keeps and is_own, "bench.contender=headrace with a cache"),
        "decode_ceiling": (bench.references, "bench.references=true"),
        "resident": (bench.references, "bench.references=true"),
        **{f"{stage}_ms": (is_own, "bench.contender=headrace") for stage in ("read", "decode", "transform")},
    }
    for prefix, (given, cure) in needs.items():
        if objective.startswith(prefix) and not given:
            raise ConfigError(f"bench.objective={objective} needs {cure}")


def median(values: Sequence[float | None]) -> float | None:
    """Of the values that there are; None where there is none."""
    return statistics.median(told) if (told := [value for value in values if value is not None]) else None


def greatest(values: Sequence[float | None]) -> float | None:
    """Of the values that there are; None where there is none."""
    return max((value for value in values if value is not None), default=None)


def _moment(repeat: Result) -> tuple[str, int]:
    return repeat["sitting"] or "", repeat["round"]


def _check_same(key: str, values: Sequence[Any]) -> None:
    for value in values[1:]:
        for name, ours, theirs in _differences(key, values[0], value):
            may_differ = key == "host" and name.removeprefix("host.") not in _SAME_HOST
            if not may_differ and not name.removeprefix("config.").startswith(MAY_CHANGE):
                raise ValueError(f"rounds of one trial have the same {name}, got {ours!r} and {theirs!r}")


def _differences(name: str, ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours | theirs:
            yield from _differences(f"{name}.{key}", ours.get(key), theirs.get(key))
    elif ours != theirs:
        yield name, ours, theirs
