"""How a run of this configuration would be spread over this machine, as the build would decide it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipeline.build_loader import describe_workers, resolve_backend
from pipeline.build_prefetch import plan_delivery
from pipeline.config import Backend, TrainConfig, Transforms
from pipeline.dist import World
from pipeline.machine import num_cores
from pipeline.training.build import build_compute
from pipeline.training.sizes import training_sizes
from pipeline.transforms.crops import CropsTransform, transform_of
from pipeline.transforms.sample import SampleTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What the checks of a run's needs have in common."""

    cfg: TrainConfig
    device: torch.device
    finishes: bool
    """Whether that device colours and normalises, and workers make bytes for it."""
    num_workers: int
    """Of each rank's training pipeline, and as many of its evaluation's."""
    backend: Backend

    @property
    def num_ranks(self) -> int:
        """Processes that train on this machine."""
        return self.cfg.dist.nproc

    @property
    def num_loading(self) -> int:
        """Threads, of all ranks, that read and decode at the same time; the loop's own where there are no workers."""
        per_worker = self.cfg.loader.threads_per_worker if self.backend is Backend.processes else 1
        return self.num_ranks * max(1, self.num_workers * per_worker)

    @property
    def workers(self) -> str:
        """Who makes a rank's batches, in words."""
        return describe_workers(self.cfg.loader, self.num_workers, self.backend)

    def options(self, *, training: bool) -> Transforms:
        """What is done to pixels, for evaluation, or for training at its largest size."""
        if not training:
            return self.cfg.transforms.evaluation()
        return replace(self.cfg.transforms.resolved(), size=training_sizes(self.cfg)[-1])

    def transform(self, *, training: bool = True) -> SampleTransform | CropsTransform:
        """What workers would make a row of a sample with."""
        return transform_of(self.options(training=training), normalise=not self.finishes)


def plan_run(cfg: TrainConfig) -> RunPlan:
    """The plan for `cfg`. ConfigError, as the run would raise it, where this machine lacks what it asks for."""
    ranks = cfg.dist.nproc
    last_rank = World(rank=ranks - 1, size=ranks, local_rank=ranks - 1, local_size=ranks)
    device = build_compute(cfg, last_rank).device
    delivery = plan_delivery(cfg, cfg.transforms.resolved(), device, pin_memory=False, has_own_transform=False)
    num_workers = cfg.loader.resolved_num_workers(max(1, num_cores() // ranks))
    return RunPlan(
        cfg=cfg,
        device=device,
        finishes=delivery.finishes,
        num_workers=num_workers,
        backend=resolve_backend(cfg.loader, num_workers, prefers_processes=delivery.on_device),
    )
