"""The learning rate of each step: a linear warm-up, then a cosine to zero or a constant; or torch's one cycle."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from pipeline.config import Schedule, ScheduleName


def build_schedule(schedule: Schedule, optimizer: Optimizer, *, steps_per_epoch: int) -> LRScheduler:
    """Builds the schedule over all epochs; its `step()` belongs after each step of the optimizer."""
    num_steps = schedule.epochs * steps_per_epoch
    if schedule.name is ScheduleName.one_cycle:
        return OneCycleLR(
            optimizer,
            max_lr=[float(group["lr"]) for group in optimizer.param_groups],
            total_steps=num_steps + 1,  # it counts the rate after the last step too
            pct_start=schedule.warmup_epochs / schedule.epochs,
            cycle_momentum=all(group.get("momentum", 1) for group in optimizer.param_groups),
        )
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    cosine = schedule.name is ScheduleName.cosine
    return LambdaLR(
        optimizer, lambda step: lr_factor(step, num_steps=num_steps, warmup_steps=warmup_steps, cosine=cosine)
    )


def lr_factor(step: int, *, num_steps: int, warmup_steps: int, cosine: bool) -> float:
    """The fraction of the peak learning rate at `step`, which counts from 0.

    The warm-up rises by 1 / (warmup_steps + 1) from its first step on, so no step is wasted at zero and the
    peak comes right after it. The cosine would reach zero at `num_steps`, one past the last step.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if not cosine:
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
