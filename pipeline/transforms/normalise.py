"""8-bit pixels to normalised float32 by one table look-up a value, straight into a batch's row."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Scratch
from pipeline.native import kernel


class Normaliser:
    """`(pixel / 255 - mean) / std` per channel, each of the 256 x 3 results computed once in float64.

    A row is float32, (H, W, 3) for `channels_last` and (3, H, W) for `contiguous`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], memory_format: str) -> None:
        levels = np.arange(256)[:, None] / 255
        self.table: NDArray[np.float32] = (
            ((levels - np.asarray(mean)) / np.asarray(std)).astype(np.float32).reshape(256, 1, 3)
        )
        self._tables = [np.ascontiguousarray(self.table[:, 0, channel]) for channel in range(3)]
        self._planes = memory_format == "contiguous"

    def __call__(self, pixels: NDArray[np.uint8], rows: NDArray[np.float32], scratch: Scratch) -> None:
        """Normalise `pixels`, uint8 (n, H, W, 3), into n `rows`."""
        n, height, width, _ = pixels.shape
        joined = pixels.reshape(n * height, width, 3)
        if kernel is not None and self._planes:
            for image, row in zip(pixels, rows, strict=True):
                kernel.look_up(image, self.table, row, True)
        elif kernel is not None:
            target = rows.reshape(joined.shape)
            assert np.may_share_memory(target, rows), "the rows do not follow each other"
            kernel.look_up(joined, self.table, target, False)
        elif self._planes:
            self._planes_by_opencv(joined, rows.reshape(n, 3, height * width), scratch)
        else:
            written = cv2.LUT(joined, self.table, dst=rows.reshape(joined.shape))
            assert np.may_share_memory(written, rows), "OpenCV did not write into the rows that it was given"

    def _planes_by_opencv(self, pixels: NDArray[np.uint8], planes: NDArray[np.float32], scratch: Scratch) -> None:
        plane = scratch.pixels("plane", pixels.shape[:2])
        for channel, table in enumerate(self._tables):
            cv2.extractChannel(pixels, channel, dst=plane)
            written = cv2.LUT(plane.reshape(len(planes), -1), table, dst=planes[:, channel])
            assert np.may_share_memory(written, planes), "OpenCV did not write into the rows that it was given"
