"""Whether a run goes on, from which checkpoint, and what stands in its way: all that can be told without torch."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, TrainConfig
from pipeline.config.compose import DATA_KINDS
from pipeline.config.leaves import first_of, leaves
from pipeline.config.root import AUTO
from pipeline.launched import is_launched

LAST = Path("checkpoints/last.pt")
"""Within a run's directory: the checkpoint that it goes on from."""

_SCHEDULING_GROUPS = ("cache", "preload", "logger", "report", "dist")
_SCHEDULING_KEYS = frozenset({
    "resume", "tune", "run.name", "run.save_every_steps", "run.max_steps", "run.keep_top",
    # With another number of threads torch adds floats in another order: the run goes on, but not to the same bit.
    "run.num_threads",
    "loader.backend", "loader.num_workers", "loader.worker_scale", "loader.prefetch_factor",
    "loader.threads_per_worker", "loader.max_restarts", "loader.stall_timeout_s",
    "prefetch.device", "prefetch.num_batches",
    "init_from",  # what a run went on from has taken its place
    # Where the data lies and how it came there; the loader's state proves that it is the same data.
    "data.root", "data.path", "data.pattern", "data.download",
    "data.on_error", "data.max_bad_fraction",  # a run that a bad sample ended goes on with skip
})  # fmt: skip
_ABSENT = object()


def checkpoint_to_continue(cfg: TrainConfig, run_dir: Path) -> Path | None:
    """The checkpoint that a run of `cfg` in `run_dir` goes on from; None: it begins.

    Under torchrun a run goes on from its checkpoint without being told to: a restart gives it the same command.

    Raises:
        ConfigError: `resume` names another directory or one without a checkpoint; or it is null and `run_dir` holds
            a checkpoint, which a new run would overwrite.
    """
    last = run_dir / LAST
    if cfg.resume is None:
        if last.exists() and is_launched():
            return last
        if last.exists():
            if cfg.debug is not None:
                raise ConfigError(
                    f"{run_dir} holds a debug run already; leave out run.name, for a directory of its own, or change it"
                )
            which = AUTO if cfg.run.name is not None else run_dir
            raise ConfigError(f"{run_dir} holds a run already; add resume={which} to continue it, or change run.name")
        return None
    if cfg.resume != AUTO and Path(cfg.resume).resolve() != run_dir.resolve():
        raise ConfigError(f"resume={cfg.resume} is not this run's directory, {run_dir}; leave out run.name")
    if last.exists():
        return last
    if cfg.resume == AUTO:
        return None
    raise ConfigError(f"resume={cfg.resume} holds no {LAST}; give the directory of a run that saved one")


def refuse_changes(was: Mapping[str, Any], now: Mapping[str, Any], *, run_dir: Path) -> None:
    """Raises ConfigError, with a line for each key, if `was` and `now` differ in more than scheduling.

    Both are configurations as `environment.plain` makes them; `was` is that of the checkpoint in `run_dir`.
    """
    before, after = dict(leaves(was)), dict(leaves(now))
    differences = [
        f"  {key}: was {_shown(before.get(key, _ABSENT))}, is {_shown(after.get(key, _ABSENT))}"
        for key in dict.fromkeys((*before, *after))
        if not _is_scheduling(key) and _differs(key, before, after)
    ]
    if not differences:
        return
    lines = [
        f"{run_dir} cannot be continued with another configuration:",
        *first_of(differences),
        "resume with the old values, or begin another run under another run.name",
    ]
    raise ConfigError("\n".join(lines))


def has_reported(run_dir: Path, **results: Any) -> bool:
    """Whether `summary.json` in `run_dir` has these results: a run killed at its very end has yet to write them."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
    except (OSError, ValueError):
        return False
    return all(summary.get(name) == value for name, value in results.items())


def keep_earlier(run_dir: Path, names: Sequence[str]) -> None:
    """Renames what an earlier part of the run left under `names`: `.hydra` to `.hydra.1`, `train.log` to `train.1.log`.

    All get the same number, the first that none of them has yet.
    """
    paths = [run_dir / name for name in names]
    for number in count(1):
        kept = [path.with_name(f"{path.stem}.{number}{path.suffix}") for path in paths]
        if not any(path.exists() for path in kept):
            break
    for path, target in zip(paths, kept, strict=True):
        if path.exists():
            path.rename(target)


def command_to_continue(arguments: Sequence[str], run_dir: Path, *, by_name: bool) -> str:
    """The command line `arguments`, its program first, with the `resume` that continues the run in `run_dir`.

    `by_name`: the directory follows from `run.name`, which `arguments` leave as it was.
    """
    program, *words = arguments
    resume = AUTO if by_name else _quoted(min(str(run_dir), os.path.relpath(run_dir), key=len))
    kept = [word for word in words if word.lstrip("+").partition("=")[0] != "resume"]
    interpreter = ["python"] if program.endswith(".py") else []
    return shlex.join([*interpreter, program, *kept, f"resume={resume}"])


def _quoted(value: str) -> str:
    """`value` as Hydra reads it back from a command line."""
    return value if re.fullmatch(r"[\w./+@%:-]+", value) else "'" + value.replace("'", r"\'") + "'"


def _differs(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether `key` is another; not where only one kind of data has it, and it is as nobody set it."""
    if key in before and key in after:
        return bool(before[key] != after[key])
    value = before[key] if key in before else after[key]
    group, _, name = key.partition(".")
    return not (group == "data" and any(value == usual for usual in _usual_of_data(name)))


def _usual_of_data(name: str) -> list[Any]:
    """The values that kinds of data give the key `name` where nobody sets it."""
    return [field.default for kind in DATA_KINDS.values() for field in fields(kind) if field.name == name]


def _is_scheduling(key: str) -> bool:
    return key in _SCHEDULING_KEYS or key.partition(".")[0] in _SCHEDULING_GROUPS


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    return value if isinstance(value, str) else json.dumps(value)
