"""The native kernel's resize, alone and together with decoding: rows as they are delivered, in one call or two.

Its filter is `resize_exact`'s; its weights have 14 bits, and each row is rounded to levels before columns are blended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Scratch
from pipeline.native import kernel
from pipeline.transforms.geometry import Box


class Levels(NamedTuple):
    """What becomes of levels where rows are float32."""

    table: NDArray[np.float32]
    """(256, 1, 3), entries by level and channel."""
    is_planar: bool
    """Rows are (3, h, w), else (h, w, 3)."""


class JpegCrop(NamedTuple):
    """What the kernel is told of a row: `box` of `jpeg`, decoded at 1/`denominator` to `height` x `width`."""

    row: int
    jpeg: bytes
    denominator: int
    height: int
    width: int
    top: float
    left: float
    box_height: float
    box_width: float
    is_mirrored: bool


def crop_jpegs(
    crops: Sequence[JpegCrop], rows: NDArray[Any], scratch: Scratch, levels: Levels | None
) -> tuple[set[int], float]:
    """Decode and resize `crops` into their rows of (n, h, w, 3) or (n, 3, h, w), by one call without Python's lock.

    Gives the rows that were made, and the seconds that decoding took. The others' files are ones that libjpeg has
    something to say about: `decode` decides. A crop ends at its edges, as if it had been cut out first.
    """
    assert kernel is not None, "who asks for it has looked"
    frame = scratch.pixels("decoded", (3 * max(crop.height * crop.width for crop in crops),))
    table, is_planar = levels or (None, False)
    are_made, decode_s = kernel.crops(tuple(crops), frame, rows, table, is_planar)
    return {crop.row for crop, is_made in zip(crops, are_made, strict=True) if is_made}, decode_s


def resize_fused(
    image: NDArray[np.uint8],
    box: Box,
    out: NDArray[Any],
    *,
    is_mirrored: bool = False,
    levels: Levels | None = None,
) -> None:
    """Resize `box` of `image` (H, W, 3), perhaps a view whose rows are contiguous, into `out` (h, w, 3).

    Left and right are exchanged if `is_mirrored`. With `levels` `out` is float32. There has to be a kernel.
    """
    assert kernel is not None, "who asks for it has looked"
    table, is_planar = levels or (None, False)
    kernel.resize(image, *box, is_mirrored, out, table, is_planar, False)


def resize_crops_fused(
    images: Sequence[NDArray[np.uint8]],
    boxes: NDArray[np.int64],
    out: NDArray[Any],
    are_mirrored: NDArray[np.bool_],
    levels: Levels | None,
) -> None:
    """`resize_fused` of each image's whole-pixel box, cut out first, into n rows `out`."""
    for image, box, row, is_mirrored in zip(images, boxes.tolist(), out, are_mirrored.tolist(), strict=True):
        top, left, height, width = box
        crop = image[top : top + height, left : left + width]
        resize_fused(crop, Box(0, 0, height, width), row, is_mirrored=is_mirrored, levels=levels)
