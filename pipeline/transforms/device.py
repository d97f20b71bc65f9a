"""Colour and normalisation of a whole uint8 batch on its device: one pass where the worker's way makes one a sample."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Transforms
from pipeline.transforms.colour import ColourJitter
from pipeline.transforms.sample import colour_column


class BatchTransform:
    """What `SampleTransform(options, normalise=False)` leaves to do, from the same draws.

    With colour on, float32 results equal the worker's to the bit (`colour` says why); without it they are within 1e-6.
    """

    def __init__(self, options: Transforms) -> None:
        self._jitter = ColourJitter(options, first_column=colour_column(options))
        self.num_draws = colour_column(options) + self._jitter.num_draws
        mean, std = np.asarray(options.mean), np.asarray(options.std)
        self._scale, self._bias = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def __call__(self, images: Tensor, draws: NDArray[np.float64], dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalised images (B, 3, H, W) of `dtype` on the device and in the memory format of the uint8 `images`.

        `draws` (B, num_draws) are those that the images were cropped with. Computed in float32 and rounded once.
        """
        levels = images.to(torch.float32)
        if not self._jitter.num_draws:
            return levels.mul_(_channels(self._scale, images)).add_(_channels(self._bias, images)).to(dtype)
        matrices = torch.from_numpy(self._jitter.matrices(draws)).to(images.device, non_blocking=True)
        # Sums of products and not a matrix product: that may run in TF32, which keeps 10 bits of a float's 23.
        coloured = torch.empty_like(levels)
        torch.mul(levels[:, 0:1], matrices[:, :, 0, None, None], out=coloured)
        coloured.addcmul_(levels[:, 1:2], matrices[:, :, 1, None, None])
        coloured.addcmul_(levels[:, 2:3], matrices[:, :, 2, None, None])
        coloured.add_(matrices[:, :, 3, None, None])
        coloured.clamp_(_channels(self._jitter.lower, images), _channels(self._jitter.upper, images))
        return coloured.to(dtype)


def _channels(values: NDArray[np.float32], images: Tensor) -> Tensor:
    """One value a channel, shaped to apply to `images` (B, 3, H, W) and on their device."""
    return torch.from_numpy(values)[:, None, None].to(images.device, non_blocking=True)
