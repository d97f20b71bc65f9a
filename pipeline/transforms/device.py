"""Colour and normalisation of a whole uint8 batch on its device: one pass where the worker's way makes one a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Transforms
from pipeline.transforms.sample import policy_and_finish


class BatchTransform:
    """What `SampleTransform(options, normalise=False)` leaves to do, from the same draws.

    With colour on, float32 results equal the worker's to the bit (`colour` says why); without it they are within 1e-6,
    and blurred images within 1e-5.
    """

    def __init__(self, options: Transforms) -> None:
        _, self._finish = policy_and_finish(options)
        self.num_draws = self._finish.end_column
        mean, std = np.asarray(options.mean), np.asarray(options.std)
        self._scale, self._bias = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def __call__(self, images: Tensor, draws: NDArray[np.float64], dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalised images (B, 3, H, W) of `dtype` on the device and in the memory format of the uint8 `images`.

        `draws` (B, num_draws) are those that the images were cropped with. Computed in float32 and rounded once.
        """
        levels = images.to(torch.float32)
        if not self._finish.num_draws:
            return levels.mul_(_channels(self._scale, images)).add_(_channels(self._bias, images)).to(dtype)
        jitter = self._finish.jitter
        matrices = _on(jitter.matrices(draws), images)
        # Sums of products and not a matrix product: that may run in TF32, which keeps 10 bits of a float's 23.
        coloured = torch.empty_like(levels)
        torch.mul(levels[:, 0:1], matrices[:, :, 0, None, None], out=coloured)
        coloured.addcmul_(levels[:, 1:2], matrices[:, :, 1, None, None])
        coloured.addcmul_(levels[:, 2:3], matrices[:, :, 2, None, None])
        coloured.add_(matrices[:, :, 3, None, None])
        coloured.clamp_(_channels(jitter.lower, images), _channels(jitter.upper, images))
        _blur(coloured, *self._finish.blur.kernels(draws))
        _erase(coloured, *self._finish.erasing.boxes(draws))
        return coloured.to(dtype)


def _blur(images: Tensor, rows: NDArray[np.int64], kernels: NDArray[np.float32]) -> None:
    """Blur `rows` of `images` (B, 3, H, W) in place, along both axes by their kernels (m, taps)."""
    if len(rows) == 0:
        return
    # Sums of shifted images and not a convolution, which may run in TF32 as well.
    taps = _on(kernels, images)[:, :, None, None, None].unbind(1)
    radius = len(taps) // 2
    at = _on(rows, images)
    blurred = images[at]
    for dim, margins in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded = torch.nn.functional.pad(blurred, margins, mode="reflect")
        blurred = torch.zeros_like(blurred)
        for shift, tap in enumerate(taps):
            blurred.addcmul_(padded.narrow(dim, shift, images.shape[dim]), tap)
    images[at] = blurred


def _erase(images: Tensor, rows: NDArray[np.int64], boxes: NDArray[np.int64]) -> None:
    """Let the part in each of `boxes` (m, 4) of `rows` of `images` (B, 3, H, W) be 0, in place."""
    if len(rows) == 0:
        return
    edges = np.zeros((len(images), 4), np.int64)
    edges[rows] = boxes
    top, left, bottom, right = _on(edges, images)[:, :, None].unbind(1)
    y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
    images.masked_fill_(inside, 0)


def _on(values: NDArray[Any], images: Tensor) -> Tensor:
    # From memory that is not page-locked CUDA has copied when this returns; other devices are not known to.
    return torch.from_numpy(values).to(images.device, non_blocking=images.device.type == "cuda")


def _channels(values: NDArray[np.float32], images: Tensor) -> Tensor:
    """One value a channel, shaped to apply to `images` (B, 3, H, W) and on their device."""
    return _on(values, images)[:, None, None]
