"""What a configuration and its data must be for each other, so that a model can learn from them."""

from __future__ import annotations

from typing import Any

from pipeline.build import Pipeline
from pipeline.config import ConfigError, TrainConfig
from pipeline.sources import Source
from pipeline.stalls.advice import MOST_WORKERS_A_CORE
from pipeline.training.sizes import training_sizes


def num_classes_for(cfg: TrainConfig, train_pipeline: Pipeline, val_pipeline: Pipeline) -> int:
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
            f"{sample_of(source.class_names)} and {sample_of(val_source.class_names)}"
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
    if any(int(source.labels.min()) < 0 for source in sources):
        raise ConfigError("train.py learns classes, numbered from 0 on, and the data has a label below 0; take it out")
    least = max(len(sources[0].class_names), 1 + max(int(source.labels.max()) for source in sources))
    num_classes = cfg.model.num_classes if cfg.model.num_classes is not None else least
    if num_classes < least:
        raise ConfigError(f"model.num_classes must be at least the data's {least} classes, got {num_classes}")
    return num_classes


def check_last_batch(cfg: TrainConfig, *, num_samples: int, world_size: int = 1) -> None:
    """Refuses a last batch of one small image: after five halvings batch normalisation has one value a channel.

    `loader.batch_size` is that of one of `world_size` ranks, who share the last batch as evenly as it goes, and so do
    the parts of each.
    """
    num_parts = cfg.optim.num_parts
    if num_parts > 1 and cfg.loader.batch_size < 2 * num_parts:
        raise ConfigError(
            f"optim.num_parts={num_parts} leaves parts of less than 2 samples of a rank's batch of "
            f"{cfg.loader.batch_size}, too little for batch normalisation; lower it"
        )
    smallest = training_sizes(cfg)[0]
    if cfg.loader.batch_size == 1 and smallest <= 32:
        raise ConfigError(
            f"loader.batch_size=1 is too little for batch normalisation at transforms.size={smallest}; use 2 or more"
        )
    rest = num_samples % (cfg.loader.batch_size * world_size)
    is_alone = 0 < rest < 2 * world_size * num_parts and not cfg.loader.drop_last
    if is_alone and smallest <= 32:
        whose = "" if world_size * num_parts == 1 else f" for one of {world_size} ranks with {num_parts} parts each"
        raise ConfigError(
            f"the last batch of an epoch would be 1 sample{whose} ({num_samples} with loader.batch_size="
            f"{cfg.loader.batch_size}), too little for batch normalisation at "
            f"{'transforms.size' if cfg.schedule.sizes is None else 'schedule.sizes'}={smallest}; "
            "set loader.drop_last=true, or another loader.batch_size"
        )


def warnings_of_size(cfg: TrainConfig, *, num_local_ranks: int, num_cores: int) -> list[str]:
    """What is said of more ranks, or workers, than a host of `num_cores` cores has a use for."""
    warnings = []
    if num_local_ranks > num_cores:
        warnings.append(f"warning: {num_local_ranks} ranks share the {num_cores} cores of this host; use fewer")
    workers = cfg.loader.resolved_num_workers(max(1, num_cores // num_local_ranks))
    num_threads = workers * cfg.loader.threads_per_worker * num_local_ranks
    if num_threads > MOST_WORKERS_A_CORE * num_cores:
        warnings.append(
            f"warning: loader.num_workers={workers} makes {num_threads} threads or processes on {num_cores} cores; "
            f"more than {MOST_WORKERS_A_CORE} a core take memory for nothing, also where they wait for storage"
        )
    return warnings


def sample_of(names: Any) -> str:
    """How many names there are, and the first of them."""
    shown = ", ".join(str(name) for name in list(names)[:5])
    return f"{len(names)} ({shown}, ...)" if len(names) > 5 else f"{len(names)} ({shown})"
