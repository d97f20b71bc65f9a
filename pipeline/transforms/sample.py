"""One sample from encoded bytes, or pixels, to its row of a batch: decode, crop, resize, flip, colour, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError, Transforms
from pipeline.decode import ImageInfo, Rendering, Scratch, count_decoded, decode, inspect
from pipeline.native import kernel, why_not
from pipeline.stats import StageClock
from pipeline.transforms.finish import Finish, WorkerFinish
from pipeline.transforms.fused import JpegCrop, Levels, crop_jpegs, resize_crops_fused, resize_fused
from pipeline.transforms.geometry import (
    RANDOM_CROP_DRAWS,
    Box,
    cut,
    limit_side,
    random_resized_crops,
)
from pipeline.transforms.normalise import Normaliser
from pipeline.transforms.plan import Plan, plan_crop
from pipeline.transforms.policy import DrawnPolicy
from pipeline.transforms.resize import resize_crops_fast, resize_exact, resize_fast

# Images and rows up to this side are made many at a time: a call by itself takes as long as their pixels do. So many
# at a time, for what they are made in stays in the processor's cache then, and more would save nothing more.
_TINY_SIDE = 64
_TINY_ROWS = 64

# Encoded images are made so many by one native call, which costs Python next to nothing an image; of larger ones that
# is no part of their time, and they would have to wait in memory for each other.
_ENCODED_ROWS = 8
_MOST_ENCODED_BYTES = 256 << 10


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
        self._levels = Levels(self._normaliser.table, planes) if self._normaliser is not None and is_last else None
        """Of the resize's own output; None where something comes between it and normalising."""
        takes_tiny = size <= _TINY_SIDE
        self._crops_natively = self._fused and self._augment and not self._rendering.converts_profiles
        self.most_rows = _TINY_ROWS if takes_tiny else _ENCODED_ROWS if self._crops_natively else 1
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
        self.many((sample,), draws[None], out[None], scratch, clock)

    def takes(self, sample: bytes | NDArray[np.uint8]) -> bool:
        """Whether `sample` can be one of `many`, with others of its kind, encoded or pixels."""
        if isinstance(sample, bytes):
            return self._crops_natively and len(sample) <= _MOST_ENCODED_BYTES
        return sample.ndim == 3 and max(sample.shape) <= self._most_side

    def many(
        self,
        samples: Sequence[bytes | NDArray[np.uint8]],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the rows of up to `most_rows` samples that it `takes`: the bytes that each by itself would have."""
        started = perf_counter()
        rows = self._room(out, scratch)
        are_mirrored = self._mirrored(draws)
        encoded = [sample for sample in samples if isinstance(sample, bytes)]
        if encoded:
            decode_s = self._crop_encoded(encoded, draws, rows, are_mirrored.tolist(), scratch, clock)
        else:
            decode_s = 0.0
            images = [sample for sample in samples if isinstance(sample, np.ndarray)]
            self._crop_pixels(images, draws, rows, are_mirrored, scratch)
        self._finish(rows, draws, are_mirrored, out, scratch)
        if clock is not None:
            clock.add("transform", perf_counter() - started - decode_s, len(samples))

    def _crop_pixels(
        self,
        images: Sequence[NDArray[np.uint8]],
        draws: NDArray[np.float64],
        rows: NDArray[Any],
        are_mirrored: NDArray[np.bool_],
        scratch: Scratch,
    ) -> None:
        """Make `rows` of decoded `images`."""
        if len(images) > 1 and self._augment and (self._fast or self._fused):
            heights, widths = np.array([pixels.shape[:2] for pixels in images]).T
            boxes = random_resized_crops(heights, widths, draws, scale=self._options.scale, ratio=self._options.ratio)
            if self._fused:
                resize_crops_fused(images, boxes, rows, are_mirrored, self._levels)
            else:
                resize_crops_fast(images, boxes, rows, scratch)
            return
        for pixels, own_draws, row, is_mirrored in zip(images, draws, rows, are_mirrored.tolist(), strict=True):
            plan = plan_crop(self._options, ImageInfo(*pixels.shape[:2]), own_draws, is_scaled=False)
            self._crop_and_resize(pixels, plan, row, scratch, is_mirrored=is_mirrored)

    def _crop_encoded(
        self,
        samples: Sequence[bytes],
        draws: NDArray[np.float64],
        rows: NDArray[Any],
        are_mirrored: list[bool],
        scratch: Scratch,
        clock: StageClock | None,
    ) -> float:
        """Make `rows` of encoded `samples`; gives the seconds of it that decoding took."""
        started = perf_counter()
        infos = [inspect(sample) for sample in samples]
        decode_s = perf_counter() - started
        plans = [
            plan_crop(self._options, info, own, is_scaled=self._scaled) for info, own in zip(infos, draws, strict=True)
        ]
        crops = self._native_crops(samples, plans, are_mirrored)
        are_made, native_s = crop_jpegs(crops, rows, scratch, self._levels) if crops else (set[int](), 0.0)
        decode_s += native_s
        for number, (sample, plan) in enumerate(zip(samples, plans, strict=True)):
            if number in are_made:
                continue
            started = perf_counter()
            pixels = decode(
                sample,
                plan.info,
                scratch,
                denominator=plan.denominator,
                rendering=self._rendering,
                part=plan.part() if self._augment else None,
            )
            decode_s += perf_counter() - started
            self._crop_and_resize(pixels, plan, rows[number], scratch, is_mirrored=are_mirrored[number])
        if clock is not None:
            count_decoded(clock, infos, decode_s)
        return decode_s

    def _native_crops(self, samples: Sequence[bytes], plans: list[Plan], are_mirrored: list[bool]) -> list[JpegCrop]:
        """Those of them that the kernel can make as a whole: upright JPEGs that are not reduced before they are cut."""
        if not self._crops_natively:
            return []
        return [
            JpegCrop(row, samples[row], plan.denominator, *plan.decoded_shape, *plan.box, are_mirrored[row])
            for row, plan in enumerate(plans)
            if plan.info.plain_jpeg and plan.info.orientation == 1 and plan.reduced is None
        ]

    def _room(self, out: NDArray[Any], scratch: Scratch) -> NDArray[Any]:
        """Where the resized pixels of rows `out` go: there, where nothing is left to do to them but to flip them."""
        if self._normaliser is None or self._levels is not None:
            return out
        return scratch.pixels("resized", (len(out), *self._resized_shape))

    def _mirrored(self, draws: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of n samples are flipped."""
        if self._flip_column is None:
            return np.zeros(len(draws), np.bool_)
        mirrored: NDArray[np.bool_] = draws[:, self._flip_column] < self._options.flip
        return mirrored

    def _crop_and_resize(
        self, pixels: NDArray[np.uint8], plan: Plan, row: NDArray[Any], scratch: Scratch, *, is_mirrored: bool
    ) -> None:
        """Make `row` of what `plan` shows; only `fused` mirrors, and only it has floats where `_levels` is."""
        if plan.reduced is not None:
            pixels = _reduced(pixels, plan.whole, plan.reduced)
        # A training crop ends at its edge, as if cut out first; evaluation resizes first and sees around its crop.
        view, box = cut(pixels, plan.box) if self._augment else (pixels, plan.box)
        if self._fused:
            resize_fused(view, box, row, is_mirrored=is_mirrored, levels=self._levels)
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
        elif self._normaliser is not None and self._levels is None:
            self._normaliser(rows, out, scratch)
