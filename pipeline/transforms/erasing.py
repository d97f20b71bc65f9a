"""A rectangle of some samples, erased: Zhong and others, "Random Erasing Data Augmentation", AAAI 2020."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms


class Erasing:
    """With probability `erasing` a rectangle becomes the mean colour; five draws, none when it is off.

    Its area is uniform in `erasing_scale`, a part of the image's, the logarithm of height / width in `erasing_ratio`,
    as in torchvision's `RandomErasing` of normalised images with value 0; but a rectangle that does not fit is cut to
    the image's side, where torchvision draws again.
    """

    def __init__(self, options: Transforms, *, first_column: int) -> None:
        self.num_draws = 5 if options.erasing > 0 and options.augment != "none" else 0
        self._columns = slice(first_column, first_column + 5)
        self._probability = options.erasing
        self._scale = options.erasing_scale
        self._log_ratio = np.log(options.erasing_ratio)
        self._side = options.size

    def boxes(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows (m,) of `draws` (B, columns) that lose a part, and top, left, bottom, right of it (m, 4)."""
        if not self.num_draws:
            return np.empty(0, np.int64), np.empty((0, 4), np.int64)
        decides, area, shape, top, left = draws[:, self._columns].T
        rows = np.flatnonzero(decides < self._probability)
        areas = self._side**2 * (self._scale[0] + (self._scale[1] - self._scale[0]) * area[rows])
        ratios = np.exp(self._log_ratio[0] + (self._log_ratio[1] - self._log_ratio[0]) * shape[rows])
        sides = np.rint(np.sqrt([areas * ratios, areas / ratios])).clip(0, self._side)
        corners = np.floor(np.array([top[rows], left[rows]]) * (self._side - sides + 1))
        return rows, np.concatenate([corners, corners + sides]).T.astype(np.int64)
