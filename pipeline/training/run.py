"""`train(cfg, run_dir)`: from a configuration to a trained model, in the order things happen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.build import Pipeline, build_pipeline
from pipeline.config import Amp, ConfigError, ImageDtype, TrainConfig
from pipeline.machine import num_cores
from pipeline.main_script import refuse_while_importing
from pipeline.model import build_model
from pipeline.sources import Source
from pipeline.training.compute import Compute, choose_device
from pipeline.training.curves import draw_curves
from pipeline.training.environment import plain
from pipeline.training.fit import Fit
from pipeline.training.loop import Learner
from pipeline.training.metrics import RunRecord
from pipeline.training.optim import build_optimizer
from pipeline.training.progress import closing_lines
from pipeline.training.resume import checkpoint_to_continue
from pipeline.training.schedule import build_schedule
from pipeline.training.state import nothing_left, read_state
from pipeline.training.stopping import StopSignals


def train(cfg: TrainConfig, run_dir: Path) -> float:
    """Trains `cfg.model` on `cfg.data` and gives the last validation top-1, in [0, 1].

    Writes `metrics.csv`, `curves.png`, `checkpoints/last.pt`, `checkpoints/best.pt` and, however it ends,
    `summary.json` into `run_dir`. With `cfg.resume` it goes on from `checkpoints/last.pt`, to the same weights and
    metrics as a run that was never interrupted. Sets torch's seed and number of threads for the whole process, and
    handles SIGINT and SIGTERM while it runs.

    Raises:
        ConfigError: a setting is wrong, or wrong for this data or for the run that is to be continued.
        RuntimeError: the loss is no longer finite, or no sample could be read.
        Stopped: Ctrl-C or SIGTERM ended it early, a KeyboardInterrupt.
    """
    refuse_while_importing("train")
    last = checkpoint_to_continue(cfg, run_dir)
    earlier = read_state(last, cfg) if last is not None else None
    if earlier is not None and (line := nothing_left(earlier, cfg, run_dir)) is not None:
        sys.stderr.write(line + "\n")
        return float(earlier["top1"])
    with (
        StopSignals() as stop,
        RunRecord(
            run_dir, config=plain(cfg), write_csv=cfg.logger.csv, earlier=earlier["record"] if earlier else None
        ) as record,
    ):
        _train(cfg, run_dir, record, stop, earlier)
        if cfg.logger.plot:
            draw_curves(record.rows, run_dir / "curves.png")
    sys.stdout.write(closing_lines(record.summary, run_dir))
    return float(record.summary["eval_top1"])


def _train(
    cfg: TrainConfig, run_dir: Path, record: RunRecord, stop: StopSignals, earlier: dict[str, Any] | None
) -> None:
    """Builds everything, begins or goes on from `earlier`, and runs the epochs."""
    torch.manual_seed(cfg.run.seed)
    torch.set_num_threads(_num_threads(cfg, earlier))
    compute = build_compute(cfg)
    with (
        build_pipeline(cfg, split="train", device=compute.device, num_epochs=cfg.schedule.epochs) as train_pipeline,
        build_pipeline(cfg, split="val", device=compute.device) as val_pipeline,
    ):
        num_classes = _num_classes(cfg, train_pipeline, val_pipeline)
        check_last_batch(cfg, num_samples=train_pipeline.num_samples)
        sys.stderr.write(_opening_line(cfg, compute, num_classes, train_pipeline, val_pipeline) + "\n")
        fit = Fit(
            cfg=cfg,
            learner=build_learner(cfg, compute, num_classes=num_classes, steps_per_epoch=len(train_pipeline)),
            train_pipeline=train_pipeline,
            val_pipeline=val_pipeline,
            record=record,
            stop=stop,
            run_dir=run_dir,
        )
        if earlier is not None:
            fit.go_on(earlier)
            sys.stderr.write(f"continuing {run_dir} after step {earlier['step']}, in epoch {earlier['epoch']}\n")
        elif cfg.resume is not None:
            sys.stderr.write(f"{run_dir} has no checkpoint yet: the run begins\n")
        stop.defer()
        fit.run()
        stats = train_pipeline.stats()
        record.cache_hit_pct, record.cache_bound_pct = stats.get("cache_hit_pct"), stats.get("cache_bound_pct")
        record.cache_advice = train_pipeline.cache_advice()


def _num_threads(cfg: TrainConfig, earlier: dict[str, Any] | None) -> int:
    if cfg.run.num_threads is None and earlier is not None:
        return int(earlier["num_threads"])  # the workers may be others now, and the sums have to stay the same
    return choose_num_threads(cfg)


def choose_num_threads(cfg: TrainConfig) -> int:
    """Torch's threads in a new run: `run.num_threads`, or the cores that the loader's workers leave, at least 1."""
    if cfg.run.num_threads is not None:
        return cfg.run.num_threads
    cores = num_cores()
    return max(1, cores - cfg.loader.resolved_num_workers(cores))


def build_compute(cfg: TrainConfig) -> Compute:
    """Where and in which precision `cfg` trains. ConfigError where that cannot be."""
    is_amp = cfg.optim.amp is Amp.bf16
    if cfg.prefetch.dtype is not ImageDtype.float32 and not is_amp:
        raise ConfigError(
            f"prefetch.dtype={cfg.prefetch.dtype} needs optim.amp=bf16: without it the weights are float32"
        )
    return Compute(
        device=choose_device(cfg.run.device),
        amp_dtype=torch.bfloat16 if is_amp else None,
        channels_last=cfg.optim.channels_last,
    )


def _num_classes(cfg: TrainConfig, train_pipeline: Pipeline, val_pipeline: Pipeline) -> int:
    """`model.num_classes`, or as many as the data has; refuses data that such a model cannot learn from."""
    source, val_source = train_pipeline.source, val_pipeline.source
    if len(val_pipeline) == 0:
        raise ConfigError(f"the validation split is empty; raise data.val_fraction, which is {cfg.data.val_fraction}")
    if len(train_pipeline) == 0:
        raise ConfigError(
            f"loader.drop_last leaves no batch: loader.batch_size is {cfg.loader.batch_size}, "
            f"the training split has {train_pipeline.num_samples} samples; lower loader.batch_size"
        )
    if list(source.class_names) != list(val_source.class_names):
        raise ConfigError(
            "the training and validation splits have other classes: "
            f"{_sample_of(source.class_names)} and {_sample_of(val_source.class_names)}"
        )
    return num_classes_of(cfg, source, val_source)


def num_classes_of(cfg: TrainConfig, *sources: Source) -> int:
    """`model.num_classes`, or as many as `sources` have. ConfigError where the labels are no classes, or more."""
    labels = sources[0].labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"train.py learns one class per image, and the labels are {labels.dtype} of shape "
            f"{labels.shape}; iterate a Pipeline in your own loop for other targets"
        )
    least = max(len(sources[0].class_names), 1 + max(int(source.labels.max()) for source in sources))
    num_classes = cfg.model.num_classes if cfg.model.num_classes is not None else least
    if num_classes < least:
        raise ConfigError(f"model.num_classes must be at least the data's {least} classes, got {num_classes}")
    return num_classes


def build_learner(cfg: TrainConfig, compute: Compute, *, num_classes: int, steps_per_epoch: int) -> Learner:
    """A new model, drawn from torch's generator, with its optimizer and schedule."""
    model = build_model(cfg.model, num_classes).to(compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]  # torch's stub asks for four dimensions
    optimizer = build_optimizer(cfg.optim, model, global_batch_size=cfg.loader.batch_size)
    return Learner(
        model=model,
        optimizer=optimizer,
        scheduler=build_schedule(cfg.schedule, optimizer, steps_per_epoch=steps_per_epoch),
        compute=compute,
        label_smoothing=cfg.optim.label_smoothing,
        grad_clip=cfg.optim.grad_clip,
    )


