"""One step of training: a batch becomes gradients, and those other weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from pipeline.dist import ALONE, World
from pipeline.dist.world import told_if_lost
from pipeline.training.compute import Compute
from pipeline.training.mixing import Mix


@dataclass(slots=True, kw_only=True)
class Learner:
    """A model with all that changes it. `num_steps` counts the steps taken in all epochs.

    In a world of several ranks every rank takes each step, with its part of the global batch, and gradients are
    averaged over the ranks. They begin with the first one's weights.

    Attributes:
        num_parts: parts in which a batch goes through the model; their gradients add up to the batch's, and only one
            part's activations are in memory at a time. Batch normalisation sees the parts.
        scaler: of the loss, against gradients that float16 cannot hold; None: none.
        average: the moving average of the weights and of the running statistics; None: none.
        mix: mixes the images of a batch, and their labels; None: none.
        compiles: whether the model runs as torch.compile makes it.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    compute: Compute
    world: World = ALONE
    label_smoothing: float = 0.0
    grad_clip: float | None = None
    num_parts: int = 1
    scaler: GradScaler | None = None
    average: AveragedModel | None = None
    mix: Mix | None = None
    compiles: bool = False
    num_steps: int = 0
    _replica: nn.Module = field(init=False)
    _forward: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._replica = self.model
        if self.world.size > 1:
            of_gpu = [self.compute.device] if self.compute.device.type == "cuda" else None
            with told_if_lost():
                self._replica = DistributedDataParallel(self.model, device_ids=of_gpu, gradient_as_bucket_view=True)
        self._forward = torch.compile(self._replica) if self.compiles else self._replica

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def step(self, images: Tensor, labels: Tensor, *, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Takes one step and gives the batch's mean loss and number right, as scalars on the device.

        `num_samples` are those of the global batch, this one's by default: the gradient is that of their mean loss,
        however ranks and parts share them. A rank's batch may be empty, the global one not: its mean would be NaN.
        Never waits for the device (but float16 does, to see whether gradients overflowed).

        Raises:
            LostRankError: another rank has ended.
        """
        images, labels = self.compute.place(images, labels)
        targets = labels
        if self.mix is not None and len(labels):
            images, targets = self.mix(images, labels, step=self.num_steps, rank=self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        with told_if_lost():
            losses, logits = self._gradients(images, targets, num_samples or len(labels) * self.world.size)
        self._update()
        num_right = (torch.cat(logits).argmax(dim=1) == labels).sum()
        return torch.stack(losses).sum() / max(1, len(labels)), num_right

    def _gradients(self, images: Tensor, targets: Tensor, num_samples: int) -> tuple[list[Tensor], list[Tensor]]:
        """Adds the gradients of all parts; gives the sum of losses and the logits of each."""
        losses, logits = [], []
        parts = zip(images.tensor_split(self.num_parts), targets.tensor_split(self.num_parts), strict=True)
        for number, (some, wanted) in enumerate(parts, start=1):
            is_last = number == self.num_parts
            if len(some) == 0 and not is_last:
                continue
            with self._exchanging(is_last):
                with self.compute.autocast():
                    guessed = self._logits(some)
                    loss = functional.cross_entropy(
                        guessed, wanted, label_smoothing=self.label_smoothing, reduction="mean" if len(some) else "sum"
                    )
                weighed = self._weighed(loss, len(some), num_samples)
                (weighed if self.scaler is None else self.scaler.scale(weighed)).backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            losses.append(loss.detach() * len(some))
            logits.append(guessed.detach())
        return losses, logits

    def _update(self) -> None:
        if self.scaler is not None and self.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        if self.scaler is None:
            self.optimizer.step()
            self.scheduler.step()
        else:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() >= scale:  # else gradients overflowed, and no step was taken
                self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.num_steps += 1

    def _logits(self, images: Tensor) -> Tensor:
        if len(images):
            return self._forward(images)
        # No sample has no statistics to normalise by; the gradients are zeros, and the other ranks wait for them.
        self.model.eval()
        logits: Tensor = self._replica(images)
        self.model.train()
        return logits

    def _exchanging(self, is_last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once, with the last part's."""
        if is_last or not isinstance(self._replica, DistributedDataParallel):
            return nullcontext()
        return self._replica.no_sync()

    def _weighed(self, loss: Tensor, num_mine: int, num_samples: int) -> Tensor:
        """The loss times what makes the mean of the ranks' gradients that of all samples' mean loss."""
        if num_mine * self.world.size == num_samples:
            return loss  # as it is nearly always, and then to the bit
        return loss * (num_mine * self.world.size / num_samples)
