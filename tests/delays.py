"""Delays at one stage of a run, and what a run of an epoch costs with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.build import build_pipeline
from pipeline.config import TrainConfig
from pipeline.dist import ALONE, World
from pipeline.loader import slots
from pipeline.sources import files
from pipeline.stalls import StallReport
from pipeline.stalls.bound import parts_of
from pipeline.streams import CpuStreams
from pipeline.training.compute import Compute
from pipeline.training.learner import Learner
from pipeline.training.loop import Totals, train_epoch
from pipeline.training.stall_watch import StallWatch
from pipeline.transforms import sample as transforms

OF_SAMPLES = ("read", "decode", "transform")
OF_BATCHES = ("collate", "transfer", "compute")
STAGES = (*OF_SAMPLES, *OF_BATCHES)


class Silent:
    """Nobody watches."""

    def advance(self) -> None:
        """Nothing to tell."""

    def show(self, totals: Totals) -> None:
        """Nothing to tell."""


class Slow(nn.Module):
    """A model whose step takes `delay_s` on a device that is not the CPU: nothing computes meanwhile."""

    def __init__(self, num_inputs: int, delay_s: float) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, 2)
        self._delay_s = delay_s

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self._delay_s)
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@contextmanager
def delayed(stage: str, delay_s: float) -> Iterator[None]:
    """Every sample, or batch, that goes through `stage` takes so much longer; `compute` is `Slow`'s."""

    def late(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            time.sleep(delay_s)
            return function(*arguments, **options)

        return call

    places: dict[str, tuple[Any, str]] = {
        "read": (files.FileSource, "read"),
        "decode": (transforms, "inspect"),
        "transform": (transforms, "plan_crop"),
        "collate": (slots.SlotRing, "lend"),
        "transfer": (CpuStreams, "record"),
    }
    with pytest.MonkeyPatch.context() as patch:
        if stage in places:
            owner, name = places[stage]
            patch.setattr(owner, name, late(getattr(owner, name)))
        yield


def report_of(
    cfg: TrainConfig, *, stage: str | None = None, delay_s: float = 0.0, compute_s: float = 0.0
) -> StallReport:
    """Of `cfg.schedule.epochs` epochs with `stage` delayed, and a model whose step takes `compute_s`."""
    compute_s += delay_s if stage == "compute" else 0.0
    with delayed(stage or "", delay_s), build_pipeline(cfg, num_epochs=cfg.schedule.epochs) as pipeline:
        learner = learner_for(Slow(3 * cfg.transforms.size**2, compute_s))
        watch = StallWatch(pipeline, device=torch.device("cpu"))
        for _ in range(cfg.schedule.epochs):
            spent = watch.begin()
            train_epoch(learner, pipeline, observer=Silent(), every_steps=50, spent=spent)
            watch.end(spent)
        report = watch.report(cfg)
    assert report is not None
    return report


def learner_for(model: nn.Module, world: World = ALONE) -> Learner:
    """Takes steps so small that nothing changes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    return Learner(
        model=model,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        compute=Compute(device=torch.device("cpu"), amp_dtype=None, channels_last=True),
        world=world,
    )


def delay_above_all(report: StallReport, stage: str, *, factor: float) -> float:
    """Seconds that a sample, or a batch, has to take longer in `stage`, for it to stand `factor` above the second.

    The second is whichever is larger: the pace of another lane, or another stage of its own.
    """
    costs, lanes = report.costs, report.lanes
    parts = parts_of(costs, lanes)
    lane = next(lane for lane in parts if stage in parts[lane])
    second_s = max(
        *(sum(parts[other].values()) for other in parts if other is not lane),
        *(spent_s for other, spent_s in parts[lane].items() if other != stage),
    )
    needed_s = max(0.0, factor * second_s - parts[lane][stage])
    if stage in OF_SAMPLES:
        return needed_s * max(1, lanes.num_threads)
    return needed_s * costs.num_samples / costs.num_batches
