"""transforms/: a sample's row, and the two ways of colouring and normalising it."""

from __future__ import annotations

import colorsys
import io
import pickle
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FUSED
from numpy.typing import NDArray
from PIL import Image, ImageOps
from test_resize import photo

from pipeline.config import Transforms
from pipeline.decode import Scratch
from pipeline.stats import StageClock
from pipeline.transforms import BatchTransform, SampleTransform
from pipeline.transforms.sample import shrink_to

COLOURS: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def uniforms(num: int, columns: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((num, columns))


def row_of(transform: SampleTransform, sample: bytes | NDArray[np.uint8], draws: NDArray[np.float64]) -> NDArray[Any]:
    batch = np.full((3, *transform.row_shape), 99, transform.row_dtype)
    transform(sample, draws, batch[1], Scratch(), None)
    assert (batch[[0, 2]] == 99).all(), "wrote outside of its row"
    return batch[1]


@pytest.mark.parametrize(
    ("options", "num_draws"),
    [
        pytest.param({"augment": "none", **COLOURS}, 0, id="none"),
        pytest.param({}, 23, id="light"),
        pytest.param({"flip": 0.0}, 22, id="no flip"),
        pytest.param({"contrast": 0.4}, 24, id="contrast"),
        pytest.param(COLOURS, 27, id="every colour"),
        pytest.param({"greyscale": 0.2, "blur": 0.5, "erasing": 0.25}, 31, id="greyscale, blur, erasing"),
        pytest.param({"augment": "none", "greyscale": 1.0, "blur": 1.0, "erasing": 1.0}, 0, id="evaluation"),
    ],
)
def test_draws_are_taken_only_by_what_is_on(options: dict[str, Any], num_draws: int) -> None:
    transforms = Transforms(**options)
    assert SampleTransform(transforms, normalise=True).num_draws == num_draws
    assert SampleTransform(transforms, normalise=False).num_draws == num_draws
    assert BatchTransform(transforms).num_draws == num_draws


@pytest.mark.parametrize("resize", ["exact", "fast", FUSED])
@pytest.mark.parametrize("augment", ["none", "light"])
@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_encoded_and_decoded_samples_give_equal_rows(memory_format: str, augment: str, resize: str) -> None:
    options = Transforms(augment=augment, size=64, resize=resize, max_side=200, **COLOURS)
    transform = SampleTransform(options, normalise=True, memory_format=memory_format)
    data = jpeg(photo(150, 210))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    for draws in uniforms(3, transform.num_draws):
        rows = [row_of(transform, sample, draws) for sample in (data, pixels, shrink_to(pixels, options.max_side))]
        np.testing.assert_array_equal(rows[0], rows[1])
        np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "coloured"])
def test_memory_formats_hold_the_same_values(colours: dict[str, Any]) -> None:
    options = Transforms(size=48, **colours)
    last, first = (SampleTransform(options, normalise=True, memory_format=f) for f in ("channels_last", "contiguous"))
    draws = uniforms(1, last.num_draws)[0]
    pixels = photo(90, 120)
    np.testing.assert_array_equal(row_of(last, pixels, draws).transpose(2, 0, 1), row_of(first, pixels, draws))


