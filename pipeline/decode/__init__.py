"""Encoded images to RGB pixels, into memory that a thread uses again and again.

Plain JPEGs (YCbCr, grey or RGB) go through libjpeg-turbo by `simplejpeg`, everything else through Pillow. Both give
upright 8-bit RGB; on plain JPEGs they are bit-identical, so which one was used never shows in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.general import Rendering, convert_profile, decode_generally
from pipeline.decode.header import MAX_PIXELS, BadImageError, ImageInfo, inspect
from pipeline.decode.jpeg import decode_jpeg, decode_part
from pipeline.decode.scratch import Scratch, ThreadScratch
from pipeline.orientation import Part, stored_part, swaps_sides, upright
from pipeline.stats import StageClock

__all__ = [
    "DENOMINATORS",
    "MAX_PIXELS",
    "PILLOW",
    "BadImageError",
    "ImageInfo",
    "Rendering",
    "Scratch",
    "ThreadScratch",
    "count_decoded",
    "decode",
    "decode_counted",
    "inspect",
]

# What libjpeg scales by for less work. It offers other eighths too, which take longer than decoding every pixel.
DENOMINATORS = (1, 2, 4, 8)

PILLOW = "decoded_by_pillow"
"""What `Stats` calls images that Pillow decoded; libjpeg-turbo decoded the others."""

_USUAL = Rendering()


def decode(
    data: bytes,
    info: ImageInfo,
    scratch: Scratch,
    *,
    denominator: int = 1,
    rendering: Rendering = _USUAL,
    part: Part | None = None,
) -> NDArray[np.uint8]:
    """Decode `data`, whose header gave `info`, at 1/`denominator` (1, 2, 4 or 8) of its height and width.

    Returns uint8 RGB of (ceil(height / denominator), ceil(width / denominator), 3): usually a view of `scratch`,
    valid until the next decode with it. Each pixel covers a square of `denominator` pixels a side; `info.corner` says
    where the first one begins. Formats without scaled decoding are decoded whole and averaged.
    `rendering` says what becomes of transparency and colour profiles. With `part`, (top, left, height, width) of the
    result, its other pixels may be anything: a native kernel does not make them.

    Raises:
        BadImageError: the image is truncated or damaged; the message says how.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator}")
    height, width = -(-info.height // denominator), -(-info.width // denominator)
    if not info.plain_jpeg:
        general = decode_generally(data, denominator, rendering)
        if general.shape != (height, width, 3):
            raise BadImageError(
                f"its header tells {width} x {height} pixels and behind it {general.shape[1]} x {general.shape[0]}"
            )
        return general
    stored = (width, height, 3) if swaps_sides(info.orientation) else (height, width, 3)
    buffer = scratch.pixels("decoded", stored)
    seen = part or (0, 0, height, width)
    own = stored_part(seen, info.orientation, height, width)
    if part is None or rendering.converts_profiles or not decode_part(data, buffer, denominator, own):
        pixels = decode_jpeg(data, buffer, denominator)
        if pixels.shape != stored or not np.may_share_memory(pixels, buffer):
            raise RuntimeError(f"the JPEG decoder gave {pixels.shape} at 1/{denominator}, expected {stored} in place")
        if rendering.converts_profiles:
            convert_profile(data, pixels)
    if info.orientation == 1:
        return buffer
    turned = scratch.pixels("upright", (height, width, 3))
    upright(_cut(buffer, own), info.orientation, _cut(turned, seen))
    return turned


def _cut(pixels: NDArray[np.uint8], part: Part) -> NDArray[np.uint8]:
    top, left, height, width = part
    return pixels[top : top + height, left : left + width]


def decode_counted(
    sample: bytes | NDArray[np.uint8], scratch: Scratch, clock: StageClock | None, *, rendering: Rendering = _USUAL
) -> NDArray[np.uint8]:
    """The pixels of `sample`: itself if it is pixels, else decoded whole, and counted where there is a clock.

    Raises:
        BadImageError: the image cannot be decoded; the message says why.
    """
    if isinstance(sample, np.ndarray):
        return sample
    started = perf_counter()
    info = inspect(sample)
    pixels = decode(sample, info, scratch, rendering=rendering)
    if clock is not None:
        count_decoded(clock, [info], perf_counter() - started)
    return pixels


def count_decoded(clock: StageClock, infos: Sequence[ImageInfo], spent_s: float) -> None:
    """Count images that were decoded in `spent_s` altogether, and by which decoder."""
    clock.add("decode", spent_s, len(infos))
    if by_pillow := sum(not info.plain_jpeg for info in infos):
        clock.tally(PILLOW, by_pillow)