def check_last_batch(cfg: TrainConfig, *, num_samples: int) -> None:
    """Refuses a last batch of one small image: after five halvings batch normalisation has one value a channel."""
    is_alone = num_samples % cfg.loader.batch_size == 1 and not cfg.loader.drop_last
    if is_alone and cfg.transforms.size <= 32:
        raise ConfigError(
            f"the last batch of an epoch would be 1 sample ({num_samples} with loader.batch_size="
            f"{cfg.loader.batch_size}), too little for batch normalisation at transforms.size={cfg.transforms.size}; "
            "set loader.drop_last=true, or another loader.batch_size"
        )


def _opening_line(
    cfg: TrainConfig, compute: Compute, num_classes: int, train_pipeline: Pipeline, val_pipeline: Pipeline
) -> str:
    """What is trained on what; and which classes validation has and training lacks, for no run can learn them."""
    line = (
        f"{train_pipeline.num_samples:,} training and {val_pipeline.num_samples:,} validation images, "
        f"{_sample_of(train_pipeline.source.class_names or range(num_classes))} classes; "
        f"{cfg.model.name} on {compute.device}, {train_pipeline.workers}"
    )
    if train_pipeline.keeps is not None:
        line += f", a cache of {train_pipeline.keeps}"
    unseen = np.setdiff1d(val_pipeline.source.labels, train_pipeline.source.labels)
    if len(unseen):
        names = train_pipeline.source.class_names or [str(number) for number in range(num_classes)]
        line += f"\nwarning: training has no image of {_sample_of([names[number] for number in unseen])}"
    return line


def _sample_of(names: Any) -> str:
    shown = ", ".join(str(name) for name in list(names)[:5])
    return f"{len(names)} ({shown}, ...)" if len(names) > 5 else f"{len(names)} ({shown})"
