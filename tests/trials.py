"""Small trials: configurations, contenders that are generators, and clocks that pass when somebody says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.bench.contender import Contender
from pipeline.build import assemble
from pipeline.config import Bench, BenchConfig, FolderData, Loader, SamplerName, Transforms
from pipeline.sources import FileSource

NUM_IMAGES, BATCH_SIZE = 24, 4
CPU = torch.device("cpu")


class FakeClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def config(folder: Path, *, loader: dict[str, Any] | None = None, bench: dict[str, Any], **groups: Any) -> BenchConfig:
    """A small trial of `folder`: a worker thread, nothing beside the passes."""
    return BenchConfig(
        data=FolderData(root=str(folder)),
        loader=Loader(**{"batch_size": BATCH_SIZE, "num_workers": 1, "backend": "threads"} | (loader or {})),
        transforms=Transforms.named("light", size=16),
        bench=Bench(**{"batches": 2, "repeats": 2, "references": False} | bench),
        **groups,
    )


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "train").rglob("*.jpg"))


def endless(
    *, wait_s: float = 0.0, border_s: float = 0.0, clock: FakeClock, batches_per_epoch: int = 5
) -> Iterator[Any]:
    for step in count():
        clock.advance(wait_s + (border_s if step % batches_per_epoch == 0 else 0.0))
        yield np.zeros((BATCH_SIZE, 3, 2, 2), np.float32), [0] * BATCH_SIZE


def contender_of(stream: Any, **facts: Any) -> Contender:
    known = {
        "batches_per_epoch": 5,
        "num_samples": 20,
        "num_ready": 0,
        "num_workers": 0,
        "resize": "none",
        "layout": "contiguous",
        "served_from": "nowhere",
    }
    return Contender(stream=stream, **known | facts)


def assembled(source: Any, cfg: BenchConfig, *, sampler: SamplerName = SamplerName.shuffle) -> Any:
    return assemble(source, cfg, transforms=cfg.transforms.resolved(), sampler=sampler, device=CPU, name="train")


class SlowFirst(FileSource):
    """Files of which the first takes seven seconds of a clock, and each other a hundredth."""

    def __init__(self, paths: Sequence[Path], clock: FakeClock) -> None:
        super().__init__(paths, np.zeros(len(paths)))
        self._clock = clock

    def read(self, id: int) -> bytes:
        self._clock.advance(7 if id == 0 else 0.01)
        return super().read(id)
