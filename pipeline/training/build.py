"""From a configuration to what takes a step: device and precision, model, optimizer, and what surrounds them."""

from __future__ import annotations

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config import Amp, ConfigError, ImageDtype, Optim, TrainConfig
from pipeline.dist import ALONE, World
from pipeline.draws import key
from pipeline.machine import cores_per_rank
from pipeline.model import build_model
from pipeline.training.compute import Compute, choose_device
from pipeline.training.learner import Learner
from pipeline.training.mixing import Mix
from pipeline.training.optim import build_optimizer
from pipeline.training.schedule import build_schedule


def choose_num_threads(cfg: TrainConfig) -> int:
    """Torch's threads in a new run: `run.num_threads`, or the cores that the loader's workers leave, at least 1."""
    if cfg.run.num_threads is not None:
        return cfg.run.num_threads
    cores = cores_per_rank()
    return max(1, cores - cfg.loader.resolved_num_workers(cores))


def build_compute(cfg: TrainConfig, world: World = ALONE) -> Compute:
    """Where and in which precision `cfg` trains. ConfigError where that cannot be."""
    amp_dtype = {Amp.off: None, Amp.bf16: torch.bfloat16, Amp.fp16: torch.float16}[cfg.optim.amp]
    if cfg.prefetch.dtype is not ImageDtype.float32 and amp_dtype is not torch.bfloat16:
        raise ConfigError(
            f"prefetch.dtype={cfg.prefetch.dtype} needs optim.amp=bf16: without it the weights are float32"
        )
    return Compute(
        device=choose_device(cfg.run.device, world=world),
        amp_dtype=amp_dtype,
        channels_last=cfg.optim.channels_last,
    )


def build_learner(
    cfg: TrainConfig,
    compute: Compute,
    *,
    num_classes: int,
    steps_per_epoch: int,
    world: World = ALONE,
) -> Learner:
    """A new model, drawn from torch's generator, with its optimizer and schedule.

    What is drawn after it (dropout) differs between the ranks of `world`.
    """
    model = build_model(cfg.model, num_classes).to(compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]  # torch's stub asks for four dimensions
    optimizer = build_optimizer(cfg.optim, model, global_batch_size=cfg.loader.batch_size * world.size)
    if world.rank > 0:
        torch.manual_seed(key("rank", seed=cfg.run.seed, rank=world.rank))
    optim = cfg.optim
    return Learner(
        model=model,
        optimizer=optimizer,
        scheduler=build_schedule(cfg.schedule, optimizer, steps_per_epoch=steps_per_epoch),
        compute=compute,
        world=world,
        label_smoothing=optim.label_smoothing,
        grad_clip=optim.grad_clip,
        num_parts=optim.num_parts,
        scaler=GradScaler(compute.device.type) if optim.amp is Amp.fp16 else None,
        average=None if optim.average_decay is None else moving_average(model, optim.average_decay),
        mix=build_mix(optim, num_classes, seed=cfg.seed),
        compiles=cfg.model.compile,
    )


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights and of batch normalisation's running statistics."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def build_mix(optim: Optim, num_classes: int, *, seed: int) -> Mix | None:
    """What mixes the images of a batch; None where nothing does."""
    if not optim.mixup and not optim.cutmix:
        return None
    return Mix(mixup=optim.mixup, cutmix=optim.cutmix, num_classes=num_classes, seed=seed)
