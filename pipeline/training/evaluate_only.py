"""How well given weights do: `run.evaluate_only`, on the weights of `init_from`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.build import build_pipeline
from pipeline.config import ConfigError, TrainConfig
from pipeline.dist import World
from pipeline.model import build_model
from pipeline.sources import Source
from pipeline.training.bad import agree_on_bad, open_quarantine
from pipeline.training.build import build_compute
from pipeline.training.checks import num_classes_of, sample_of
from pipeline.training.environment import plain
from pipeline.training.evaluate import Evaluation, evaluate
from pipeline.training.stopping import StopSignals
from pipeline.training.weights import put_weights, read_weights


def evaluate_weights(cfg: TrainConfig, run_dir: Path, world: World, stop: StopSignals) -> Evaluation:
    """Scores the weights of `cfg.init_from` on the validation split; a warning where they were trained on other pixels.

    Raises:
        ConfigError: the weights are of another model or of other classes.
    """
    compute = build_compute(cfg, world)
    content = read_weights(Path(str(cfg.init_from)))
    with build_pipeline(
        cfg,
        split="val",
        device=compute.device,
        num_epochs=1,
        rank=world.rank,
        world_size=world.size,
        quarantine=open_quarantine(cfg, run_dir, world),
    ) as pipeline:
        num_classes = _num_classes(cfg, pipeline.source, content.get("class_names"))
        model = build_model(cfg.model, num_classes).to(compute.device)
        put_weights(model, content, path=Path(str(cfg.init_from)), needs_head=True)
        if world.is_first:
            _warn_of_other_pixels(cfg, content.get("preprocessing"))
        stop.defer()
        evaluation = evaluate(model, stop.checked(pipeline), compute=compute, world=world)
        agree_on_bad(pipeline, world)
        return evaluation


def _num_classes(cfg: TrainConfig, source: Source, trained_on: list[str] | None) -> int:
    if trained_on and source.class_names and list(source.class_names) != list(trained_on):
        raise ConfigError(
            f"init_from={cfg.init_from} was trained on other classes: {sample_of(trained_on)}, and here they are "
            f"{sample_of(source.class_names)}; give the data it was trained on"
        )
    return len(trained_on) if trained_on and cfg.model.num_classes is None else num_classes_of(cfg, source)


def _warn_of_other_pixels(cfg: TrainConfig, before: dict[str, Any] | None) -> None:
    now = plain(cfg.transforms.evaluation())
    # A key that is not there yet has meant since what its default says.
    differing = [f"transforms.{key}={value}" for key, value in (before or {}).items() if now.get(key, value) != value]
    if differing:
        sys.stderr.write(f"warning: these weights were trained for evaluation with {', '.join(differing)}\n")
