"""Training runs in pairs of one seed, each in a process and a directory of its own, and what they reached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.config import ConfigError
from pipeline.doctor.configuration import compose_run
from pipeline.training.replacing import replace_json
from pipeline.training.resume import LAST

METRIC = "eval_top1"
_DONE = "completed"
_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Question:
    """Does `key` = `second` reach what `first` does within `margin` points, all else being `overrides`?

    Margin and seeds belong to the question, for who may choose them afterwards can choose the answer.
    """

    key: str
    first: str
    second: str
    overrides: tuple[str, ...] = ()
    margin: float = 1.0
    num_first: int = 5
    """Seeds whose spread says how many are needed."""

    @classmethod
    def parse(cls, arguments: Sequence[str], *, margin: float = 1.0, num_first: int = 5) -> Question:
        """Returns the question that overrides ask, one of which has two values: `transforms.resize=exact,fast`.

        Raises ConfigError where they are no overrides, or not one of them has two values that differ.
        """
        try:
            parsed = OverridesParser.create().parse_overrides(list(arguments))
        except HydraException as error:
            raise ConfigError(f"not an override: {error}") from None
        several = [override for override in parsed if override.is_sweep_override()]
        values = [*several[0].sweep_string_iterator()] if len(several) == 1 else []
        if len(values) != 2 or values[0] == values[1]:
            lines = " ".join(str(override.input_line) for override in several)
            raise ConfigError(
                f"give two different values of one key, such as transforms.resize=exact,fast; got {lines or 'none'}"
            )
        others = tuple(str(override.input_line) for override in parsed if override is not several[0])
        return cls(several[0].get_key_element(), values[0], values[1], others, margin, num_first)


@dataclass(frozen=True, slots=True)
class Pair:
    """What both values reached with one seed, in percent."""

    seed: int
    first_pct: float
    second_pct: float

    @property
    def difference_pct(self) -> float:
        """The second's less the first's, in points."""
        return self.second_pct - self.first_pct


def run_pairs(question: Question, directory: Path, say: Callable[[str], None]) -> Iterator[Pair]:
    """Yields the pairs of seeds 0, 1, ..., for as long as they are asked for; finished runs are not run again.

    Raises ConfigError where `directory` has runs of another question, RuntimeError where a run fails.
    """
    for value in (question.first, question.second):  # or a wrong one would be told of after the other's first run
        compose_run([*question.overrides, f"{question.key}={value}"], cwd=Path.cwd())
    _claim(question, directory)
    for seed in range(sys.maxsize):
        # One after the other, so that what changes on the machine changes for both.
        reached = [
            _reached(question, value, seed, directory / f"{number}-{value.replace('/', '_')}-{seed}")
            for number, value in enumerate((question.first, question.second))
        ]
        pair = Pair(seed, *reached)
        say(
            f"seed {seed}: {question.first} {pair.first_pct:.2f} %, {question.second} {pair.second_pct:.2f} %, "
            f"difference {pair.difference_pct:+.2f}"
        )
        yield pair


def _claim(question: Question, directory: Path) -> None:
    path = directory / "question.json"
    asked = {**asdict(question), "overrides": list(question.overrides)}
    if path.exists() and (earlier := json.loads(path.read_text())) != asked:
        raise ConfigError(f"{directory} has runs of another question, {earlier}; ask that again, or give another --dir")
    directory.mkdir(parents=True, exist_ok=True)
    replace_json(path, asked)


def _reached(question: Question, value: str, seed: int, run_dir: Path) -> float:
    summary = run_dir / "summary.json"
    if not _is_done(summary):
        own = [f"{question.key}={value}", f"seed={seed}", f"run.seed={seed}"]
        where = f"resume={run_dir}" if (run_dir / LAST).exists() else f"hydra.run.dir={run_dir}"
        fixed = [where, "logger.plot=false", "report.samples=false"]
        program = "from pipeline.cli import train; train()"
        command = [sys.executable, "-P", "-c", program, *question.overrides, *own, *fixed]
        output, code = _run(command)
        if not _is_done(summary):
            tail = "\n".join(output.splitlines()[-_TAIL_LINES:])
            raise RuntimeError(f"the run in {run_dir} ended with code {code}:\n{tail}")
    return 100 * float(json.loads(summary.read_text())[METRIC])


def _run(command: list[str]) -> tuple[str, int]:
    """What `command` wrote, and its exit code; interrupted, it is let save its checkpoint."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate()
            raise
    return output, process.returncode


def _is_done(summary: Path) -> bool:
    return summary.exists() and json.loads(summary.read_text())["status"] == _DONE
