"""resize.py and geometry.py: where is cut, and how far pixels are from torchvision's."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from pipeline.decode import Scratch
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
from pipeline.transforms.resize import resize_exact, resize_fast

SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of every scale whose strength falls with frequency as a photograph's does, cut by sharp edges."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    cells, amplitude = 3, 48.0
    while cells < max(height, width):
        noise = rng.standard_normal((max(2, cells * height // width), cells, 3)).astype(np.float32)
        pixels += amplitude * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, amplitude = 2 * cells, 0.7 * amplitude
    for _ in range(12):
        corners = rng.integers(0, max(height, width), (3, 2)).astype(np.int32)
        cv2.fillConvexPoly(pixels, corners, rng.uniform(0, 255, 3).tolist())
    return pixels.clip(0, 255).astype(np.uint8)


def crops(height: int, width: int, num: int, seed: int = 0) -> list[Box]:
    draws = np.random.default_rng(seed).random((num, RANDOM_CROP_DRAWS))
    return [random_resized_crop(height, width, row, scale=SCALE, ratio=RATIO) for row in draws.tolist()]


def exact(image: NDArray[np.uint8], box: Box, size: int) -> NDArray[np.int16]:
    out = np.empty((size, size, 3), np.uint8)
    resize_exact(image, box, out)
    return out.astype(np.int16)


def fast(image: NDArray[np.uint8], box: Box, size: int) -> NDArray[np.uint8]:
    out = np.empty((size, size, 3), np.uint8)
    resize_fast(image, box, out, Scratch())
    return out


def whole(image: NDArray[np.uint8]) -> Box:
    return Box(0, 0, *image.shape[:2])


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        pytest.param(375, 500, SCALE, RATIO, id="a photograph"),
        pytest.param(60, 400, SCALE, RATIO, id="a banner, where most tries fail"),
        pytest.param(64, 64, [0.5, 1.0], [0.5, 2.0], id="other ranges"),
    ],
)
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: list[float], ratio: list[float]) -> None:
    num = 6000
    draws = np.random.default_rng(1).random((num, RANDOM_CROP_DRAWS)).tolist()
    ours = np.array([random_resized_crop(height, width, row, scale=scale, ratio=ratio) for row in draws])
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = np.array([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(num)])

    def features(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        top, left, box_height, box_width = boxes.T
        below, right = height - box_height - top, width - box_width - left
        return np.array(
            [top, left, box_height, box_width, box_height * box_width, box_width / box_height, below, right]
        )

    for mine, reference in zip(features(ours), features(theirs), strict=True):
        values = np.union1d(mine, reference)
        distance = np.abs(
            np.searchsorted(np.sort(mine), values, "right") - np.searchsorted(np.sort(reference), values, "right")
        ).max()
        # Kolmogorov and Smirnov's two-sample bound at significance 1e-4 in all, shared by the eight features
        assert distance / num < math.sqrt(-math.log(1e-4 / 8 / 2) / num)


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 40), (7, 5), (1, 1)])
def test_crops_lie_inside_images_of_any_shape(height: int, width: int) -> None:
    for top, left, box_height, box_width in crops(height, width, 300):
        assert box_height >= 1
        assert box_width >= 1
        assert 0 <= top <= height - box_height
        assert 0 <= left <= width - box_width


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 1000, Box(0, 493, 10, 13)),
        (1000, 10, Box(493, 0, 13, 10)),
        (90, 100, Box(0, 0, 90, 100)),
    ],
)
def test_the_largest_centred_crop_is_taken_when_no_try_fits(height: int, width: int, expected: Box) -> None:
    never_fits = [0.999999] * RANDOM_CROP_DRAWS
    assert random_resized_crop(height, width, never_fits, scale=[4.0, 4.0], ratio=RATIO) == expected


def test_the_last_of_ten_tries_is_used() -> None:
    draws = [0.999999, 0.0] * 9 + [0.0, 0.5] + [0.0, 0.0]
    assert random_resized_crop(100, 100, draws, scale=[0.25, 1.0], ratio=RATIO) == Box(0, 0, 50, 50)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (333, 500), (256, 256), (97, 640), (40, 33)])
@pytest.mark.parametrize(("size", "resize_ratio"), [(224, 256 / 224), (64, 256 / 224), (96, 1.0), (65, 1.2)])
def test_evaluation_equals_torchvision_on_pil(height: int, width: int, size: int, resize_ratio: float) -> None:
    image = photo(height, width)
    reference = transforms.Compose([transforms.Resize(round(size * resize_ratio)), transforms.CenterCrop(size)])
    ours = exact(image, centre_crop(height, width, size=size, resize_ratio=resize_ratio), size)
    difference = np.abs(ours - np.asarray(reference(Image.fromarray(image))))
    assert difference.mean() <= 0.05
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [224, 96])
def test_an_exact_training_crop_equals_torchvision_on_pil(size: int) -> None:
    image = photo(375, 500)
    for box in crops(375, 500, 10):
        top, left, height, width = map(int, box)
        reference = transforms.functional.resized_crop(Image.fromarray(image), top, left, height, width, [size, size])
        view, inside = cut(image, box)
        np.testing.assert_array_equal(exact(view, inside, size), np.asarray(reference))


@pytest.mark.parametrize("size", [224, 96, 64])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (1500, 2100)], ids=["small", "large"])
def test_fast_stays_within_its_bound_of_antialiased(height: int, width: int, size: int) -> None:
    images = [photo(height, width, seed) for seed in range(4 if height < 1000 else 2)]
    differences = []
    for seed, image in enumerate(images):
        for box in crops(height, width, 12, seed):
            view, inside = cut(image, box)
            differences.append(np.abs(fast(view, inside, size) - exact(view, inside, size)).mean())
    assert np.mean(differences) <= 1
    assert max(differences) <= 3


@pytest.mark.parametrize("factor", [1.2, 1.5, 1.9, 2.6, 3.2, 3.4, 4.5, 6.1, 7.9, 8.3, 13.0, 21.0])
def test_fast_suppresses_detail_that_the_target_cannot_show(factor: float) -> None:
    size = 64
    height = round(size * factor)
    # the finest stripes there are: plain sampling turns them into coarse ones of full contrast
    stripes = np.zeros((height, height, 3), np.uint8)
    stripes[:, ::2] = 255
    expected = exact(stripes, whole(stripes), size).std()
    assert fast(stripes, whole(stripes), size).std() <= expected + (25 if factor < 1.8 else 12)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.2, 3.3, 4.0, 5.7, 8.0, 11.3])
@pytest.mark.parametrize("size", [64, 65])
def test_fast_keeps_a_ramp_where_it_is(factor: float, size: int) -> None:
    height, width = round(size * factor), round(size * factor * 1.1)
    ramp = np.broadcast_to(np.linspace(0, 250, width)[None, :, None], (height, width, 3)).round().astype(np.uint8)
    grain = np.random.default_rng(0).integers(0, 6, ramp.shape, dtype=np.uint8)

    def bias(image: NDArray[np.uint8]) -> float:
        image = np.ascontiguousarray(image)
        difference = fast(image, whole(image), size) - exact(image, whole(image), size)
        return float(difference[2:-2, 2:-2].mean())

    for image in (ramp + grain, (ramp + grain).transpose(1, 0, 2)):
        # Rounding brightens a little whichever way the ramp goes; a shift by 1/10 of an output pixel is 0.4 levels
        # brighter one way and darker the other.
        assert abs(bias(image) - bias(image[::-1, ::-1])) / 2 < 0.2
        assert abs(bias(image)) < 0.5


@pytest.mark.parametrize("box", [Box(0.5, 0.25, 240.5, 300.75), Box(3.7, 1.2, 90, 80.3), Box(0, 0.6, 374.4, 499.4)])
@pytest.mark.parametrize("size", [224, 64])
def test_fast_samples_boxes_that_begin_and_end_inside_pixels(box: Box, size: int) -> None:
    # no grain: half a pixel shows as clearly as noise would hide it
    image = cv2.GaussianBlur(photo(375, 500), (0, 0), 1.5)
    difference = np.abs(fast(image, box, size) - exact(image, box, size)).mean()
    rounded = Box(*(float(round(edge)) for edge in box))
    shifted = np.abs(exact(image, rounded, size) - exact(image, box, size)).mean()
    assert difference < 0.6
    assert difference < shifted


def test_fast_works_on_read_only_pixels_and_on_the_smallest_images() -> None:
    image = photo(40, 40)
    image.flags.writeable = False
    assert np.abs(fast(image, whole(image), 64) - exact(image, whole(image), 64)).mean() < 1
    for height, width in [(1, 1), (1, 300), (300, 1), (2, 3)]:
        grey = np.full((height, width, 3), 77, np.uint8)
        assert (fast(grey, whole(grey), 32) == 77).all()


def test_opencv_starts_no_threads_of_its_own() -> None:
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(0, 0, 127, 400), 1),
        (Box(0, 0, 128, 400), 2),
        (Box(0, 0, 300, 191), 2),
        (Box(5, 5, 256, 300), 4),
        (Box(0, 0, 448, 448), 4),
        (Box(0, 0, 512, 512), 8),
        (Box(0, 0, 9000, 9000), 8),
        (Box(0, 0, 30, 30), 1),
    ],
)
def test_the_scale_to_decode_at_leaves_no_fewer_pixels_than_wanted(box: Box, expected: int) -> None:
    assert denominator_for(box, 64, 64) == expected


def test_boxes_are_mapped_to_parts_of_pixels_and_cut_outwards() -> None:
    box = scaled_down(Box(10, 21, 100, 75), 8, (0.5, 0.0))
    assert box == Box(1.75, 2.625, 12.5, 9.375)
    view, inside = cut(np.zeros((30, 40, 3), np.uint8), box)
    assert view.shape == (14, 10, 3)
    assert inside == Box(0.75, 0.625, 12.5, 9.375)


def test_the_long_side_is_limited_and_the_shape_kept() -> None:
    assert limit_side(375, 500, 250) == (188, 250)
    assert limit_side(500, 375, 500) == (500, 375)
    assert limit_side(500, 375, None) == (500, 375)
    assert limit_side(1, 5000, 100) == (1, 100)
