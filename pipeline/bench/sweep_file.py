"""`sweep.json`: which trials a sweep has, and what it takes to go on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.bench.result import MAY_CHANGE
from pipeline.config import ConfigError
from pipeline.config.leaves import leaves
from pipeline.training.replacing import replace_json

NAME = "sweep.json"
PROGRAM = "bench"

_MAX_LINES = 20


@dataclass(slots=True, kw_only=True)
class SweepFile:
    """What `sweep.json` holds. A trial's number is its place in `jobs`, and the name of its directory."""

    command: str
    """The command that began it, as a shell would take it."""
    began: str
    """ISO date and time."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """The configuration's group `sweep`."""
    jobs: list[list[str]] = field(default_factory=list)
    """Each trial's overrides, those of `sweep` and the run's name left out."""
    configs: list[dict[str, Any]] = field(default_factory=list)
    """Each trial's whole configuration."""
    base: dict[str, Any] = field(default_factory=dict)
    """The part of it that all trials share."""
    program: str = PROGRAM

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the sweep in `directory`; ConfigError if there is none, or if it is not one of bench.py."""
        path = directory / NAME
        if not path.is_file():
            raise ConfigError(f"{directory} holds no {NAME}; give the directory of a sweep, of bench.py -m")
        try:
            written = json.loads(path.read_text())
            if written.get("program", PROGRAM) != PROGRAM:
                raise ConfigError(f"{directory} is a sweep of {written['program']}.py; give one of bench.py")
            file = cls(**written)
            file.jobs = [[str(override) for override in job] for job in file.jobs]
        except ConfigError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}; give another directory") from error
        return file

    def write(self, directory: Path) -> None:
        """Write it into `directory`, which is made if need be; it is there whole or not at all."""
        replace_json(directory / NAME, asdict(self))

    def add(self, overrides: list[str], config: dict[str, Any]) -> int:
        """Add a trial and return its number."""
        self.base = _shared(self.base, config) if self.jobs else config
        self.jobs.append(overrides)
        self.configs.append(config)
        return len(self.jobs) - 1

    def find(self, overrides: Sequence[str], taken: set[int]) -> int | None:
        """The trial with these overrides, in any order, that is not in `taken`."""
        wanted = sorted(overrides)
        return next(
            (number for number, job in enumerate(self.jobs) if number not in taken and sorted(job) == wanted), None
        )

    def label(self, number: int) -> str:
        """The overrides of a trial that not all trials share; its number where they are all alike."""
        shared = set.intersection(*map(set, self.jobs))
        return " ".join(line for line in self.jobs[number] if line not in shared) or f"trial {number}"

    def baseline(self) -> int | None:
        """The number of the trial that the others are compared with; None if `sweep.baseline` names none so far."""
        named = self.sweep.get("baseline")
        if named is None:
            return 0
        wanted = set(str(named).split())
        for number in range(len(self.jobs)):
            words = self.label(number).split()
            values = {word.partition("=")[2] for word in words}
            # A value that is a number needs its key: a number alone is a trial's.
            if str(named) == str(number) or wanted == set(words) or (wanted == values and not str(named).isdigit()):
                return number
        return None

    def check_unchanged(self, number: int, config: dict[str, Any], directory: Path) -> None:
        """ConfigError with the differences if trial `number` would not be measured as it was begun."""
        self._refuse_differences(dict(leaves(self.configs[number])), dict(leaves(config)), directory)

    def check_base(self, config: dict[str, Any], directory: Path) -> None:
        """ConfigError with the differences if a trial of `config` would differ in what all trials here share."""
        base = dict(leaves(self.base))
        self._refuse_differences(base, {key: value for key, value in leaves(config) if key in base}, directory)

    def _refuse_differences(self, then: dict[str, Any], now: dict[str, Any], directory: Path) -> None:
        changed = [
            f"  {key}: {then.get(key, 'no such key')} there, {now.get(key, 'no such key')} here"
            for key in sorted(then | now)
            if then.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)
        ]
        if changed:
            more = [f"  and {len(changed) - _MAX_LINES} more"] if len(changed) > _MAX_LINES else []
            raise ConfigError(
                "\n".join(
                    [
                        f"sweep.resume={directory} was begun with another configuration; begin a new sweep, or use",
                        f"  {self.command}",
                        *changed[:_MAX_LINES],
                        *more,
                    ]
                )
            )


def _shared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: (value, other[key]) for key, value in one.items() if key in other}
    nested = {key: _shared(*values) for key, values in both.items() if all(isinstance(value, dict) for value in values)}
    return {key: nested.get(key, values[0]) for key, values in both.items() if key in nested or values[0] == values[1]}
