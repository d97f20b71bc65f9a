"""What a sweep left in its directory, read back. It reads files only, so it shows an interrupted sweep too."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.sweep_file import NAME, SweepFile
from pipeline.config.checks import ConfigError

COMPLETED, FAILED, SKIPPED, NOT_RUN = "completed", "failed", "skipped", "not run"
"""A trial's status; the last is that of a job without a result."""

_TELL_PCT = 10.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was asked for: the command, the base configuration, and how its trials are to be compared."""

    directory: Path
    letter: str
    """What its jobs' numbers begin with where several sweeps are shown together; empty: it is alone."""
    command: str
    began: str
    base: dict[str, Any]
    """The part of the configuration that its jobs share."""
    baseline: str | None
    vs_previous: bool
    published: dict[str, float]


@dataclass(frozen=True, eq=False)
class Trial:
    """One job of a sweep and its result, if it has one."""

    sweep: Sweep
    number: int
    arguments: tuple[str, ...]
    """The job's overrides as they were given."""
    result: dict[str, Any]

    @property
    def name(self) -> str:
        """Its number, after its sweep's letter if there are several: "3", "b/3"."""
        return f"{self.sweep.letter}/{self.number}" if self.sweep.letter else str(self.number)

    @property
    def status(self) -> str:
        """One of COMPLETED, FAILED, SKIPPED, NOT_RUN."""
        return str(self.result["status"])

    @property
    def completed(self) -> bool:
        """Whether there are numbers to compare."""
        return self.status == COMPLETED

    @property
    def error(self) -> str:
        """Why it failed or was skipped, in one line; empty otherwise."""
        return " ".join(str(self.result.get("error") or "").split())

    @property
    def rate(self) -> float:
        """Images/s, the median of its rounds; completed trials only."""
        return float(self.result["samples_per_sec"])

    @property
    def repeats(self) -> list[dict[str, Any]]:
        """Its rounds, each a dict; empty where nothing was timed."""
        return list(self.result.get("repeats") or ())

    @property
    def rates(self) -> list[float]:
        """Images/s of each round."""
        return [float(repeat["samples_per_sec"]) for repeat in self.repeats if repeat.get("samples_per_sec")]

    @property
    def tell_pct(self) -> float:
        """The smallest difference that matters, in percent."""
        configs = (self.result.get("config") or {}, self.sweep.base)
        found = ((config.get("bench") or {}).get("tell_pct") for config in configs)
        return float(next((value for value in found if value is not None), _TELL_PCT))

    @property
    def overrides(self) -> dict[str, str]:
        """Values by key; `+` and `++` are left out, `~key` has the value "(none)"."""
        return dict(map(_key_and_value, self.arguments))

    def number_of(self, key: str) -> float | None:
        """A number of the result, None where it was not measured or the trial is not completed."""
        value = self.result.get(key)
        if not self.completed or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None


def read_sweeps(directories: Sequence[Path]) -> list[Trial]:
    """The trials of all sweeps, in order; with more than one sweep their names begin with a letter: "a/0".

    Raises:
        ConfigError: a directory holds no sweep of bench.py, or is named twice.
    """
    resolved = [directory.resolve() for directory in directories]
    twice = next((path for path in resolved if resolved.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is named twice; give each sweep once")
    letters = _letters(len(directories))
    return [trial for directory, letter in zip(directories, letters, strict=True) for trial in _read(directory, letter)]


def sweeps_of(trials: Sequence[Trial]) -> list[Sweep]:
    """Their sweeps, each once, in order."""
    return list(dict.fromkeys(trial.sweep for trial in trials))


def _read(directory: Path, letter: str) -> list[Trial]:
    file = SweepFile.read(directory)
    if not file.jobs:
        raise ConfigError(f"{directory / NAME} lists no jobs; give the directory of a sweep that has some")
    options = file.sweep
    sweep = Sweep(
        directory=directory,
        letter=letter,
        command=file.command,
        began=file.began,
        base=file.base,
        baseline=None if options.get("baseline") is None else str(options["baseline"]),
        vs_previous=bool(options.get("vs_previous")),
        published={str(label): float(ratio) for label, ratio in (options.get("published") or {}).items()},
    )
    return [Trial(sweep, number, tuple(job), _result(directory / str(number))) for number, job in enumerate(file.jobs)]


def _result(job_dir: Path) -> dict[str, Any]:
    path = job_dir / "result.json"
    if not path.is_file():
        return {"status": NOT_RUN}
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        if result["status"] not in (COMPLETED, FAILED, SKIPPED):
            raise ValueError(f"status {result['status']!r}")
        if result["status"] == COMPLETED and not result["samples_per_sec"] > 0:
            raise ValueError(f"samples_per_sec {result['samples_per_sec']!r}")
    except (ValueError, KeyError, TypeError) as error:
        return {"status": FAILED, "error": f"result.json is damaged: {type(error).__name__}: {error}"}
    return result


def _key_and_value(argument: str) -> tuple[str, str]:
    key, _, value = argument.lstrip("+").partition("=")
    return (key[1:], "(none)") if key.startswith("~") else (key, value)


def _letters(num: int) -> list[str]:
    if num == 1:
        return [""]
    alphabet = string.ascii_lowercase
    return [alphabet[i] if i < len(alphabet) else f"{alphabet[i // 26 - 1]}{alphabet[i % 26]}" for i in range(num)]
