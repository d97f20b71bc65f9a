"""The native passes from levels to floats: the bytes of the ways without them, on every processor."""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import photo
from numpy.typing import NDArray

from pipeline import native
from pipeline.config import Transforms
from pipeline.decode import Scratch
from pipeline.transforms import finish, normalise
from pipeline.transforms.colour import ColourJitter
from pipeline.transforms.finish import Finish, WorkerFinish
from pipeline.transforms.normalise import Normaliser

kernel: Any = native.kernel
pytestmark = pytest.mark.skipif(kernel is None, reason="the native kernel is not built (make native)")

STRONG: dict[str, Any] = {"brightness": 1.5, "contrast": 0.9, "saturation": 2.0, "hue": 0.5, "greyscale": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "weak": {"brightness": 0.1},
    "strong": STRONG,
    "from 0 to 1": {**STRONG, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    "odd mean": {**STRONG, "mean": [0.0, 0.5, 1.0], "std": [0.03, 1.0, 0.4]},
    "all": {**STRONG, "blur": 0.5, "erasing": 0.5},
}


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(shape).integers(0, 256, shape, np.uint8)


def jitter(**options: Any) -> ColourJitter:
    return ColourJitter(Transforms(**options), first_column=0)


def coloured(pixels: NDArray[np.uint8], made: ColourJitter, matrix: Any, *, planes: bool, portable: bool) -> bytes:
    """What the kernel makes, as bytes of (H, W, 3)."""
    height, width, _ = pixels.shape
    out = np.full((3, height, width) if planes else (height, width, 3), np.nan, np.float32)
    kernel.colour(pixels, matrix, made.lower, made.upper, out, planes, portable)
    return (out.transpose(1, 2, 0) if planes else out).tobytes()


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("size", [8, 9, 33, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_with_and_without_it(
    kind: str, size: int, memory_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Finish(Transforms(size=size, **KINDS[kind]), first_column=3)
    pixels, draws = noise(40, size, size, 3), np.random.default_rng(size).random((40, drawn.end_column))
    pixels[0], pixels[1] = 0, 255
    shape = (40, 3, size, size) if memory_format == "contiguous" else pixels.shape
    both = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    apply = WorkerFinish(drawn, size, memory_format)
    apply(pixels, draws, both[0], Scratch())
    monkeypatch.setattr(finish, "kernel", None)
    apply(pixels, draws, both[1], Scratch())
    assert both[0].tobytes() == both[1].tobytes()


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 3, 3, 3), (2, 9, 14, 3), (1, 64, 64, 3)])
def test_normalised_rows_are_the_same_with_and_without_it(
    shape: tuple[int, ...], memory_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, height, width, _ = shape
    pixels = noise(*shape)
    shape = (number, 3, height, width) if memory_format == "contiguous" else shape
    both = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    apply = Normaliser([0.0, 0.456, 1.0], [1.0, 0.224, 0.225], memory_format)
    apply(pixels, both[0], Scratch())
    monkeypatch.setattr(normalise, "kernel", None)
    apply(pixels, both[1], Scratch())
    assert both[0].tobytes() == both[1].tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (1, 8), (2, 4), (3, 3), (5, 13), (1, 31), (40, 27)])
def test_every_processor_and_layout_gives_the_floats_of_opencv(shape: tuple[int, int]) -> None:
    made, pixels = jitter(**STRONG), noise(*shape, 3)
    for matrix in made.matrices(np.random.default_rng(0).random((50, made.num_draws))):
        expected = np.clip(cv2.transform(pixels.astype(np.float32), matrix), made.lower, made.upper).tobytes()
        for planes in (False, True):
            for portable in (False, True):
                assert coloured(pixels, made, matrix, planes=planes, portable=portable) == expected


def test_nothing_beside_a_row_is_written() -> None:
    made = jitter(**STRONG)
    matrix = made.matrices(np.full((1, made.num_draws), 0.7))[0]
    for width in range(1, 20):
        room, levels = np.full(3 * width + 2, 9.0, np.float32), noise(1, width, 3)
        out = room[1:-1].reshape(1, width, 3)
        kernel.colour(levels, matrix, made.lower, made.upper, out, False, False)
        assert out.tobytes() == coloured(levels, made, matrix, planes=False, portable=True)
        assert room[0] == room[-1] == 9.0


