"""`train(cfg, run_dir)`: from a configuration to a trained model, in the order things happen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.build import Pipeline, build_pipeline
from pipeline.config import ConfigError, TrainConfig
from pipeline.dist import RanksInterrupted, World, join_world, run_ranks
from pipeline.launched import end_with_agent
from pipeline.machine import num_cores
from pipeline.main_script import refuse_while_importing
from pipeline.training.bad import open_quarantine
from pipeline.training.build import build_compute, build_learner, choose_num_threads
from pipeline.training.checks import check_last_batch, num_classes_for, sample_of, warnings_of_size
from pipeline.training.compute import Compute, may_use_cuda
from pipeline.training.curves import draw_curves
from pipeline.training.debug import DebugRecord
from pipeline.training.environment import plain
from pipeline.training.evaluate_only import evaluate_weights
from pipeline.training.fit import Fit
from pipeline.training.loggers import Loggers, choose_loggers
from pipeline.training.metrics import RunRecord
from pipeline.training.progress import closing_lines
from pipeline.training.ranks import check_agreement, logging_of_run, part_of
from pipeline.training.resume import checkpoint_to_continue
from pipeline.training.samples_sheet import SamplesSheet
from pipeline.training.sizes import (
    key_of_size_named,
    last_of_size,
    longest_size,
    size_at,
    sizes_in_words,
    training_sizes,
    with_size,
)
from pipeline.training.stall_watch import StallWatch
from pipeline.training.state import first_step_after, nothing_left, read_state
from pipeline.training.stopping import Stopped, StopSignals
from pipeline.training.tuning import apply_tuned, tune
from pipeline.training.weights import put_weights, read_weights


def train(cfg: TrainConfig, run_dir: Path) -> float:
    """Trains `cfg.model` on `cfg.data` and gives the last validation top-1, in [0, 1].

    Writes `metrics.csv`, `curves.png`, `checkpoints/last.pt`, `checkpoints/best.pt`, what else `cfg.logger` and
    `cfg.report` ask for and, however it ends, `summary.json` into `run_dir`. With `cfg.resume` it goes on from
    `checkpoints/last.pt`, to the same weights and metrics as a run that was never interrupted. Sets torch's seed and
    number of threads for the whole process, and handles SIGINT and SIGTERM while it runs. With `cfg.dist.nproc` above 1
    it starts so many processes and waits for them; in a process that torchrun started it is one rank of its world, and
    the first rank does the writing. Imports the modules that `cfg.logger.extra` names.

    Raises:
        ConfigError: a setting is wrong, or wrong for this data or for the run that is to be continued.
        RunError: the loss is no longer finite, or a checkpoint could not be saved.
        RuntimeError: no sample could be read, or a rank was killed.
        LostRankError: another rank that torchrun started has ended.
        Stopped: Ctrl-C or SIGTERM ended it early, a KeyboardInterrupt.
    """
    refuse_while_importing("train")
    if cfg.dist.nproc == 1:
        return train_rank(cfg, run_dir)
    try:
        return run_ranks(train_rank, cfg, run_dir, nproc=cfg.dist.nproc, logging_config=logging_of_run())
    except RanksInterrupted as asked:
        raise Stopped(asked.signal_number) from None


def train_rank(cfg: TrainConfig, run_dir: Path) -> float:
    """`train` as this process's part in the world that its launcher made, or alone."""
    end_with_agent()
    cfg = replace(cfg, transforms=cfg.transforms.resolved())  # so that no other machine continues with other pixels
    with StopSignals() as stop, join_world(on_cuda=may_use_cuda(cfg.run.device)) as world:
        if world.size > 1:
            stop.join(world)
        last = checkpoint_to_continue(cfg, run_dir)
        earlier = read_state(last, cfg) if last is not None else None
        check_agreement(world, cfg, run_dir, step=None if earlier is None else earlier["step"])
        if earlier is not None and (line := nothing_left(earlier, cfg, run_dir)) is not None:
            _say(world, line)
            return float(earlier["top1"])
        if cfg.tune:
            cfg = _tuned(cfg, run_dir, world, is_new=earlier is None)
        part = part_of(cfg, world, earlier)
        loggers = Loggers(choose_loggers(cfg.logger)) if world.is_first else Loggers()
        with (
            _determinism(cfg.run.deterministic),
            _record(
                cfg,
                run_dir,
                config=plain(cfg),
                writes=world.is_first,
                loggers=loggers,
                earlier=earlier["record"] if earlier else None,
            ) as record,
        ):
            torch.set_num_threads(_num_threads(cfg, earlier, world))
            if cfg.run.evaluate_only:
                record.evaluation = evaluate_weights(cfg, run_dir, world, stop)
            else:
                _train(cfg, part, run_dir, record, stop, earlier, world)
            if cfg.logger.plot and world.is_first and record.rows:
                draw_curves(record.rows, run_dir / "curves.png")
        if world.is_first:
            stalls = [] if record.stalls is None else record.stalls.lines()
            sys.stdout.write(closing_lines(record.summary, run_dir, stalls=stalls))
            if isinstance(record, DebugRecord):
                sys.stdout.write(record.closing_line() + "\n")
        return float(record.summary["eval_top1"])


