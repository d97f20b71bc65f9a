"""The door of `train.py` and `bench.py`: Hydra outside, checked dataclasses inside.

A wrong configuration ends here, before anything is written, with one line on stderr and exit code 2; and before torch
is imported, unless it takes the checkpoint of a run that is to be continued to tell.
`HYDRA_FULL_ERROR=1` shows where it comes from.
"""

import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline._compat import HYDRA_MAIN, lazy_help_allowed
from pipeline.cli_lines import NO_ROOM, beaten_debug_keys, conf_dir, left_behind, left_by_kill, no_room, wrong_option
from pipeline.config import BenchConfig, ConfigError, Debug, TrainConfig
from pipeline.config.compose import check_flags, to_config
from pipeline.config.messages import one_line
from pipeline.launched import LostRankError, is_first_rank, is_launched
from pipeline.quarantine import TooManyBadError
from pipeline.training.resume import LAST, checkpoint_to_continue, has_reported, keep_earlier
from pipeline.training.stopping import RunError, Stopped
from pipeline.training.sweep_table import print_sweep, record_failure

log = logging.getLogger(__name__)

# What a program does with a checked configuration and its run directory; returns the number that sweeps optimise.
Task = Callable[[Any, Path], float]

_WRITES_NOTHING = ["hydra.output_subdir=null", f"hydra.job_logging.handlers.file.filename={os.devnull}"]
"""What Hydra is told at every rank but the first: all have one directory."""

# What the user asked for; read before this file sets it for Hydra.
_SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"


class Door(Callback):
    """Hydra calls it around runs; conf/train.yaml and conf/bench.yaml name it as `hydra/callbacks: headrace`."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a wrong configuration before Hydra writes into the run's directory."""
        try:
            cfg = to_config(config, cwd=config.hydra.runtime.cwd)
            check_flags(config)
            _check_launcher(cfg)
            if not isinstance(cfg, BenchConfig):
                _begin_or_continue(cfg, config.hydra)
                _tell_beaten(cfg, config.hydra)
            elif cfg.sweep.resume is not None:
                raise ConfigError(f"sweep.resume={cfg.sweep.resume} continues a sweep; add -m and what it sweeps over")
        except (ConfigError, OSError) as error:  # Hydra would turn an OSError into a warning, and overwrite the run
            _refuse(error)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse to continue a sweep of runs, and to write over one."""
        if is_launched():
            _refuse(ConfigError("torchrun starts the ranks of one run, not of a sweep; use -m with dist.nproc instead"))
        if config.resume is not None:
            _refuse(ConfigError(f"resume={config.resume} continues one run, not a sweep; leave out -m, or resume"))
        if "bench" in config:
            _check_sweep_dir(config)
        earlier = next(Path(config.hydra.sweep.dir).rglob(str(LAST)), None)
        if earlier is not None:
            _refuse(ConfigError(f"{config.hydra.sweep.dir} holds a sweep already, with {earlier}; change run.name"))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the sweep's table; the exit code is 1 if a job failed."""
        num_failed = _report(config) if "bench" in config else print_sweep(Path(config.hydra.sweep.dir))
        if num_failed:
            raise SystemExit(1)


def hydra_main(program: str) -> Callable[[Task], Callable[[], None]]:
    """`@hydra.main` for a task that takes dataclasses: `program` is the name of a primary file in conf/.

    In a sweep a failing task is recorded as failed and the next one runs; otherwise its exception comes through.
    """

    def decorate(task: Task) -> Callable[[], None]:
        started = False

        def job(composed: DictConfig) -> float:
            nonlocal started
            started = True
            return _run_task(task, composed, program)

        def main() -> None:
            if not is_first_rank():
                sys.argv += _WRITES_NOTHING
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors in a form of its own and exits
            hydra_program = hydra.main(config_path=str(conf_dir()), config_name=program, **HYDRA_MAIN)(job)
            try:
                with lazy_help_allowed():
                    hydra_program()
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                if started:
                    raise
                _refuse(wrong_option(error) or error)
            except OSError as error:
                if started or _SHOW_ALL or error.errno not in NO_ROOM:
                    raise
                sys.stderr.write(no_room(error) + "\n")
                sys.exit(1)

        return main

    return decorate


def train() -> None:
    """The console script `headrace-train`: train.py where there is no checkout."""

    @hydra_main("train")
    def main(cfg: TrainConfig, run_dir: Path) -> float:
        from pipeline.training.run import train

        return train(cfg, run_dir)

    main()


def bench() -> None:
    """The console script `headrace-bench`: bench.py where there is no checkout."""

    @hydra_main("bench")
    def main(cfg: BenchConfig, run_dir: Path) -> float:
        from pipeline.bench.trial import run_trial

        return run_trial(cfg, run_dir)

    main()