@pytest.mark.parametrize("kind", KINDS)
def test_one_samples_matrix_is_that_of_its_row_in_a_batch_to_the_bit(kind: str) -> None:
    options = KINDS[kind]
    for left_out in ({}, {"hue": 0.0}, {"contrast": 0.0, "greyscale": 0.0}, dict.fromkeys(STRONG, 0.0)):
        made = jitter(**(options | left_out))
        draws = np.random.default_rng(0).random((300, made.num_draws))
        draws[0], draws[1] = 0.0, 0.5
        alone = np.concatenate([made.matrices(own[None]) for own in draws])
        assert alone.dtype == np.float32
        assert alone.tobytes() == made.matrices(draws).tobytes()


GOOD: dict[str, Any] = {
    "image": noise(4, 6, 3),
    "matrix": np.zeros((3, 4), np.float32),
    "lower": np.zeros(3, np.float32),
    "upper": np.ones(3, np.float32),
    "out": np.empty((4, 6, 3), np.float32),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", noise(4, 6, 4), "image must be uint8"),
        ("image", noise(4, 6, 3).astype(np.float32), "image must be uint8"),
        ("image", noise(4, 12, 3)[:, ::2], "image must be uint8"),
        ("image", noise(4, 9, 3)[:, :6], "image must be C-contiguous"),
        ("image", noise(4, 6, 3)[::-1], "image must be uint8"),
        ("image", np.empty((0, 6, 3), np.uint8), "image must be uint8"),
        ("image", noise(5, 6, 3), "out must be float32 of the image's"),
        ("matrix", np.zeros((3, 3), np.float32), "matrix must be float32"),
        ("matrix", np.zeros((3, 4)), "matrix must be float32"),
        ("matrix", np.zeros((3, 4), np.int32), "matrix must be float32"),
        ("lower", np.zeros(4, np.float32), "lower must be float32"),
        ("upper", np.zeros(1, np.float32), "upper must be float32"),
        ("out", np.empty((4, 6, 3)), "out must be float32 of the image's"),
        ("out", np.empty((4, 6, 3), np.uint8), "out must be float32 of the image's"),
        ("out", np.empty((3, 4, 6), np.float32), "out must be float32 of the image's"),
        ("out", np.empty((6, 4, 3), np.float32), "out must be float32 of the image's"),
        ("out", np.empty((24, 3), np.float32), "out must be float32 of the image's"),
    ],
    ids=lambda value: f"{getattr(value, 'shape', '')} {getattr(value, 'dtype', '')}" if hasattr(value, "shape") else "",
)
def test_arrays_of_another_form_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.colour(*(GOOD | {name: value}).values(), False, False)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_no_array_is_refused(name: str) -> None:
    for value in (None, 3, "text"):
        with pytest.raises(TypeError):
            kernel.colour(*(GOOD | {name: value}).values(), False, False)


def test_memory_that_may_not_be_written_or_is_of_the_other_layout_is_refused() -> None:
    read_only = np.empty((4, 6, 3), np.float32)
    read_only.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        kernel.colour(*(GOOD | {"out": read_only}).values(), False, False)
    with pytest.raises(ValueError, match="planar"):
        kernel.colour(*GOOD.values(), True, False)


def test_a_look_up_refuses_what_a_colour_pass_refuses() -> None:
    image, out, table = GOOD["image"], GOOD["out"], np.zeros((256, 3), np.float32)
    kernel.look_up(image, table, out, False)
    for refused in (table[:255], table.astype(np.float64)):
        with pytest.raises(ValueError, match="table must be float32 of 256 x 3"):
            kernel.look_up(image, refused, out, False)
    with pytest.raises(ValueError, match="image must be uint8"):
        kernel.look_up(out, table, out, False)
    with pytest.raises(ValueError, match="image must be C-contiguous"):
        kernel.look_up(noise(4, 9, 3)[:, :6], table, out, False)
    for other, is_planar in ((out[:3], False), (out, True), (image, False)):
        with pytest.raises(ValueError, match="out must be float32 of the image's"):
            kernel.look_up(image, table, other, is_planar)


def test_it_lets_other_threads_run() -> None:
    made, pixels = jitter(**STRONG), photo(0, 3000, 3000)
    matrix, out = made.matrices(np.full((1, made.num_draws), 0.3))[0], np.empty((3000, 3000, 3), np.float32)
    ticks, is_over = [0], threading.Event()

    def count() -> None:
        while not is_over.is_set():
            ticks[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    before = ticks[0]
    for _ in range(20):
        kernel.colour(pixels, matrix, made.lower, made.upper, out, False, True)
    during = ticks[0] - before
    is_over.set()
    counter.join()
    assert during > 100
