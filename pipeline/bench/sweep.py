"""A multirun of `bench.py`: what Hydra composes becomes trials, and their objectives go back to Hydra's sweeper."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import zlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from pipeline.bench.result import MAY_CHANGE, check_objective
from pipeline.bench.rounds import Trial, failed, measure_in_rounds, save_result
from pipeline.bench.sweep_file import SweepFile
from pipeline.config import BenchConfig, ConfigError
from pipeline.config.bench import AUTO
from pipeline.config.compose import to_config


def launch(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first_number: int
) -> list[JobReturn]:
    """Measure the jobs of one call of the sweeper; an adaptive sweeper calls again with what it wants to try next.

    Trials that `sweep.resume` finds completed are not measured again. SystemExit with 130 on Ctrl-C.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    directory = Path(config.hydra.sweep.dir)
    file = _open_file(config, directory, first_number)
    jobs = [_compose(context, config, overrides) for overrides in job_overrides]
    is_resumed = config.sweep.resume is not None
    numbers = _number(file, jobs, directory, is_resumed=is_resumed)
    file.write(directory)
    begun = (_begin(file, *job, directory, is_resumed=is_resumed) for job in zip(numbers, jobs, strict=True))
    _measure([trial for trial in begun if trial is not None], file, directory)
    return [_hand_over(context, job, number, directory) for job, number in zip(jobs, numbers, strict=True)]


def describe_jobs(config: DictConfig, directory: Path) -> None:
    """Write `sweep.json` for jobs that another launcher ran, from what Hydra left in their directories."""
    file = _new_file(config)
    found = (path for path in directory.glob("*/.hydra") if path.parent.name.isdigit())
    for path in sorted(found, key=lambda path: int(path.parent.name)):
        overrides = [str(line) for line in OmegaConf.load(path / "overrides.yaml")]
        composed = OmegaConf.load(path / "config.yaml")
        assert isinstance(composed, DictConfig)
        file.add(_of_trial(overrides), _plain(composed))
    file.write(directory)


def _new_file(config: DictConfig) -> SweepFile:
    return SweepFile(
        command=shlex.join(["python", *sys.argv]),
        began=datetime.now().isoformat(timespec="seconds"),
        sweep=_plain(config.sweep),
    )


def _open_file(config: DictConfig, directory: Path, first_number: int) -> SweepFile:
    if config.sweep.resume is None and first_number == 0:
        return _new_file(config)
    file = SweepFile.read(directory)
    file.sweep = _plain(config.sweep)
    return file


def _compose(context: HydraContext, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    job: DictConfig = context.config_loader.load_sweep_config(config, list(overrides))
    return job


def _number(file: SweepFile, jobs: list[DictConfig], directory: Path, *, is_resumed: bool) -> list[int]:
    """Each job's number in `file`; new ones are added."""
    numbers: list[int] = []
    for job in jobs:
        overrides, composed = _overrides(job), _composed(job)
        found = file.find(overrides, set(numbers)) if is_resumed else None
        if found is not None:
            file.check_unchanged(found, composed, directory)
        elif is_resumed:
            file.check_base(composed, directory)
        numbers.append(file.add(overrides, composed) if found is None else found)
    return numbers


def _overrides(job: DictConfig) -> list[str]:
    return _of_trial(filter_overrides(list(job.hydra.overrides.task)))


def _of_trial(overrides: Sequence[str]) -> list[str]:
    """Without those that say how a sweep runs; `sweep=NAME` stays, as it may set keys of its trials."""
    return [line for line in overrides if not line.startswith(MAY_CHANGE)]


def _composed(job: DictConfig) -> dict[str, Any]:
    task = job.copy()
    with open_dict(task):
        del task["hydra"]
    return _plain(task)


def _plain(node: DictConfig) -> dict[str, Any]:
    """Through JSON and back, so that it equals what a file gives."""
    container = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    plain: dict[str, Any] = json.loads(json.dumps(container, default=str))
    return plain


def _begin(file: SweepFile, number: int, job: DictConfig, directory: Path, *, is_resumed: bool) -> Trial | None:
    """The trial at its beginning; None if there is nothing to measure: it is done, or its configuration is wrong."""
    trial_dir = directory / str(number)
    earlier = _measured_before(trial_dir) if is_resumed else []
    repeats = file.configs[number]["bench"]["repeats"]
    if repeats != AUTO and len(earlier) >= int(repeats):
        return None
    try:
        config = to_config(job, cwd=job.hydra.runtime.cwd)
        assert isinstance(config, BenchConfig)
        check_objective(config)
    except ConfigError as error:
        save_result(trial_dir, failed(f"ConfigError: {error}", file.configs[number]))
        return None
    trial = Trial(
        number=number, label=file.label(number), config=config, composed=file.configs[number], directory=trial_dir
    )
    trial.rounds = earlier
    return trial


def _measured_before(trial_dir: Path) -> list[dict[str, Any]]:
    """The rounds of a trial in earlier sittings; none of one that failed: it begins again."""
    path = trial_dir / "result.json"
    if not path.exists() or json.loads(path.read_text())["status"] != "completed":
        return []
    rounds = [json.loads(path.read_text()) for path in (trial_dir / "rounds").glob("*.json")]
    return [measured for measured in rounds if measured["status"] == "completed"]


def _measure(trials: list[Trial], file: SweepFile, directory: Path) -> None:
    """Run the rounds under a progress bar, or a line a process where there is no terminal."""
    if not trials:
        return
    first = file.baseline()
    rounds = [trial.config.bench.repeats for trial in trials]
    left = [
        repeats if repeats == AUTO else int(repeats) - len(trial.rounds)
        for repeats, trial in zip(rounds, trials, strict=True)
    ]
    total = None if AUTO in left else sum(int(number) for number in left)
    if first is None:
        sys.stderr.write(f"sweep.baseline={file.sweep['baseline']} is none of these trials, so far\n")
    sitting = f"{datetime.now().isoformat(timespec='milliseconds')}/{os.getpid()}"
    sys.stderr.write(f"{len(trials)} trials in rounds of fresh processes, in {directory}\n")
    with tqdm(total=total, unit="process", disable=not sys.stderr.isatty()) as bar:

        def show(line: str) -> None:
            bar.update()
            bar.write(line, file=sys.stderr)

        try:
            measure_in_rounds(
                trials,
                sitting=sitting,
                seed=zlib.crc32(sitting.encode()),  # the orders of another sitting are others
                baseline=next((trial for trial in trials if trial.number == first), None),
                show=show,
            )
        except KeyboardInterrupt:
            _interrupted(file, directory)


def _interrupted(file: SweepFile, directory: Path) -> NoReturn:
    resume = [] if "sweep.resume=" in file.command else [f"sweep.resume={directory}"]
    command = " ".join([file.command, *map(shlex.quote, resume)])
    sys.stderr.write(f"interrupted; what is measured is kept; continue with: {command}\n")
    raise SystemExit(130)


def _hand_over(context: HydraContext, job: DictConfig, number: int, directory: Path) -> JobReturn:
    """Let Hydra do for a finished trial what it does for a job: its directory, its callbacks, its return value."""
    result: dict[str, Any] = json.loads((directory / str(number) / "result.json").read_text())
    name = job.bench.objective
    # Hydra 1.3 leaves out on_multirun_end, and with it the report, if a job raises: a failed one is NaN.
    objective = float(result[name]) if result["status"] == "completed" and result.get(name) is not None else math.nan
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
    return run_job(
        hydra_context=context,
        task_function=lambda _: objective,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        configure_logging=False,
    )
