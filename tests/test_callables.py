"""transforms/callables.py: a user's callable gives the same row wherever, whenever and by whomever it is called."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from fakes import jpeg_bytes, photo
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from pipeline.decode import Scratch
from pipeline.stats import StageClock
from pipeline.transforms.callables import CallableTransform, RowFormat, Seeding, probe
from pipeline.transforms.sample import shrink_to

CLASSIC = v1.Compose(
    [
        v1.RandomResizedCrop(24),
        v1.RandomHorizontalFlip(),
        v1.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v1.ToTensor(),
        v1.RandomErasing(1.0, value="random"),
    ]
)

MODERN = v2.Compose(
    [
        v2.ToImage(),
        v2.RandomResizedCrop(24, antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.GaussianNoise(),
    ]
)


def large_contrast(image: Image.Image) -> torch.Tensor:
    """Its sum over 150,000 floats is one that torch divides between threads."""
    return v2.functional.adjust_contrast(v2.functional.to_dtype(v2.functional.pil_to_tensor(image), scale=True), 1.37)


def three_generators(image: Image.Image) -> NDArray[np.float64]:
    """A uniform and a Gaussian number of each global generator, in a channel of its own.

    From one state `random` and `numpy.random` would make the same uniforms: they share their generator's algorithm.
    """
    numbers = [
        [random.random(), random.gauss(0, 1)],
        [np.random.random(), np.random.randn()],
        [float(torch.rand((), dtype=torch.float64)), float(torch.randn(()))],
    ]
    return np.asarray(numbers, np.float64)[:, None, :]


@dataclass
class Returns:
    """Returns the same whatever it is given."""

    result: Any

    def __call__(self, _: Image.Image) -> Any:
        return self.result


def planes(image: Image.Image, dtype: str = "uint8") -> NDArray[Any]:
    return np.asarray(image).transpose(2, 0, 1).astype(dtype)


class Keeps:
    """Keeps every image that it was called with."""

    def __init__(self) -> None:
        self.images: list[Image.Image] = []

    def __call__(self, image: Image.Image) -> NDArray[Any]:
        self.images.append(image)
        return planes(image)


def uniforms(num: int) -> NDArray[np.float64]:
    return np.random.default_rng(7).random((num, 2))


def made(
    function: Callable[[Image.Image], Any],
    seeding: Seeding | str = Seeding.borrowed,
    *,
    memory_format: str = "channels_last",
    **options: Any,
) -> CallableTransform:
    row = probe(function, photo(0), memory_format=memory_format).row
    return CallableTransform(function, row=row, seeding=Seeding(seeding), **options)


def row_of(transform: CallableTransform, sample: bytes | NDArray[np.uint8], draws: NDArray[np.float64]) -> NDArray[Any]:
    batch = np.full((3, *transform.row_shape), 99, transform.row_dtype)
    transform(sample, draws, batch[1], Scratch())
    assert (batch[[0, 2]] == 99).all(), "wrote outside of its row"
    return batch[1]


def generator_states() -> list[Any]:
    numpy_state: Any = np.random.get_state()
    return [random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().numpy().tobytes()]


@pytest.fixture(autouse=True)
def _globals_are_put_back() -> Iterator[None]:
    """`own` is for a process of its own; here the other tests' generators and threads are to stay theirs."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)  # so that it shows where one thread is not kept to
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_num_threads(num_threads)


IN_A_PROCESS = """
import pickle, sys
from pathlib import Path
import numpy as np
from pipeline.decode import Scratch
transforms, samples, draws = pickle.loads(Path(sys.argv[1]).read_bytes())
rows = {}
for number in reversed(range(len(samples))):
    for name, payload in transforms.items():
        transform = pickle.loads(payload)
        row = rows[name, number] = np.empty(transform.row_shape, transform.row_dtype)
        transform(samples[number], draws[number], row, Scratch())
Path(sys.argv[2]).write_bytes(pickle.dumps(rows))
"""
"""Makes the rows of several transforms, the last sample first and the transforms in turn, in a fresh process."""


