"""What to decode and what to show of an image, from its header and its draws."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms
from pipeline.decode import ImageInfo
from pipeline.orientation import Part
from pipeline.transforms.geometry import (
    RANDOM_CROP_DRAWS,
    Box,
    centre_crop,
    denominator_for,
    limit_side,
    random_resized_crop,
    scaled_down,
    touched,
)


class Plan(NamedTuple):
    """What becomes of one image, known before it is decoded."""

    info: ImageInfo
    denominator: int
    """The scale to decode at is 1 / this."""
    whole: Box
    """The whole image, in decoded pixels: not a whole number of them where the scale does not divide it."""
    reduced: tuple[int, int] | None
    """Height and width that `max_side` reduces the decoded image to; None when it stays as it is."""
    box: Box
    """The part to show, in pixels of the reduced image or else of the decoded one."""

    @property
    def decoded_shape(self) -> tuple[int, int]:
        """Height and width of what is decoded."""
        return -(-self.info.height // self.denominator), -(-self.info.width // self.denominator)

    def part(self) -> Part | None:
        """The part of the decoded image that a random crop looks at; None where all of it is reduced first."""
        return None if self.reduced is not None else touched(self.box, *self.decoded_shape)


def plan_crop(options: Transforms, info: ImageInfo, draws: NDArray[np.float64], *, is_scaled: bool) -> Plan:
    """By `options`; at a smaller scale where `is_scaled` allows it."""
    reduced = limit_side(info.height, info.width, options.max_side)
    if options.augment != "none":
        crop_draws = draws[:RANDOM_CROP_DRAWS].tolist()
        box = random_resized_crop(*reduced, crop_draws, scale=options.scale, ratio=options.ratio)
    else:
        box = centre_crop(*reduced, size=options.size, resize_ratio=options.resize_ratio)
    whole = Box(0, 0, info.height, info.width)
    if reduced != (info.height, info.width):
        denominator = denominator_for(whole, *reduced) if is_scaled else 1
        return Plan(info, denominator, scaled_down(whole, denominator, info.corner(denominator)), reduced, box)
    denominator = denominator_for(box, options.size, options.size) if is_scaled else 1
    if denominator > 1:
        box = scaled_down(box, denominator, info.corner(denominator))
    return Plan(info, denominator, whole, None, box)