def _run_task(task: Task, composed: DictConfig, program: str) -> float:
    """The task's result. Exits with 1 after a run of debug=overfit whose answer is no."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    try:
        cfg = to_config(composed, cwd=hydra_config.runtime.cwd)
        result = task(cfg, run_dir)
    except Stopped as stopped:
        if is_first_rank():
            sys.stderr.write(f"{stopped}: {left_behind(stopped, composed, run_dir)}\n")
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted at once: {left_by_kill(composed, run_dir)}\n")
        sys.exit(130)
    except LostRankError as lost:
        if is_first_rank():
            record_failure(run_dir, lost, program=program)
        sys.stderr.write(f"{lost}\n")
        sys.exit(1)
    except Exception as error:
        if is_first_rank():
            with suppress(OSError):  # a full disk is often why the run failed: its own error is the one to see
                record_failure(run_dir, error, program=program)
        _tell_launcher(error)
        wrong_config = isinstance(error, ConfigError)
        if in_sweep:
            log.error(error if wrong_config else traceback.format_exc())
            return math.nan  # Hydra 1.3 skips on_multirun_end, and so the table, if a job raises
        if wrong_config:
            _refuse(error)
        if isinstance(error, OSError) and error.errno in NO_ROOM and not _SHOW_ALL:
            sys.stderr.write(no_room(error) + "\n")
            sys.exit(1)
        of_a_sample = [note for note in getattr(error, "__notes__", ()) if "sample id" in note]
        if isinstance(error, RunError | TooManyBadError) and not _SHOW_ALL:
            sys.stderr.write(f"{error}\n")
            sys.exit(1)
        if of_a_sample and not _SHOW_ALL:  # the data is at fault and no line of code: say which file
            sys.stderr.write(f"{type(error).__name__}: {error}\n  {of_a_sample[0]}\n")
            sys.exit(1)
        raise
    if cfg.debug is Debug.overfit and not in_sweep and has_reported(run_dir, did_overfit=False):
        sys.exit(1)
    return result


def _tell_beaten(cfg: TrainConfig, hydra_config: DictConfig) -> None:
    """Say which keys of a debug run the command line has set otherwise: it may be no debug run any more."""
    if cfg.debug is not None and is_first_rank():
        beaten = beaten_debug_keys(cfg.debug, list(hydra_config.overrides.task))
        if beaten:
            sys.stderr.write(f"debug={cfg.debug} has values of its own for what your command line sets: {beaten}\n")


def _check_launcher(cfg: TrainConfig) -> None:
    """Refuse what cannot be under torchrun, before each of its processes does it."""
    if not is_launched():
        return
    if isinstance(cfg, BenchConfig):
        raise ConfigError("bench.py measures one process; start it without torchrun")
    if cfg.dist.nproc > 1:
        raise ConfigError(f"torchrun has started the ranks already; leave out dist.nproc={cfg.dist.nproc}")
    if cfg.run.name is None and cfg.resume is None:
        raise ConfigError("ranks need one directory, and each would take one by its own clock; add run.name=NAME")


def _tell_launcher(error: Exception) -> None:
    """Let torchrun's own report name the cause and not an exit code."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # its environment has torch

        get_error_handler().record_exception(error)


def _begin_or_continue(cfg: TrainConfig, hydra_config: DictConfig) -> None:
    """Before anything is written: refuse what cannot be, end here if all is done, and keep the earlier part's files."""
    run_dir = Path(hydra_config.runtime.cwd) / hydra_config.run.dir
    last = checkpoint_to_continue(cfg, run_dir)
    if last is not None:
        from pipeline.training.state import nothing_left, read_state  # needs torch, as the run will

        line = nothing_left(read_state(last, cfg, mmap=True), cfg, run_dir)
        if line is not None:
            sys.stderr.write(line + "\n")
            sys.exit(0)
    if (cfg.resume is not None or last is not None) and is_first_rank():
        keep_earlier(run_dir, [name for name in (hydra_config.output_subdir, f"{hydra_config.job.name}.log") if name])


def _report(config: DictConfig) -> int:
    """Write and print the report of a benchmark's sweep, and return how many trials failed."""
    from pipeline.bench.report import write_report  # not above: train.py needs none of it
    from pipeline.bench.sweep import describe_jobs
    from pipeline.bench.sweep_file import NAME

    sweep_dir = Path(config.hydra.sweep.dir)
    try:
        if not (sweep_dir / NAME).exists():
            describe_jobs(config, sweep_dir)
        return write_report([sweep_dir], sweep_dir, terminal=sys.stdout)
    except Exception as error:  # Hydra would make a warning of it, and an exit code of 0
        traceback.print_exc()
        raise SystemExit(1) from error


def _check_sweep_dir(config: DictConfig) -> None:
    """Refuse to write over a benchmark's sweep, and to go on with what is none."""
    from pipeline.bench.sweep_file import NAME, SweepFile

    sweep_dir, launcher = Path(config.hydra.sweep.dir), str(config.hydra.launcher._target_)
    try:
        if config.sweep.resume is not None:
            if not launcher.startswith("hydra_plugins.headrace."):
                raise ConfigError(
                    f"sweep.resume is for hydra/launcher=headrace, got {launcher}; leave the launcher out"
                )
            SweepFile.read(sweep_dir)
        elif (sweep_dir / NAME).exists():
            raise ConfigError(f"{sweep_dir} holds a sweep already; change run.name, or use sweep.resume={sweep_dir}")
    except ConfigError as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    if _SHOW_ALL:
        traceback.print_exception(error)
    line = str(error) if isinstance(error, ConfigError) else one_line(error)
    sys.stderr.write(line + "\n")
    sys.exit(2)