def rows_in_another_process(
    directory: Path, transforms: dict[str, CallableTransform], samples: list[bytes], draws: NDArray[np.float64]
) -> dict[tuple[str, int], NDArray[Any]]:
    payloads = {name: pickle.dumps(transform, 5) for name, transform in transforms.items()}
    (directory / "transforms").write_bytes(pickle.dumps((payloads, samples, draws)))
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    finished = subprocess.run(
        [sys.executable, "-P", "-c", IN_A_PROCESS, directory / "transforms", directory / "rows"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},  # as worker processes are started
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    rows: dict[tuple[str, int], NDArray[Any]] = pickle.loads((directory / "rows").read_bytes())
    return rows


def test_rows_depend_on_their_draws_alone_and_not_on_process_order_or_seeding(tmp_path: Path) -> None:
    samples = [jpeg_bytes(photo(seed, 375, 400)) for seed in range(4)]
    draws = uniforms(4)
    functions: dict[str, Callable[[Image.Image], Any]] = {
        "classic": CLASSIC,
        "modern": MODERN,
        "generators": three_generators,
        "large": v1.Compose([v1.RandomResizedCrop((375, 400)), large_contrast]),
    }
    transforms = {name: made(function, "own") for name, function in functions.items()}
    elsewhere = rows_in_another_process(tmp_path, transforms, samples, draws)
    # Again here, in another order, between draws of our own.
    for name, function in functions.items():
        borrowed = made(function, "borrowed")
        for number in (2, 0, 3, 1):
            torch.rand(number + 1)
            row = row_of(borrowed, samples[number], draws[number])
            np.testing.assert_array_equal(row, elsewhere[name, number], err_msg=f"{name}, sample {number}")
        owned = [row_of(transforms[name], sample, own) for sample, own in zip(samples, draws, strict=True)]
        for number, row in enumerate(owned):
            np.testing.assert_array_equal(row, elsewhere[name, number], err_msg=f"{name}, sample {number}")


def test_each_generator_is_seeded_by_both_draws_and_differently() -> None:
    transform = made(three_generators, memory_format="contiguous")
    first, second = uniforms(2)
    draws = [first, second, np.array([first[0], second[1]]), np.array([second[0], first[1]]), first[::-1]]
    rows = np.stack([row_of(transform, photo(1), own) for own in draws])
    np.testing.assert_array_equal(row_of(transform, photo(2), first), rows[0])
    # No two are equal, by whatever generator and draws.
    for column in range(2):
        assert len(np.unique(rows[..., column])) == rows[..., column].size


def test_neighbouring_seeds_are_as_good_as_independent() -> None:
    transform = made(three_generators, memory_format="contiguous")
    step = np.array([0.0, 2.0**-53])
    rows = np.stack([row_of(transform, photo(1), np.array([0.5, 0.5]) + n * step) for n in range(64)])
    numbers = rows[:, :, 0, 0]
    assert len(np.unique(numbers)) == numbers.size
    assert (np.abs(np.corrcoef(numbers[:-1].T, numbers[1:].T)) - np.eye(6)).max() < 0.5


@pytest.mark.parametrize(
    "function",
    [three_generators, CLASSIC, MODERN, Returns("no image")],
    ids=["a function", "classic", "modern", "no image"],
)
def test_what_is_borrowed_is_given_back(function: Any) -> None:
    row = RowFormat((3, 24, 24), np.dtype(np.float32))
    random.gauss(0, 1)
    np.random.randn()
    torch.randn(1)  # each of them keeps half a pair
    before = generator_states()
    transform = CallableTransform(function, row=row, seeding=Seeding.borrowed)
    if function in (CLASSIC, MODERN):
        row_of(transform, photo(0), uniforms(1)[0])
    else:
        with pytest.raises((TypeError, ValueError), match="transform"):
            row_of(transform, photo(0), uniforms(1)[0])
    assert generator_states() == before
    assert torch.get_num_threads() == 2


def test_a_generator_is_given_back_when_the_callable_raises_and_its_error_is_its_own() -> None:
    error = LookupError("of the callable")

    def fails(image: Image.Image) -> Any:
        three_generators(image)
        raise error

    before = generator_states()
    with pytest.raises(LookupError) as caught:
        probe(fails, photo(0))
    assert caught.value is error
    transform = CallableTransform(fails, row=RowFormat((3, 4, 4), np.dtype(np.uint8)), seeding=Seeding.borrowed)
    with pytest.raises(LookupError) as caught:
        row_of(transform, photo(0), uniforms(1)[0])
    assert caught.value is error
    assert generator_states() == before
    assert torch.get_num_threads() == 2


def test_a_process_of_its_own_pays_for_no_restoring() -> None:
    states = []
    for _ in range(2):
        three_generators(Image.new("RGB", (1, 1)))
        row_of(made(three_generators, "own"), photo(0), uniforms(1)[0])
        states.append(generator_states())
    assert states[0] == states[1], "the generators are not where the sample left them"
    assert torch.get_num_threads() == 1


def test_without_seeding_no_generator_is_touched() -> None:
    before = generator_states()
    row_of(made(planes, "none"), photo(0), uniforms(1)[0])
    assert generator_states() == before
    first = row_of(made(three_generators, "none"), photo(0), uniforms(1)[0])
    assert generator_states() != before
    assert not np.array_equal(first, row_of(made(three_generators, "none"), photo(0), uniforms(1)[0]))


@pytest.mark.gpu
def test_a_gpu_generator_is_not_touched() -> None:
    before = torch.cuda.get_rng_state().clone()
    row_of(made(three_generators, "own"), photo(0), uniforms(1)[0])
    assert torch.equal(torch.cuda.get_rng_state(), before)


LAZY = """
def lazy(image):
    import numpy as np
    import torch
    return np.asarray(image).transpose(2, 0, 1)[:, :2, :2] * 0.0 + torch.rand(3, 1, 1).numpy()
"""


def test_a_callable_that_imports_torch_when_called_has_it_seeded_from_the_first_sample(tmp_path: Path) -> None:
    (tmp_path / "lazily.py").write_text(LAZY)
    script = (
        "import sys\nimport numpy as np\n"
        "from pipeline.decode import Scratch\n"
        "from pipeline.transforms.callables import CallableTransform, RowFormat, probe\n"
        "from lazily import lazy\n"
        "pixels = np.zeros((4, 4, 3), np.uint8)\n"
        "assert 'torch' not in sys.modules\n"
        "if sys.argv[1] == 'probe':\n"
        "    print(probe(lazy, pixels).draws_globally)\n"
        "else:\n"
        "    row = RowFormat((3, 2, 2), np.dtype('float64'))\n"
        "    transform = CallableTransform(lazy, row=row, seeding=sys.argv[1])\n"
        "    rows = np.zeros((2, *transform.row_shape))\n"
        "    for row in rows:\n"
        "        transform(pixels, np.array([0.25, 0.75]), row, Scratch())\n"
        "    assert rows.any() and (rows[0] == rows[1]).all(), rows\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    for argument, answer in (("own", ""), ("probe", "True\n")):
        finished = subprocess.run(
            [sys.executable, "-P", "-c", script, argument],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (finished.stdout, finished.stderr) == (answer, ""), argument


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "draws"),
    [
        pytest.param(CLASSIC, (24, 24, 3), "float32", True, id="torchvision v1"),
        pytest.param(MODERN, (24, 24, 3), "float32", True, id="torchvision v2"),
        pytest.param(v1.Compose([v1.Resize((5, 7)), v1.PILToTensor()]), (5, 7, 3), "uint8", False, id="no chance"),
        pytest.param(v2.Resize((5, 7)), (5, 7, 3), "uint8", False, id="image"),
        pytest.param(partial(planes, dtype="float16"), (60, 80, 3), "float16", False, id="float16"),
        pytest.param(partial(planes, dtype="int64"), (60, 80, 3), "int64", False, id="int64"),
        pytest.param(partial(planes, dtype=">f4"), (60, 80, 3), "float32", False, id="foreign byte order"),
        pytest.param(lambda i: planes(i) + np.uint8(random.random()), (60, 80, 3), "uint8", True, id="draws of random"),
        pytest.param(lambda i: planes(i) * np.random.rand(), (60, 80, 3), "float64", True, id="draws of NumPy"),
        pytest.param(lambda i: planes(i) * torch.rand(1).numpy(), (60, 80, 3), "float32", True, id="draws of torch"),
        pytest.param(
            lambda i: planes(i) * np.random.default_rng(0).random(), (60, 80, 3), "float64", False, id="own generator"
        ),
    ],
)
def test_a_probe_finds_the_format_and_whether_chance_is_global_and_changes_nothing(
    function: Any, shape: tuple[int, ...], dtype: str, draws: bool
) -> None:
    before = generator_states()
    for memory_format in ("channels_last", "contiguous"):
        row, draws_globally, _ = probe(function, photo(0), memory_format=memory_format)
        expected = shape if memory_format == "channels_last" else (3, *shape[:2])
        assert (row.row_shape, row.dtype, draws_globally) == (expected, np.dtype(dtype), draws)
        transform = CallableTransform(function, row=row, seeding=Seeding.borrowed)
        assert (transform.row_shape, transform.row_dtype, transform.num_draws) == (expected, np.dtype(dtype), 2)
        assert torch.from_numpy(row_of(transform, photo(0), uniforms(1)[0])).numel() == np.prod(shape)
    assert generator_states() == before
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize(
    "result",
    [
        pytest.param(np.arange(60.0).reshape(3, 4, 5), id="array"),
        pytest.param(np.arange(60, dtype=">i4").reshape(3, 4, 5), id="array of foreign byte order"),
        pytest.param(np.asfortranarray(np.arange(60).reshape(3, 4, 5)), id="Fortran order"),
        pytest.param(torch.arange(60.0).reshape(3, 4, 5), id="tensor"),
        pytest.param(torch.arange(60.0).reshape(3, 4, 5).requires_grad_(), id="tensor with gradient"),
        pytest.param(torch.arange(60).reshape(4, 5, 3).permute(2, 0, 1), id="channels-last tensor"),
        pytest.param(v2.functional.to_image(Image.fromarray(photo(3, 4, 5))), id="torchvision's image tensor"),
    ],
)
def test_a_row_holds_what_the_callable_returned(result: Any, memory_format: str) -> None:
    row = row_of(made(Returns(result), memory_format=memory_format), photo(0), uniforms(1)[0])
    expected = result.detach().numpy() if isinstance(result, torch.Tensor) else result
    np.testing.assert_array_equal(row if memory_format == "contiguous" else row.transpose(2, 0, 1), expected)


def test_a_callable_sees_the_upright_rgb_pixels_encoded_or_decoded_and_may_keep_them() -> None:
    stored = photo(5, 40, 30)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(file, "JPEG", quality=95, exif=exif)
    keeps, scratch = Keeps(), Scratch()
    row = RowFormat((3, 30, 40), np.dtype(np.uint8))
    transform = CallableTransform(keeps, row=row, seeding=Seeding.none)
    out = np.empty(row.row_shape, row.dtype)
    transform(file.getvalue(), uniforms(1)[0], out, scratch)
    seen = out.copy()
    cached = seen.copy()
    cached.flags.writeable = False
    transform(cached, uniforms(1)[0], out, scratch)
    transform(jpeg_bytes(255 - photo(6, 30, 40)), uniforms(1)[0], out, scratch)
    keeps.images[1].paste((1, 2, 3), (0, 0, 40, 30))
    first, second, _ = keeps.images
    assert (first.mode, first.size) == ("RGB", (40, 30))
    np.testing.assert_array_equal(np.asarray(first), seen)
    assert np.abs(seen.astype(int) - np.rot90(stored, -1)).mean() < 8
    np.testing.assert_array_equal(cached, seen)
    assert np.asarray(second).reshape(-1, 3).tolist() == [[1, 2, 3]] * 1200


def test_encoded_and_decoded_samples_of_any_size_give_equal_rows() -> None:
    transform = made(CLASSIC, max_side=50)
    data = jpeg_bytes(photo(8, 90, 120))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    for draws in uniforms(3):
        rows = [row_of(transform, sample, draws) for sample in (data, pixels, shrink_to(pixels, 50))]
        np.testing.assert_array_equal(rows[0], rows[1])
        np.testing.assert_array_equal(rows[0], rows[2])


def test_max_side_is_applied_before_the_callable() -> None:
    keeps = Keeps()
    row = RowFormat((3, 30, 40), np.dtype(np.uint8))
    transform = CallableTransform(keeps, row=row, seeding=Seeding.none, max_side=40)
    row_of(transform, photo(0, 60, 80), uniforms(1)[0])
    np.testing.assert_array_equal(np.asarray(keeps.images[0]), shrink_to(photo(0, 60, 80), 40))


def test_decoding_and_transforming_are_timed_apart() -> None:
    transform = made(planes)
    out = np.empty(transform.row_shape, transform.row_dtype)
    clock = StageClock()
    transform(jpeg_bytes(photo(0)), uniforms(1)[0], out, Scratch(), clock)
    assert clock.counts == {"decode": 1, "transform": 1}
    transform(photo(0), uniforms(1)[0], out, Scratch(), clock)
    assert clock.counts == {"decode": 1, "transform": 2}


def test_no_time_is_counted_twice() -> None:
    transform = made(v1.Resize((8, 8)))
    out = np.empty(transform.row_shape, transform.row_dtype)
    sample, draws, clock = jpeg_bytes(photo(0, 1200, 1600)), uniforms(1)[0], StageClock()
    started = perf_counter()
    transform(sample, draws, out, Scratch(), clock)
    elapsed_s = perf_counter() - started
    assert clock.seconds["decode"] > 0
    assert clock.seconds["transform"] > 0
    assert sum(clock.seconds.values()) <= elapsed_s


WRONG: list[Any] = [
    pytest.param(
        None, TypeError, r"a torch tensor or a NumPy array \(3, H, W\), or an RGB PIL image, got NoneType", id="none"
    ),
    pytest.param([[0]], TypeError, "got list", id="list"),
    pytest.param(np.zeros((4, 5, 3)), ValueError, r"got \(4, 5, 3\); put the channels first: transpose", id="last"),
    pytest.param(np.zeros((1, 4, 5)), ValueError, r"must return \(3, H, W\), got \(1, 4, 5\)", id="grey"),
    pytest.param(torch.zeros(2, 3, 4, 5), ValueError, r"got \(2, 3, 4, 5\)", id="batch"),
    pytest.param(np.zeros((3, 0, 5)), ValueError, r"got \(3, 0, 5\)", id="empty"),
    pytest.param(np.zeros((3, 4, 5), complex), TypeError, "complex128, .*; return uint8 or float32", id="complex"),
    pytest.param(np.zeros((3, 4, 5), object), TypeError, "object, .*; return uint8 or float32", id="objects"),
    pytest.param(np.zeros((3, 4, 5), np.longdouble), TypeError, "float128, .*; return uint8", id="long double"),
    pytest.param(
        torch.zeros(3, 4, 5, dtype=torch.bfloat16), TypeError, "torch.bfloat16 .* uint8 or float32", id="bf16"
    ),
    pytest.param(torch.zeros(3, 4, 5).to_sparse(), TypeError, "torch.sparse_coo, .*; return a dense", id="sparse"),
    pytest.param(
        torch.zeros(3, 4, 5, device="meta"), TypeError, "on meta; return a CPU tensor; .* prefetch_device=", id="meta"
    ),
    pytest.param(Image.new("L", (4, 5)), ValueError, r"mode L; end it with convert\('RGB'\)", id="grey image"),
]


@pytest.mark.parametrize(("result", "error", "match"), WRONG)
def test_a_result_that_is_no_image_is_refused_with_its_cure(result: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        probe(Returns(result), photo(0))
    assert "\n" not in str(caught.value)
    transform = CallableTransform(Returns(result), row=RowFormat((3, 4, 5), np.dtype(np.float32)), seeding=Seeding.none)
    with pytest.raises(error, match=match):
        row_of(transform, photo(0), uniforms(1)[0])


def test_a_sample_of_another_shape_or_dtype_than_the_first_is_refused_with_its_cure() -> None:
    transform = made(v1.ToTensor())
    with pytest.raises(
        ValueError,
        match=r"\(3, 30, 40\) for this image and \(3, 60, 80\) for the first one; .* add a resize to the tra",
    ):
        row_of(transform, photo(0, 30, 40), uniforms(1)[0])
    changes = CallableTransform(planes, row=transform._row, seeding=Seeding.none)
    with pytest.raises(TypeError, match=r"uint8 for this image and float32 for the first one; .* one dtype"):
        row_of(changes, photo(0), uniforms(1)[0])


def test_what_cannot_be_decoded_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no known image format"):
        row_of(made(planes), b"nonsense", uniforms(1)[0])


def test_wrong_arguments_are_refused_by_name() -> None:
    row = RowFormat((3, 4, 5), np.dtype(np.uint8))
    with pytest.raises(TypeError, match=r"transform must be callable with a PIL\.Image, got 'resize'"):
        probe("resize", photo(0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"transform must be callable with a PIL\.Image, got 3"):
        CallableTransform(3, row=row, seeding=Seeding.none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory_format must be channels_last or contiguous, got 'planes'"):
        probe(planes, photo(0), memory_format="planes")
    with pytest.raises(ValueError, match="'some' is not a valid Seeding"):
        CallableTransform(planes, row=row, seeding="some")  # type: ignore[arg-type]


def test_a_callable_with_a_state_of_its_own_is_told_from_one_without() -> None:
    class Counts:
        calls = 0

        def __call__(self, image: Image.Image) -> np.ndarray:
            self.calls += 1
            return np.full((3, *image.size), self.calls, np.uint8)

    pixels = photo(0)
    assert not probe(Counts(), pixels).is_repeatable
    generator = np.random.default_rng(0)
    assert not probe(lambda image: generator.random((3, *image.size)), pixels).is_repeatable
    assert probe(lambda image: np.random.rand(3, *image.size), pixels).is_repeatable
    assert probe(lambda image: np.zeros((3, *image.size)), pixels).is_repeatable
