"""Gaussian blur of some samples, each by a width of its own."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms

_RADIUS_SIGMAS = 3
"""Beyond it lies 0.3 % of a Gaussian."""


class Blur:
    """With probability `blur` a Gaussian of sigma uniform in `blur_sigma`, in pixels; two draws, none when it is off.

    As torchvision's `GaussianBlur` of kernel size `len(kernel)`: cut off there, summing to 1, the edges reflected. The
    size is the same for every sample, so that a batch on a device takes the same steps for all of them.
    """

    def __init__(self, options: Transforms, *, first_column: int) -> None:
        self.num_draws = 2 if options.blur > 0 and options.augment != "none" else 0
        self._column = first_column
        self._probability = options.blur
        self._sigma = options.blur_sigma
        # A reflection needs that much inside.
        self._radius = min(math.ceil(_RADIUS_SIGMAS * options.blur_sigma[1]), options.size - 1)

    def kernels(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the rows (m,) of `draws` (B, columns) that are blurred, and their kernels (m, taps), taps odd."""
        if not self.num_draws:
            return np.empty(0, np.int64), np.empty((0, 1), np.float32)
        rows = np.flatnonzero(draws[:, self._column] < self._probability)
        low, high = self._sigma
        sigma = low + (high - low) * draws[rows, self._column + 1, None]
        steps = np.arange(-self._radius, self._radius + 1)
        kernels = np.exp(-0.5 * (steps / sigma) ** 2)
        return rows, (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)


def blur_image(pixels: NDArray[np.float32], kernel: NDArray[np.float32]) -> None:
    """Blur `pixels` (H, W, 3) in place, along both axes by `kernel`."""
    written = cv2.sepFilter2D(pixels, cv2.CV_32F, kernel, kernel, dst=pixels, borderType=cv2.BORDER_REFLECT_101)
    assert np.may_share_memory(written, pixels), "OpenCV did not write into the buffer that it was given"
