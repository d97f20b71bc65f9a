"""What a loader yields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batch(tuple[Tensor, Tensor]):
    """One rank's part of a global batch; unpacks as `images, labels`.

    Attributes:
        images: `(B, 3, H, W)`, usually a channels-last view of a slot. It stays valid and unchanged as long as it, or
            any tensor that views it, is referenced; the slot is used again only after the last of them is gone.
        labels: any numeric tensor of first dimension B; int64 class numbers for classification.
        ids: int64 `(B,)` on the CPU, the samples' numbers in the source.
        epoch, step: where in the run's order this batch stands; step counts global batches from 0 within the epoch.
        draws: float64 `(B, num_draws)` in [0, 1), every sample's own uniforms, for stages that come after the loader.
    """

    ids: Tensor
    epoch: int
    step: int
    draws: NDArray[np.float64]

    def __new__(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        ids: Tensor,
        epoch: int = 0,
        step: int = 0,
        draws: NDArray[np.float64] | None = None,
    ) -> Self:
        """Make a batch from tensors of one first dimension; nothing is copied."""
        batch = super().__new__(cls, (images, labels))
        batch.ids = ids
        batch.epoch = epoch
        batch.step = step
        batch.draws = np.empty((len(ids), 0)) if draws is None else draws
        return batch

    @property
    def images(self) -> Tensor:
        """The first element."""
        return self[0]

    @property
    def labels(self) -> Tensor:
        """The second element."""
        return self[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of `function(images)` and `function(labels)`; ids, epoch, step and draws stay as they are."""
        return Batch(
            function(self.images),
            function(self.labels),
            ids=self.ids,
            epoch=self.epoch,
            step=self.step,
            draws=self.draws,
        )

    def with_images(self, images: Tensor) -> Batch:
        """The same batch with other images."""
        return Batch(images, self.labels, ids=self.ids, epoch=self.epoch, step=self.step, draws=self.draws)

    def to(
        self,
        device: torch.device | torch.dtype | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Batch:
        """Images and labels by `torch.Tensor.to`; a dtype, also given first, applies to floating-point tensors only."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        def move(tensor: Tensor) -> Tensor:
            kept = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device, dtype=kept, non_blocking=non_blocking)

        return self.map(move)

    def pin_memory(self) -> Batch:
        """Images and labels in page-locked memory of torch's own allocator; without CUDA the batch itself."""
        return self.map(Tensor.pin_memory) if torch.cuda.is_available() else self

    def __repr__(self) -> str:
        images = self.images
        return (
            f"Batch(epoch={self.epoch}, step={self.step}, images={tuple(images.shape)} {images.dtype}, "
            f"labels={tuple(self.labels.shape)} {self.labels.dtype})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.images, self.labels, self.ids, self.epoch, self.step, self.draws)


def _rebuild(images: Tensor, labels: Tensor, ids: Tensor, epoch: int, step: int, draws: NDArray[np.float64]) -> Batch:
    return Batch(images, labels, ids=ids, epoch=epoch, step=step, draws=draws)