def test_normalised_rows_are_what_the_formula_says() -> None:
    options = Transforms(size=48, flip=0.0)
    draws = uniforms(1, 22)[0]
    pixels = photo(90, 120)
    levels = row_of(SampleTransform(options, normalise=False), pixels, draws)
    normalised = row_of(SampleTransform(options, normalise=True), pixels, draws)
    expected = (levels / 255 - np.array(options.mean)) / np.array(options.std)
    np.testing.assert_allclose(normalised, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    "colours",
    [{}, COLOURS, {"hue": 0.5}, {"brightness": 3.0, "contrast": 2.0}, {"greyscale": 0.5}, {"erasing": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_workers_and_devices_agree(colours: dict[str, Any], channels_last: bool) -> None:
    options = Transforms(size=48, **colours)
    worker, rest = SampleTransform(options, normalise=True), SampleTransform(options, normalise=False)
    draws = uniforms(16, worker.num_draws)
    pixels = photo(90, 120)
    expected = np.stack([row_of(worker, pixels, d) for d in draws]).transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.stack([row_of(rest, pixels, d) for d in draws])).permute(0, 3, 1, 2)
    if not channels_last:
        images = images.contiguous()
    on_device = BatchTransform(options)(images, draws)
    assert on_device.stride() == images.stride()
    difference = np.abs(on_device.numpy() - expected).max()
    assert difference == 0 if colours else difference <= 1e-6
    assert on_device.isfinite().all()
    halves = BatchTransform(options)(images, draws, torch.bfloat16)
    assert torch.equal(halves, on_device.to(torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "coloured"])
def test_a_gpu_agrees_with_the_cpu(colours: dict[str, Any]) -> None:
    transform = BatchTransform(Transforms(**colours))
    images = torch.from_numpy(np.stack([photo(64, 64, seed) for seed in range(8)])).permute(0, 3, 1, 2)
    draws = uniforms(8, transform.num_draws)
    difference = (transform(images.cuda(), draws).cpu() - transform(images, draws)).abs().max()
    assert difference == 0 if colours else difference <= 1e-6


def test_a_device_takes_all_256_levels_to_within_a_millionth() -> None:
    options = Transforms()
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    on_device = BatchTransform(options)(levels, np.empty((1, 0)))[0, :, 0].double().numpy()
    expected = (np.arange(256) / 255 - np.array(options.mean)[:, None]) / np.array(options.std)[:, None]
    assert np.abs(on_device - expected).max() <= 1e-6


def colour(pixels: NDArray[np.uint8], draw: float, **strength: float) -> NDArray[np.float64]:
    """RGB in [0, 1] after one colour operation."""
    options = Transforms(**strength)
    transform = BatchTransform(options)
    draws = np.full((1, transform.num_draws), draw)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    normalised = transform(images, draws)[0].permute(1, 2, 0).double().numpy()
    return normalised * np.array(options.std) + np.array(options.mean)


def test_each_colour_operation_does_what_its_name_says() -> None:
    pixels = photo(40, 50)
    values = pixels / 255
    luma = values @ np.array([0.299, 0.587, 0.114])
    pivot = np.array(Transforms().mean) @ np.array([0.299, 0.587, 0.114])
    # draw 0.75 of [0.6, 1.4] is the factor 1.2
    expected = {
        "brightness": 1.2 * values,
        "contrast": pivot + 1.2 * (values - pivot),
        "saturation": luma[..., None] + 1.2 * (values - luma[..., None]),
    }
    for name, result in expected.items():
        np.testing.assert_allclose(colour(pixels, 0.75, **{name: 0.4}), result.clip(0, 1), atol=3e-4)


def test_hue_keeps_luma_and_grey_and_turns_colours() -> None:
    grey = np.full((1, 1, 3), 120, np.uint8)
    np.testing.assert_allclose(colour(grey, 0.9, hue=0.5), grey / 255, atol=3e-4)
    soft = np.array([[[140, 110, 110], [110, 140, 110], [110, 110, 140]]], np.uint8)
    weights = np.array([0.299, 0.587, 0.114])
    for draw in (0.1, 0.4, 0.8):
        turned = colour(soft, draw, hue=0.5)
        np.testing.assert_allclose(turned @ weights, soft / 255 @ weights, atol=1e-3)
    np.testing.assert_allclose(colour(soft, 0.5, hue=0.5), soft / 255, atol=3e-4)
    # a positive turn goes the way torchvision's does: red towards yellow
    hues = [colorsys.rgb_to_hsv(*colour(soft[:, :1], 0.5 + turn, hue=0.5)[0, 0])[0] for turn in (0.05, 0.1, 0.2)]
    assert 0 < hues[0] < hues[1] < hues[2] < 0.4


def test_the_factors_of_a_draw_of_a_half_change_nothing() -> None:
    pixels = photo(40, 50)
    np.testing.assert_allclose(colour(pixels, 0.5, **COLOURS), pixels / 255, atol=3e-4)


def test_brightness_never_turns_negative() -> None:
    pixels = photo(40, 50)
    np.testing.assert_allclose(colour(pixels, 0.0, brightness=1.7), 0, atol=3e-4)


def test_results_are_clamped_to_black_and_white() -> None:
    values = colour(photo(40, 50), 0.99, brightness=2.0, contrast=2.0)
    assert values.min() == pytest.approx(0, abs=1e-6)
    assert values.max() == pytest.approx(1, abs=1e-6)


def test_sixty_four_copies_of_one_image_become_sixty_four_images() -> None:
    transform = SampleTransform(Transforms(size=32, **COLOURS), normalise=True)
    pixels = photo(90, 120)
    rows = {row_of(transform, pixels, draws).tobytes() for draws in uniforms(64, transform.num_draws)}
    assert len(rows) == 64


@pytest.mark.parametrize("column", range(22, 26), ids=["brightness", "contrast", "saturation", "hue"])
def test_every_colour_has_a_draw_of_its_own(column: int) -> None:
    transform = SampleTransform(Transforms(size=32, flip=0.0, **COLOURS), normalise=True)
    draws = uniforms(1, transform.num_draws)[0]
    other = draws.copy()
    other[column] = (draws[column] + 0.5) % 1
    pixels = photo(90, 120)
    assert not np.array_equal(row_of(transform, pixels, draws), row_of(transform, pixels, other))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_flip_mirrors_the_row_when_its_draw_is_below_the_probability(normalise: bool) -> None:
    transform = SampleTransform(Transforms(size=32, flip=0.3), normalise=normalise)
    pixels = photo(90, 120)
    flipped, kept = (np.append(uniforms(1, 22)[0], draw) for draw in (0.29, 0.31))
    np.testing.assert_array_equal(row_of(transform, pixels, flipped), row_of(transform, pixels, kept)[:, ::-1])


def test_evaluation_needs_no_draws_and_equals_torchvision_on_pil() -> None:
    from torchvision import transforms as tv

    options = Transforms(size=64, **COLOURS).evaluation()
    data = jpeg(photo(375, 500))
    image = Image.open(io.BytesIO(data))
    reference = tv.Compose([tv.Resize(73), tv.CenterCrop(64), tv.ToTensor(), tv.Normalize(options.mean, options.std)])(
        image
    )
    ours = row_of(SampleTransform(options, normalise=True, memory_format="contiguous"), data, np.empty(0))
    step = 1 / 255 / min(options.std)
    assert np.abs(ours - reference.numpy()).mean() < 0.05 * step
    assert np.abs(ours - reference.numpy()).max() < 1.01 * step


def smooth_photo(height: int, width: int) -> NDArray[np.uint8]:
    """A photograph whose finest detail is 8 pixels wide: every scale can show it, and a shift is seen at once."""
    small = Image.fromarray(photo(height // 8, width // 8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resize", ["exact", "fast", FUSED])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_scaled_decoding_shows_the_same_crop(resize: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(smooth_photo(1003, 1237), exif=exif, subsampling=0)
    options = {"size": 64, "scale": [0.2, 1.0], "flip": 0.0, "resize": resize}
    full = SampleTransform(Transforms(decode="full", **options), normalise=False)
    scaled = SampleTransform(Transforms(decode="scaled", **options), normalise=False)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    for draws in uniforms(6, full.num_draws):
        expected = row_of(full, data, draws).astype(int)
        # libjpeg's scaling smooths a little; being off by 3 pixels of the full image shows more than that
        assert np.abs(row_of(scaled, data, draws) - expected).mean() < 1.2
        assert np.abs(row_of(full, np.roll(upright, 3, axis=1), draws) - expected).mean() > 1.2


def test_scaled_decoding_and_a_side_limit_show_the_same_crop() -> None:
    data = jpeg(smooth_photo(1003, 1237), subsampling=0)
    options = {"size": 64, "max_side": 150, "flip": 0.0}
    full = SampleTransform(Transforms(decode="full", **options), normalise=False)
    scaled = SampleTransform(Transforms(decode="scaled", **options), normalise=False)
    for draws in uniforms(6, full.num_draws):
        assert np.abs(row_of(scaled, data, draws).astype(int) - row_of(full, data, draws)).mean() < 1.5


def test_time_is_counted_by_stage() -> None:
    transform, clock = SampleTransform(Transforms(size=32), normalise=True), StageClock()
    out = np.empty(transform.row_shape, transform.row_dtype)
    draws = uniforms(1, transform.num_draws)[0]
    transform(jpeg(photo(90, 120)), draws, out, Scratch(), clock)
    transform(photo(90, 120), draws, out, Scratch(), clock)
    assert clock.counts == {"decode": 1, "transform": 2}
    assert min(clock.seconds.values()) > 0


def test_a_transform_survives_pickling() -> None:
    transform = SampleTransform(Transforms(size=32, **COLOURS), normalise=True)
    draws = uniforms(1, transform.num_draws)[0]
    pixels = photo(90, 120)
    copy = pickle.loads(pickle.dumps(transform))
    np.testing.assert_array_equal(row_of(transform, pixels, draws), row_of(copy, pixels, draws))


def test_threads_share_one_transform() -> None:
    transform = SampleTransform(Transforms(size=32, **COLOURS), normalise=True)
    samples = [jpeg(photo(60 + 10 * seed, 150 - 10 * seed, seed)) for seed in range(8)]
    draws = uniforms(8, transform.num_draws)
    expected = [row_of(transform, *pair) for pair in zip(samples, draws, strict=True)]
    rows = np.empty((4, 8, *transform.row_shape), np.float32)

    def work(number: int) -> None:
        scratch = Scratch()
        for position in np.random.default_rng(number).permutation(8):
            transform(samples[position], draws[position], rows[number, position], scratch, None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for made in rows:
        np.testing.assert_array_equal(made, expected)


def test_an_unknown_memory_format_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_format must be channels_last or contiguous, got 'nhwc'"):
        SampleTransform(Transforms(), normalise=True, memory_format="nhwc")


@pytest.mark.parametrize("module", ["pipeline.decode", "pipeline.transforms", "pipeline.transforms.sample"])
def test_workers_import_no_torch(module: str) -> None:
    heavy = ["torch"] if module != "pipeline.transforms" else ["torch", "cv2", "PIL", "numpy"]
    check = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    import pipeline.transforms

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        pipeline.transforms.Nothing  # noqa: B018 - the access is the test
