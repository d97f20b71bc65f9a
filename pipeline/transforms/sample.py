"""One sample from encoded bytes, or pixels, to its row of a batch: decode, crop, resize, flip, colour, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError, Transforms
from pipeline.decode import ImageInfo, Rendering, Scratch, count_decoded, decode, inspect
from pipeline.native import kernel, why_not
from pipeline.orientation import Part
from pipeline.stats import StageClock
from pipeline.transforms.finish import Finish, WorkerFinish
from pipeline.transforms.geometry import (
    RANDOM_CROP_DRAWS,
    Box,
    centre_crop,
    cut,
    denominator_for,
    limit_side,
    random_resized_crop,
    random_resized_crops,
    scaled_down,
    touched,
)
from pipeline.transforms.normalise import Normaliser
from pipeline.transforms.policy import DrawnPolicy
from pipeline.transforms.resize import resize_crops_fast, resize_crops_fused, resize_exact, resize_fast, resize_fused

# Images and rows up to this side are made many at a time: a call by itself takes as long as their pixels do. So many
# at a time, for what they are made in stays in the processor's cache then, and more would save nothing more.
_TINY_SIDE = 64
_TINY_ROWS = 64


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


def _mirror(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
    """Exchange left and right of those `rows` of `images` (n, h, w, 3)."""
    if len(rows) == 0:
        return
    mirrored = images if len(images) == 1 else images[rows]
    lines = mirrored.reshape(-1, *images.shape[2:])  # those of all of them, for one call
    written = cv2.flip(lines, 1, dst=lines)
    assert np.may_share_memory(written, mirrored), "OpenCV did not flip in place"
    if mirrored is not images:
        images[rows] = mirrored


def flip_column(options: Transforms) -> int | None:
    """The column of draws that decides about the flip; None when nothing is flipped."""
    return RANDOM_CROP_DRAWS if options.augment != "none" and options.flip > 0 else None


def policy_and_finish(options: Transforms) -> tuple[DrawnPolicy, Finish]:
    """What `options` do to a crop; their draws come after the crop's and the flip's, in this order."""
    column = RANDOM_CROP_DRAWS + (flip_column(options) is not None) if options.augment != "none" else 0
    policy = DrawnPolicy(options, first_column=column)
    return policy, Finish(options, first_column=column + policy.num_draws)


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


def rendering_of(options: Transforms) -> Rendering:
    """How `options` have pixels become RGB."""
    red, green, blue = options.background
    return Rendering(background=(red, green, blue), converts_profiles=options.icc == "convert")


class SampleTransform:
    """Turns one sample into its row; picklable, free of torch, and safe to call from many threads.

    With `normalise` a row is float32, coloured and normalised, of `memory_format`; without it a row is uint8
    (size, size, 3), cropped and flipped, and `device.BatchTransform` does the rest from the same draws.
    Columns of `draws`: the crop's 22, the flip's 1, the policy's 3 or 4, then one for each colour operation that is on,
    the blur's 2, the erasing's 5; no column is there for what is off, and none at all when `augment` is none.
    """

    def __init__(self, options: Transforms, *, normalise: bool, memory_format: str = "channels_last") -> None:
        if memory_format not in ("channels_last", "contiguous"):
            raise ValueError(f"memory_format must be channels_last or contiguous, got {memory_format!r}")
        self._options = options = options.resolved()
        self._augment = options.augment != "none"
        self._fast, self._fused = options.resize == "fast", options.resize == "fused"
        if self._fused and kernel is None:
            raise ConfigError(
                f"transforms.resize=fused needs the native kernel, which is {why_not}; or use fast or auto"
            )
        self._scaled = options.decode == "scaled"
        self._rendering = rendering_of(options)
        self._flip_column = flip_column(options)
        self._policy, finish = policy_and_finish(options)
        self.num_draws = finish.end_column
        size = options.size
        planes = normalise and memory_format == "contiguous"
        self._resized_shape = (size, size, 3)
        self.channels_last = not planes
        self.row_shape = (3, size, size) if planes else (size, size, 3)
        self.row_dtype = np.dtype(np.float32 if normalise else np.uint8)
        self._normaliser = Normaliser(options.mean, options.std, memory_format) if normalise else None
        self._finisher = WorkerFinish(finish, size, memory_format) if normalise and finish.num_draws else None
        is_last = self._fused and self._finisher is None and self._policy.num_draws == 0
        self._last_table = self._normaliser.table if self._normaliser is not None and is_last else None
        """Of the resize's own output; None where something comes between it and normalising."""
        takes_tiny = size <= _TINY_SIDE
        self.most_rows = _TINY_ROWS if takes_tiny else 1
        self._most_side = min(_TINY_SIDE, options.max_side or _TINY_SIDE) if takes_tiny else 0

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
            pixels = decode(
                sample,
                info,
                scratch,
                denominator=plan.denominator,
                rendering=self._rendering,
                part=self._part(plan, info),
            )
            decoded = perf_counter()
            if clock is not None:
                count_decoded(clock, info, decoded - started)
            started = decoded
        rows = self._room(out[None], scratch)
        are_mirrored = self._mirrored(draws[None])
        self._crop_and_resize(pixels, plan, rows[0], scratch, is_mirrored=bool(are_mirrored[0]))
        self._finish(rows, draws[None], are_mirrored, out[None], scratch)
        if clock is not None:
            clock.add("transform", perf_counter() - started)

    def takes(self, sample: bytes | NDArray[np.uint8]) -> bool:
        """Whether `sample` can be one of `many`."""
        return isinstance(sample, np.ndarray) and sample.ndim == 3 and max(sample.shape) <= self._most_side

    def many(
        self,
        samples: Sequence[NDArray[np.uint8]],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the rows of up to `most_rows` samples that it `takes`: the bytes that each by itself would have."""
        started = perf_counter()
        rows = self._room(out, scratch)
        are_mirrored = self._mirrored(draws)
        if self._augment and (self._fast or self._fused):
            heights, widths = np.array([sample.shape[:2] for sample in samples]).T
            boxes = random_resized_crops(heights, widths, draws, scale=self._options.scale, ratio=self._options.ratio)
            if self._fused:
                resize_crops_fused(samples, boxes, rows, are_mirrored, self._last_table)
            else:
                resize_crops_fast(samples, boxes, rows, scratch)
        else:
            for pixels, own_draws, row, is_mirrored in zip(samples, draws, rows, are_mirrored.tolist(), strict=True):
                plan = self._plan(ImageInfo(pixels.shape[0], pixels.shape[1]), own_draws, scaled=False)
                self._crop_and_resize(pixels, plan, row, scratch, is_mirrored=is_mirrored)
        self._finish(rows, draws, are_mirrored, out, scratch)
        if clock is not None:
            clock.add("transform", perf_counter() - started, len(samples))

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

    def _part(self, plan: _Plan, info: ImageInfo) -> Part | None:
        """The part of the decoded image that will be looked at; None for all of it."""
        if plan.reduced is not None or not self._augment:
            return None
        return touched(plan.box, -(-info.height // plan.denominator), -(-info.width // plan.denominator))

    def _room(self, out: NDArray[Any], scratch: Scratch) -> NDArray[Any]:
        """Where the resized pixels of rows `out` go: there, where nothing is left to do to them but to flip them."""
        if self._normaliser is None or self._last_table is not None:
            return out
        return scratch.pixels("resized", (len(out), *self._resized_shape))

    def _mirrored(self, draws: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of n samples are flipped."""
        if self._flip_column is None:
            return np.zeros(len(draws), np.bool_)
        mirrored: NDArray[np.bool_] = draws[:, self._flip_column] < self._options.flip
        return mirrored

    def _crop_and_resize(
        self, pixels: NDArray[np.uint8], plan: _Plan, row: NDArray[Any], scratch: Scratch, *, is_mirrored: bool
    ) -> None:
        """Make `row` of what `plan` shows; only `fused` mirrors, and only it has floats where `_last_table` is."""
        if plan.reduced is not None:
            pixels = _reduced(pixels, plan.whole, plan.reduced)
        # A training crop ends at its edge, as if cut out first; evaluation resizes first and sees around its crop.
        view, box = cut(pixels, plan.box) if self._augment else (pixels, plan.box)
        if self._fused:
            resize_fused(view, box, row, is_mirrored=is_mirrored, table=self._last_table)
        elif self._fast:
            resize_fast(view, box, row, scratch)
        else:
            resize_exact(view, box, row)

    def _finish(
        self,
        rows: NDArray[np.uint8],
        draws: NDArray[np.float64],
        are_mirrored: NDArray[np.bool_],
        out: NDArray[Any],
        scratch: Scratch,
    ) -> None:
        """Flip n rows, do what the policy draws, colour and normalise; what the resize has not done already."""
        if not self._fused:
            _mirror(rows, np.flatnonzero(are_mirrored))
        if self._policy.num_draws:
            for pixels, own in zip(rows, draws, strict=True):
                self._policy(pixels, own)
        if self._finisher is not None:
            self._finisher(rows, draws, out, scratch)
        elif self._normaliser is not None and self._last_table is None:
            self._normaliser(rows, out, scratch)
