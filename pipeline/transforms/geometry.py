"""Where to cut: random resized crops from a sample's own draws, evaluation's centre crop, and maps between scales.

A `Box` is in pixels, edges and not centres: the whole of an image is `Box(0, 0, height, width)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import DENOMINATORS
from pipeline.orientation import Part

_NUM_TRIES = 10

# From a half; a side's error is some 1e-15 of it, far less than the rest.
_SURE_ROUNDING = 0.5 - 1e-6

RANDOM_CROP_DRAWS = 2 * _NUM_TRIES + 2
"""Draws of `random_resized_crop`: area and shape of each of ten tries, then top and left of the one that fits."""


class Box(NamedTuple):
    """A rectangle in an image, in pixels; whole numbers unless it was mapped from another scale."""

    top: float
    left: float
    height: float
    width: float


def random_resized_crop(
    height: int, width: int, draws: Sequence[float], *, scale: Sequence[float], ratio: Sequence[float]
) -> Box:
    """Torchvision's `RandomResizedCrop.get_params`, from `RANDOM_CROP_DRAWS` uniforms in [0, 1).

    Area is uniform in `scale` (part of the image's), the logarithm of width / height in `ratio`. When no try of ten
    fits into the image, the largest centred crop whose shape is within `ratio` is taken.
    """
    area = height * width
    low_area, area_span = scale[0] * area, (scale[1] - scale[0]) * area
    low_shape = math.log(ratio[0])
    shape_span = math.log(ratio[1]) - low_shape
    for attempt in range(0, 2 * _NUM_TRIES, 2):
        crop_area = low_area + area_span * draws[attempt]
        shape = math.exp(low_shape + shape_span * draws[attempt + 1])
        crop_width = round(math.sqrt(crop_area * shape))
        crop_height = round(math.sqrt(crop_area / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws[-2] * (height - crop_height + 1))
            left = int(draws[-1] * (width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    return _largest_centred(height, width, ratio)


def random_resized_crops(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    draws: NDArray[np.float64],
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> NDArray[np.int64]:
    """What `random_resized_crop` gives for each of n images, from rows of draws: (n, 4), a row a `Box`."""
    sides = np.array([heights, widths])
    area = sides[0] * sides[1]
    crop_area = scale[0] * area + (scale[1] - scale[0]) * area * draws[:, 0]
    low_shape = math.log(ratio[0])
    shape = np.exp(low_shape + (math.log(ratio[1]) - low_shape) * draws[:, 1])
    exact = np.sqrt([crop_area / shape, crop_area * shape])
    crop = np.rint(exact)
    corners = draws[:, RANDOM_CROP_DRAWS - 2 : RANDOM_CROP_DRAWS].T * (sides - crop + 1)
    boxes: NDArray[np.int64] = np.concatenate([corners, crop]).astype(np.int64).T
    # NumPy's exp and math's may differ in the last bit: where that could decide the rounding, only one may be asked.
    sure = (np.abs(exact - crop) < _SURE_ROUNDING) & (crop > 0) & (crop <= sides)
    for row in np.flatnonzero(~sure.all(axis=0)).tolist():
        height, width = sides[:, row].tolist()
        boxes[row] = random_resized_crop(
            height, width, draws[row, :RANDOM_CROP_DRAWS].tolist(), scale=scale, ratio=ratio
        )
    return boxes


def _largest_centred(height: int, width: int, ratio: Sequence[float]) -> Box:
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = max(1, round(height * ratio[1]))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def centre_crop(height: int, width: int, *, size: int, resize_ratio: float) -> Box:
    """The part of the image that torchvision's `Resize(round(size * resize_ratio))`, `CenterCrop(size)` shows.

    Resizing that part alone gives the same pixels. Its rounding is torchvision's: the long side is cut to a whole
    number, and the crop starts on a whole pixel of the resized image.
    """
    short = round(size * resize_ratio)
    if height <= width:
        new_height, new_width = short, int(short * width / height)
    else:
        new_height, new_width = int(short * height / width), short
    pitch_y, pitch_x = height / new_height, width / new_width
    top, left = round((new_height - size) / 2) * pitch_y, round((new_width - size) / 2) * pitch_x
    # min(): the product may exceed the edge by a rounding error, which Pillow refuses
    return Box(top, left, min(size * pitch_y, height - top), min(size * pitch_x, width - left))


def limit_side(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Height and width after the longer side is reduced to `max_side`; unchanged if none or no longer than that."""
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return height, width
    return max(1, round(height * max_side / longest)), max(1, round(width * max_side / longest))


def denominator_for(box: Box, height: int, width: int) -> int:
    """The coarsest scale to decode at, 1/1 to 1/8, at which `box` still has `height` x `width` pixels or more."""
    return max((d for d in DENOMINATORS if box.height >= d * height and box.width >= d * width), default=1)


def scaled_down(box: Box, denominator: int, corner: tuple[float, float]) -> Box:
    """Where `box` of the full image lies in the image decoded at 1/`denominator`; not on whole pixels in general.

    `corner` is where the full image begins in the decoded one (`ImageInfo.corner`).
    """
    if denominator == 1:
        return box
    top, left, height, width = (edge / denominator for edge in box)
    return Box(top + corner[0], left + corner[1], height, width)


def cut(image: NDArray[np.uint8], box: Box) -> tuple[NDArray[np.uint8], Box]:
    """The pixels of `image` that `box` touches, as a view, and where `box` lies in that view."""
    top, left, height, width = touched(box, *image.shape[:2])
    view = image[top : top + height, left : left + width]
    return view, Box(box.top - top, box.left - left, box.height, box.width)


def touched(box: Box, height: int, width: int) -> Part:
    """Top, left, height and width of the whole pixels of an image of `height` x `width` that `box` touches."""
    top, left = math.floor(box.top), math.floor(box.left)
    bottom, right = math.ceil(box.top + box.height), math.ceil(box.left + box.width)
    return top, left, min(bottom, height) - top, min(right, width) - left
