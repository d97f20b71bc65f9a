"""One sample from encoded bytes, or pixels, to its row of a batch: decode, crop, resize, flip, colour, normalise."""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms
from pipeline.decode import ImageInfo, Scratch, decode, inspect
from pipeline.stats import StageClock
from pipeline.transforms.colour import ColourJitter, WorkerColour
from pipeline.transforms.geometry import (
    RANDOM_CROP_DRAWS,
    Box,
    centre_crop,
    cut,
    denominator_for,
    limit_side,
    random_resized_crop,
    scaled_down,
)
from pipeline.transforms.normalise import Normaliser
from pipeline.transforms.resize import resize_exact, resize_fast


def shrink_to(pixels: NDArray[np.uint8], max_side: int | None) -> NDArray[np.uint8]:
    """What `max_side` makes of a decoded image: new memory, or `pixels` itself if it is no larger than that.

    Always antialiased as `resize_exact`, whatever `resize` is: a store keeps the result for every transform.
    """
    height, width = pixels.shape[:2]
    reduced = limit_side(height, width, max_side)
    return pixels if reduced == (height, width) else _reduced(pixels, Box(0, 0, height, width), reduced)


def _reduced(pixels: NDArray[np.uint8], whole: Box, shape: tuple[int, int]) -> NDArray[np.uint8]:
    out = np.empty((*shape, 3), np.uint8)
    resize_exact(pixels, whole, out)
    return out


def flip_column(options: Transforms) -> int | None:
    """The column of draws that decides about the flip; None when nothing is flipped."""
    return RANDOM_CROP_DRAWS if options.augment != "none" and options.flip > 0 else None


def colour_column(options: Transforms) -> int:
    """The first column of draws that colour uses: after the crop's and the flip's."""
    if options.augment == "none":
        return 0
    return RANDOM_CROP_DRAWS + (flip_column(options) is not None)


class _Plan(NamedTuple):
    """What becomes of one image, known before it is decoded."""

    denominator: int
    """The scale to decode at is 1 / this."""
    whole: Box
    """The whole image, in decoded pixels: not a whole number of them where the scale does not divide it."""
    reduced: tuple[int, int] | None
    """Height and width that `max_side` reduces the decoded image to; None when it stays as it is."""
    box: Box
    """The part to show, in pixels of the reduced image or else of the decoded one."""


class SampleTransform:
    """Turns one sample into its row; picklable, free of torch, and safe to call from many threads.

    With `normalise` a row is float32, coloured and normalised, of `memory_format`; without it a row is uint8
    (size, size, 3), cropped and flipped, and `device.BatchTransform` does the rest from the same draws.
    Columns of `draws`: the crop's 22, the flip's 1, then one for each colour operation that is on; no column is there
    for what is off, and none at all when `augment` is none.
    """

    def __init__(self, options: Transforms, *, normalise: bool, memory_format: str = "channels_last") -> None:
        if memory_format not in ("channels_last", "contiguous"):
            raise ValueError(f"memory_format must be channels_last or contiguous, got {memory_format!r}")
        self._options = options = options.resolved()
        self._augment = options.augment != "none"
        self._fast = options.resize == "fast"
        self._scaled = options.decode == "scaled"
        self._flip_column = flip_column(options)
        jitter = ColourJitter(options, first_column=colour_column(options))
        self.num_draws = colour_column(options) + jitter.num_draws
        size = options.size
        planes = normalise and memory_format == "contiguous"
        self._resized_shape = (size, size, 3)
        self.channels_last = not planes
        self.row_shape = (3, size, size) if planes else (size, size, 3)
        self.row_dtype = np.dtype(np.float32 if normalise else np.uint8)
        self._normaliser = Normaliser(options.mean, options.std, memory_format) if normalise else None
        self._colour = WorkerColour(jitter, size, memory_format) if normalise and jitter.num_draws else None

    def __call__(
        self,
        sample: bytes | NDArray[np.uint8],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the row of `sample`, encoded or upright RGB (H, W, 3), into `out` of `row_shape` and `row_dtype`.

        `draws` are the sample's `num_draws` uniforms, `scratch` is the calling thread's.

        Raises:
            ValueError: `sample` cannot be decoded; the message says why.
        """
        started = perf_counter()
        if isinstance(sample, np.ndarray):
            pixels = sample
            plan = self._plan(ImageInfo(pixels.shape[0], pixels.shape[1]), draws, scaled=False)
        else:
            info = inspect(sample)
            plan = self._plan(info, draws, scaled=self._scaled)
            pixels = decode(sample, info, scratch, denominator=plan.denominator)
            decoded = perf_counter()
            if clock is not None:
                clock.add("decode", decoded - started)
            started = decoded
        self._make_row(pixels, plan, draws, out, scratch)
        if clock is not None:
            clock.add("transform", perf_counter() - started)

    def _plan(self, info: ImageInfo, draws: NDArray[np.float64], *, scaled: bool) -> _Plan:
        """What to decode and what to cut of an image; at a smaller scale where `scaled` allows it."""
        options = self._options
        reduced = limit_side(info.height, info.width, options.max_side)
        if self._augment:
            crop_draws = draws[:RANDOM_CROP_DRAWS].tolist()
            box = random_resized_crop(*reduced, crop_draws, scale=options.scale, ratio=options.ratio)
        else:
            box = centre_crop(*reduced, size=options.size, resize_ratio=options.resize_ratio)
        whole = Box(0, 0, info.height, info.width)
        if reduced != (info.height, info.width):
            denominator = denominator_for(whole, *reduced) if scaled else 1
            return _Plan(denominator, scaled_down(whole, denominator, info.corner(denominator)), reduced, box)
        denominator = denominator_for(box, options.size, options.size) if scaled else 1
        return _Plan(denominator, whole, None, scaled_down(box, denominator, info.corner(denominator)))

    def _make_row(
        self,
        pixels: NDArray[np.uint8],
        plan: _Plan,
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
    ) -> None:
        if plan.reduced is not None:
            pixels = _reduced(pixels, plan.whole, plan.reduced)
        # A training crop ends at its edge, as if cut out first; evaluation resizes first and sees around its crop.
        view, box = cut(pixels, plan.box) if self._augment else (pixels, plan.box)
        resized = out if self._normaliser is None else scratch.pixels("resized", self._resized_shape)
        self._resize(view, box, resized, scratch)
        if self._flip_column is not None and draws[self._flip_column] < self._options.flip:
            flipped = cv2.flip(resized, 1, dst=resized)
            assert np.may_share_memory(flipped, resized), "OpenCV did not flip in place"
        if self._colour is not None:
            self._colour(resized, draws, out, scratch)
        elif self._normaliser is not None:
            self._normaliser(resized, out, scratch)

    def _resize(self, image: NDArray[np.uint8], box: Box, out: NDArray[np.uint8], scratch: Scratch) -> None:
        if self._fast:
            resize_fast(image, box, out, scratch)
        else:
            resize_exact(image, box, out)
