"""The configured pipeline itself, as a contender."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch

from pipeline.bench.contender import Contender, Stream
from pipeline.build import Pipeline, build_pipeline
from pipeline.build_pack import pack_path
from pipeline.build_prefetch import plan_delivery
from pipeline.build_source import open_source
from pipeline.config import BenchConfig, ConfigError, PreloadMode, Resize, Store, SyntheticData

_RESIZE = {
    Resize.exact: "antialiased bilinear (resize=exact, Pillow's)",
    Resize.fused: "antialiased bilinear, within a level of Pillow's (resize=fused)",
    Resize.fast: "antialiased, within a level of Pillow's bilinear (resize=fast)",
}


@dataclass(slots=True, kw_only=True)
class PipelineContender(Contender):
    """A pipeline's own stream. Owns nothing: `open_pipeline` closes both."""

    pipeline: Pipeline

    def jump(self, step: int) -> None:
        """Let the stream go on at batch `step` of another epoch; what was made ahead is dropped."""
        self.stream.close()
        state = self.pipeline.state_dict()
        state |= {"epoch": state["epoch"] + 1, "position": step * state["global_batch_size"]}
        self.pipeline.load_state_dict(state)
        self.stream = _forever(self.pipeline)


def prepare(cfg: BenchConfig) -> None:
    """Make what later runs find made, the generated images and the pack file, so that no clock counts it."""
    if isinstance(cfg.data, SyntheticData):
        open_source(cfg.data, "train")
    if cfg.preload.mode is PreloadMode.pack:
        with build_pipeline(cfg, split="train", device="cpu"):
            pass


@contextmanager
def open_pipeline(cfg: BenchConfig, device: torch.device) -> Iterator[PipelineContender]:
    """The pipeline of the training split, on `device`. ConfigError where it cannot be built or has no batch."""
    with build_pipeline(cfg, split="train", device=device) as pipeline:
        if len(pipeline) == 0:
            raise ConfigError(
                f"loader.drop_last leaves no batch of {pipeline.num_samples} samples; use a smaller batch"
            )
        contender = as_contender(pipeline, cfg, device)
        try:
            yield contender
        finally:
            contender.stream.close()


def as_contender(pipeline: Pipeline, cfg: BenchConfig, device: torch.device) -> PipelineContender:
    """`pipeline`, which was built from `cfg` for `device` and stays the caller's to close."""
    return PipelineContender(
        pipeline=pipeline,
        stream=_forever(pipeline),
        batches_per_epoch=len(pipeline),
        num_samples=min(pipeline.num_samples, len(pipeline) * pipeline.batch_size),
        num_ready=_num_ready(pipeline, cfg, device),
        num_workers=pipeline.num_workers,
        resize=_RESIZE[pipeline.transforms.resize],
        layout="channels-last",
        served_from=_served_from(cfg),
        files=_files(cfg, pipeline),
    )


def _num_ready(pipeline: Pipeline, cfg: BenchConfig, device: torch.device) -> int:
    delivery = plan_delivery(cfg, pipeline.transforms, device, pin_memory=False, has_own_transform=False)
    made_ahead = cfg.loader.prefetch_factor if pipeline.num_workers else 0
    return made_ahead + (0 if delivery.device is None else delivery.num_batches)


def _forever(pipeline: Pipeline) -> Stream:
    while True:
        for batch in pipeline:
            yield cast(tuple[torch.Tensor, torch.Tensor], batch)
            del batch  # a kept batch would keep its slot


def _served_from(cfg: BenchConfig) -> str:
    """A cached row beside peers that read files must say so."""
    if cfg.preload.mode is PreloadMode.ram:
        return "memory (preload=ram)"
    behind = "a pack file" if cfg.preload.mode is PreloadMode.pack else "files"
    return behind if cfg.cache.policy == "none" else f"cache={cfg.cache.policy} before {behind}"


def _files(cfg: BenchConfig, pipeline: Pipeline) -> list[str] | None:
    if cfg.preload.mode is PreloadMode.ram:
        return []
    if cfg.preload.mode is PreloadMode.none:
        return None
    decoded = cfg.cache.store is Store.decoded
    path = pack_path(pipeline.source, cfg.preload, decoded=decoded, transforms=pipeline.transforms, name="train")
    return [str(path)]