def _record(cfg: TrainConfig, run_dir: Path, **options: Any) -> RunRecord:
    return RunRecord(run_dir, **options) if cfg.debug is None else DebugRecord(run_dir, debug=cfg.debug, **options)


def _train(
    cfg: TrainConfig,
    part: TrainConfig,
    run_dir: Path,
    record: RunRecord,
    stop: StopSignals,
    earlier: dict[str, Any] | None,
    world: World,
) -> None:
    """Builds everything, begins or goes on from `earlier`, and runs the epochs; `part` is this rank's part of `cfg`."""
    record.start_loggers(first_step=1 if earlier is None else first_step_after(earlier))
    for warning in warnings_of_size(cfg, num_local_ranks=world.local_size, num_cores=num_cores()):
        _say(world, warning)
    torch.manual_seed(cfg.run.seed)
    compute = build_compute(cfg, world)
    build = partial(
        build_pipeline,
        device=compute.device,
        rank=world.rank,
        world_size=world.size,
        quarantine=open_quarantine(cfg, run_dir, world),
    )
    # The epoch that the earlier part was in, or had just ended: its state stands for images of that size.
    epoch = 1 if earlier is None else int(earlier["epoch"])
    sized = with_size(part, size_at(cfg, epoch))
    with key_of_size_named(cfg, sized.transforms.size):
        built = build(sized, split="train", num_epochs=last_of_size(cfg, epoch))
    with built as train_pipeline, build(part, split="val") as val_pipeline:
        num_classes = num_classes_for(cfg, train_pipeline, val_pipeline)
        if cfg.schedule.sizes is not None:
            with key_of_size_named(cfg, max(training_sizes(cfg))):
                train_pipeline.check_size(max(training_sizes(cfg)))
        check_last_batch(part, num_samples=train_pipeline.num_samples, world_size=world.size)
        _say(world, _opening_line(cfg, compute, num_classes, train_pipeline, val_pipeline, world))
        fit = Fit(
            cfg=cfg,
            learner=build_learner(
                part, compute, num_classes=num_classes, steps_per_epoch=len(train_pipeline), world=world
            ),
            train_pipeline=train_pipeline,
            val_pipeline=val_pipeline,
            record=record,
            stop=stop,
            run_dir=run_dir,
            stalls=StallWatch(train_pipeline, device=compute.device, world=world),
            sheet=_sheet(sized, run_dir, train_pipeline, earlier) if world.is_first else None,
        )
        if earlier is not None:
            fit.go_on(earlier)
            _say(
                world,
                f"continuing {run_dir} after step {earlier['step']}, in epoch {earlier['epoch']}{_shares(cfg, part)}",
            )
        elif cfg.init_from is not None:
            put_weights(fit.learner.model, read_weights(Path(cfg.init_from)), path=Path(cfg.init_from))
        if earlier is None and cfg.resume is not None:
            _say(world, f"{run_dir} has no checkpoint yet: the run begins")
        stop.defer()
        try:
            fit.run()
        except Stopped:  # all ranks at the same step
            _look_back(record, fit, part, may_read=False)  # who sent the signal may not wait for a slow disk
            raise
        _look_back(record, fit, part, may_read=True)


