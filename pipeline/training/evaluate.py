"""Exact evaluation: every sample of a split once, in sums and counts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.dist import ALONE, World
from pipeline.training.compute import Compute
from pipeline.training.loop_clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How well a model does on a split.

    Attributes:
        loss: mean cross-entropy, without label smoothing, in nats.
        top1: fraction right, in [0, 1].
        num_samples: how many were scored; fewer than the split has where `data.on_error=skip` left some out.
        wall_s: from asking for the first batch to the last result on the host.
    """

    loss: float
    top1: float
    num_samples: int
    wall_s: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    compute: Compute,
    world: World = ALONE,
    clock: Clock = time.perf_counter,
) -> Evaluation:
    """Scores every sample of `batches` once; a short batch weighs what it holds, an empty one nothing.

    The ranks of `world` score a part each, all by the first one's buffers, and each gets the whole. Leaves the model in
    evaluation mode.

    Raises:
        RuntimeError: there was no sample to score.
    """
    model.eval()
    world.share_buffers(model)
    start_s = clock()
    loss_sum = torch.zeros((), dtype=torch.float64, device=compute.device)
    num_right = torch.zeros((), dtype=torch.int64, device=compute.device)
    num_samples = 0
    for images, labels in batches:
        if len(labels) == 0:
            continue
        images, labels = compute.place(images, labels)
        with compute.autocast():
            logits = model(images)
            loss_sum += functional.cross_entropy(logits, labels, reduction="sum")
        num_right += (logits.argmax(dim=1) == labels).sum()
        num_samples += len(labels)
    mine = torch.stack([loss_sum, num_right.double(), num_right.new_tensor(num_samples).double()]).cpu()
    total_loss, total_right, total_samples = world.sum(mine).tolist()
    if total_samples == 0:
        raise RuntimeError(
            "evaluation had no sample to score: the validation split is empty or none of it could be read; "
            "raise data.val_fraction, or see quarantine.csv"
        )
    return Evaluation(
        loss=total_loss / total_samples,
        top1=total_right / total_samples,
        num_samples=int(total_samples),
        wall_s=world.greatest(clock() - start_s),
    )
