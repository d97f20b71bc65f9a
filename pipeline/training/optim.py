"""The optimizer: torch's SGD or AdamW, its rate scaled by the batch, no decay on norms and biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.config import Optim, OptimName

REFERENCE_BATCH_SIZE = 256


def scaled_lr(lr: float, *, global_batch_size: int) -> float:
    """The peak learning rate, linear in the global batch (Goyal et al. 2017); `lr` is for 256 images."""
    return lr * global_batch_size / REFERENCE_BATCH_SIZE


def build_optimizer(optim: Optim, model: nn.Module, *, global_batch_size: int) -> Optimizer:
    """Builds the optimizer `optim.name` over the model's parameters that require a gradient."""
    groups = _decay_groups(model.parameters(), optim.weight_decay)
    lr = scaled_lr(optim.lr, global_batch_size=global_batch_size)
    if optim.name is OptimName.adamw:
        return AdamW(groups, lr=lr)
    # torch refuses Nesterov's step without momentum, where it is the plain one anyway.
    return SGD(groups, lr=lr, momentum=optim.momentum, nesterov=optim.nesterov and optim.momentum > 0)


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Splits by dimensions: norms and biases are vectors, whose decay does harm (Goyal et al. 2017, 5.3)."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