def _look_back(record: RunRecord, fit: Fit, part: TrainConfig, *, may_read: bool) -> None:
    stats = fit.train_pipeline.stats()
    record.cache_hit_pct, record.cache_bound_pct = stats.get("cache_hit_pct"), stats.get("cache_bound_pct")
    record.cache_advice = fit.train_pipeline.cache_advice()
    record.stalls = fit.stalls.report(part, may_read=may_read)


def _sheet(
    cfg: TrainConfig, run_dir: Path, train_pipeline: Pipeline, earlier: dict[str, Any] | None
) -> SamplesSheet | None:
    """The contact sheet that is still to be made; a run that is continued keeps the one it has."""
    path = run_dir / "samples.png"
    if not cfg.report.samples or (earlier is not None and path.exists()):
        return None
    mixes = bool(cfg.optim.mixup or cfg.optim.cutmix)
    names = train_pipeline.source.class_names
    return SamplesSheet(path, transforms=cfg.transforms, class_names=names, mixes=mixes)


def _tuned(cfg: TrainConfig, run_dir: Path, world: World, *, is_new: bool) -> TrainConfig:
    if world.size > 1:
        raise ConfigError("tune=true is for one process; tune without torchrun, then give what it says")
    if not is_new:
        return apply_tuned(cfg, run_dir)
    tuned = tune(with_size(cfg, longest_size(cfg)), run_dir, lambda line: _say(world, line))
    return replace(tuned, transforms=cfg.transforms, schedule=cfg.schedule)


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Has torch refuse, or not, what is not deterministic; afterwards it is as it was."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or torch refuses cuBLAS
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _num_threads(cfg: TrainConfig, earlier: dict[str, Any] | None, world: World) -> int:
    if cfg.run.num_threads is None and earlier is not None and len(earlier["rng"]) == world.size:
        return int(earlier["num_threads"])  # the workers may be others now, and the sums have to stay the same
    return choose_num_threads(cfg)


def _shares(cfg: TrainConfig, part: TrainConfig) -> str:
    """What another number of ranks makes of the global batch, which is kept."""
    if part.loader.batch_size == cfg.loader.batch_size:
        return ""
    return f"; a rank takes {part.loader.batch_size} samples of a step, as the run's global batch is kept"


def _say(world: World, line: str) -> None:
    if world.is_first:
        sys.stderr.write(line + "\n")


def _opening_line(
    cfg: TrainConfig, compute: Compute, num_classes: int, train_pipeline: Pipeline, val_pipeline: Pipeline, world: World
) -> str:
    """What is trained on what; and which classes validation has and training lacks, for no run can learn them."""
    line = (
        f"{train_pipeline.num_samples:,} training and {val_pipeline.num_samples:,} validation images, "
        f"{sample_of(train_pipeline.source.class_names or range(num_classes))} classes; "
        f"{cfg.model.name} on {compute.device}, {train_pipeline.workers}"
    )
    if cfg.schedule.sizes is not None:
        line += f", {sizes_in_words(cfg)}"
    if world.size > 1:
        line += f", in each of {world.size} ranks"
    if train_pipeline.keeps is not None:
        line += f", a cache of {train_pipeline.keeps}"
    if len(np.unique(train_pipeline.source.labels)) == 1:
        line += "\nwarning: all training images are of one class: whatever the model answers, it is right"
    unseen = np.setdiff1d(val_pipeline.source.labels, train_pipeline.source.labels)
    if len(unseen):
        names = train_pipeline.source.class_names or [str(number) for number in range(num_classes)]
        line += f"\nwarning: training has no image of {sample_of([names[number] for number in unseen])}"
    return line
