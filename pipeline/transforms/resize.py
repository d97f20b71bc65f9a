"""Resizing: Pillow's antialiased result, or one within a level of it at a fraction of the time.

`resize_exact` is Pillow's BILINEAR, a triangle filter as wide as the shrink factor f, and `fused.py` has the same in
native code. `resize_fast` builds the same amount of smoothing from passes that OpenCV vectorises: 2 x 2 averages while
f is large, a Gaussian for what is missing, and bilinear sampling. What they differ by is measured in docs/pixels.md.

Importing this module calls `cv2.setNumThreads(0)`: parallelism is the loader's, one image a thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import Scratch
from pipeline.transforms.geometry import Box

cv2.setNumThreads(0)

T = TypeVar("T", float, NDArray[np.float64])

# Averaging 2 x 2 pixels makes the rest four times cheaper, and is a coarser filter than the triangle. It is used
# where both axes shrink by at least this much; at smaller factors the difference shows (2.0: worst image 5 levels).
_MIN_FIRST_HALVING, _MIN_NEXT_HALVING = 3.3, 4.0

# Smoothing below this variance (pixels^2, f < 1.1) changes the result by less than 0.01 levels.
_MIN_VARIANCE = 0.065

# Bilinear sampling smooths by 1/6 on average over where samples fall between pixels, by less where f is near a whole
# number. A little more smoothing than the formula's brings mean and worst image down by 3 %.
_EXTRA_VARIANCE = 0.03

# The most that three taps can do is 2/3; near it the kernel is a box rather than a bell.
_MAX_THREE_TAP_VARIANCE = 0.6


def resize_exact(image: NDArray[np.uint8], box: Box, out: NDArray[np.uint8]) -> None:
    """Resize `box` of `image` (H, W, 3) into `out` (h, w, 3) as Pillow's BILINEAR does, antialiased.

    Pixels of `image` around the box are filtered in at its edges, so cut `image` first where they must not be.
    """
    height, width = out.shape[:2]
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=edges)
    np.copyto(out, np.asarray(resized))


def resize_fast(image: NDArray[np.uint8], box: Box, out: NDArray[np.uint8], scratch: Scratch) -> None:
    """Resize `box` of `image` (H, W, 3) into `out` (h, w, 3), smoothed as much as `resize_exact` would.

    `out` is C-contiguous uint8 and outside `scratch`'s "smooth", "half" and "quarter".
    """
    height, width = out.shape[:2]
    halvings = _num_halvings(min(box.height / height, box.width / width))
    image = _halved(image, halvings, scratch)
    box = Box(*(edge / (1 << halvings) for edge in box))
    pitch_y, pitch_x = box.height / height, box.width / width
    image = _smoothed(image, _missing_variance(pitch_y, halvings), _missing_variance(pitch_x, halvings), scratch)
    _sample(image, box, pitch_y, pitch_x, out)


def resize_crops_fast(
    images: Sequence[NDArray[np.uint8]], boxes: NDArray[np.int64], out: NDArray[np.uint8], scratch: Scratch
) -> None:
    """`resize_fast` of each image's whole-pixel box, cut out first, into n rows `out` (n, h, w, 3).

    The same calls of OpenCV with the same arguments; what needs neither halving nor smoothing is known at once.
    """
    pitches = boxes[:, 2:] / out.shape[1:3]
    are_plain = np.all(_missing_variance(pitches, 0) < _MIN_VARIANCE, axis=1).tolist()
    ends = boxes[:, :2] + boxes[:, 2:]
    edges, factors = np.hstack([boxes[:, :2], ends]).tolist(), (1 / pitches).tolist()
    for image, (top, left, bottom, right), (fy, fx), is_plain, row in zip(
        images, edges, factors, are_plain, out, strict=True
    ):
        crop = image[top:bottom, left:right]
        if is_plain:
            sampled = cv2.resize(crop, None, row, fx, fy, cv2.INTER_LINEAR)
            assert sampled is row, "OpenCV did not write into the row that it was given"
        else:
            resize_fast(crop, Box(0, 0, bottom - top, right - left), row, scratch)


def _num_halvings(shrink: float) -> int:
    halvings = 0
    while shrink >= (_MIN_NEXT_HALVING if halvings else _MIN_FIRST_HALVING):
        shrink /= 2
        halvings += 1
    return halvings


def _halved(image: NDArray[np.uint8], halvings: int, scratch: Scratch) -> NDArray[np.uint8]:
    """`image` averaged over 2 x 2 pixels `halvings` times; a remainder at the right and bottom edge is left out."""
    height, width = (side >> halvings << halvings for side in image.shape[:2])
    image = image[:height, :width]
    for halving in range(halvings):
        height, width = height // 2, width // 2
        half = scratch.pixels("quarter" if halving % 2 else "half", (height, width, 3))
        image = _in_place(cv2.resize(image, (width, height), dst=half, interpolation=cv2.INTER_AREA), half)
    return image


def _missing_variance(pitch: T, halvings: int) -> T:
    """What a Gaussian must add, in pixels^2, for samples `pitch` pixels apart after `halvings`.

    The triangle of half-width f has variance f^2 / 6; bilinear sampling brings 1/6 and averaging over n pixels
    (1 - 1/n^2) / 12, all in pixels of the halved image.
    """
    return (pitch * pitch - 1) / 6 - (1 - 0.25**halvings) / 12 + _EXTRA_VARIANCE


def _smoothed(image: NDArray[np.uint8], variance_y: float, variance_x: float, scratch: Scratch) -> NDArray[np.uint8]:
    taps_y, sigma_y = _gaussian(variance_y)
    taps_x, sigma_x = _gaussian(variance_x)
    if taps_y == taps_x == 1:
        return image
    smooth = scratch.pixels("smooth", image.shape)
    blurred = cv2.GaussianBlur(
        image, (taps_x, taps_y), sigma_x, dst=smooth, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
    )
    return _in_place(blurred, smooth)


def _gaussian(variance: float) -> tuple[int, float]:
    """Taps and sigma of the kernel [.. e^(-x^2 / 2 sigma^2) ..] that has `variance` once cut off and normalised."""
    if variance < _MIN_VARIANCE:
        return 1, 1.0
    if variance <= _MAX_THREE_TAP_VARIANCE:
        # three taps [a, 1 - 2a, a] have variance 2a
        return 3, math.sqrt(-0.5 / math.log(variance / 2 / (1 - variance)))
    sigma = math.sqrt(variance)
    return 2 * math.ceil(2.2 * sigma) + 1, sigma


def _sample(image: NDArray[np.uint8], box: Box, pitch_y: float, pitch_x: float, out: NDArray[np.uint8]) -> None:
    """Fill `out` with bilinear samples of `image`, `pitch` pixels apart, that cover `box`."""
    height, width = out.shape[:2]
    starts_at_corner = box.top == box.left == 0
    # Given a factor and no size, OpenCV keeps the pitch exact where the image is a part of a pixel larger or smaller
    # than the box, and rounds the size, which must therefore come out as wanted.
    excess = (image.shape[0] / pitch_y - height, image.shape[1] / pitch_x - width)
    if starts_at_corner and max(map(abs, excess)) < 0.49:
        sampled = cv2.resize(image, None, dst=out, fx=1 / pitch_x, fy=1 / pitch_y, interpolation=cv2.INTER_LINEAR)
    else:
        # centres of output pixels to centres of input pixels, both counted from 0; three times slower
        to_input = np.array([[pitch_x, 0, box.left + (pitch_x - 1) / 2], [0, pitch_y, box.top + (pitch_y - 1) / 2]])
        sampled = cv2.warpAffine(
            image,
            to_input,
            (width, height),
            dst=out,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    _in_place(sampled, out)


def _in_place(result: NDArray[np.uint8], buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`buffer`, after making sure that OpenCV wrote into it: given a wrong shape or type it silently allocates."""
    assert np.may_share_memory(result, buffer), "OpenCV did not write into the buffer that it was given"
    return buffer
