"""A user's callable in the place of the built-in transforms: a `PIL.Image` goes in, a row of a batch comes out.

Such callables draw from the global generators of `random`, `numpy.random` and torch. For every sample these are seeded
from the sample's own draws, so that its row does not depend on who makes it, and when. What draws from a generator of
its own, as `numpy.random.default_rng()` makes one, is out of reach.

Worker processes use this without torch, unless the callable itself imports it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import Rendering, Scratch, decode_counted
from pipeline.draws import key
from pipeline.stats import StageClock
from pipeline.transforms.sample import shrink_to

_PROBE_DRAWS = np.zeros(2)


class Seeding(StrEnum):
    """What happens to the process's global generators when a callable is called."""

    own = "own"
    """Seeded for every sample, and torch kept to one thread: in a worker process of one thread, where nobody else
    draws."""
    borrowed = "borrowed"
    """The same, and afterwards the generators' states and torch's number of threads are as they were: in the thread
    that consumes the batches, where no other thread draws meanwhile."""
    none = "none"
    """Left alone: in several threads of one process, between which a seed could not be kept apart."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The one shape and dtype that a callable's results have, and how they lie in a batch."""

    image_shape: tuple[int, int, int]
    """(3, H, W), as the callable returns it."""
    dtype: np.dtype[Any]
    """In native byte order."""
    memory_format: str = "channels_last"
    """Rows are (H, W, 3) for `channels_last` and (3, H, W) for `contiguous`."""

    def __post_init__(self) -> None:
        if self.memory_format not in ("channels_last", "contiguous"):
            raise ValueError(f"memory_format must be channels_last or contiguous, got {self.memory_format!r}")

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of a row of the batch."""
        channels, height, width = self.image_shape
        return (height, width, channels) if self.memory_format == "channels_last" else self.image_shape

    def write(self, planes: NDArray[Any], row: NDArray[Any]) -> None:
        """Copy `planes` (3, H, W) into `row`; an error if they are not what the format says."""
        if planes.shape != self.image_shape:
            raise ValueError(
                f"transform returned {planes.shape} for this image and {self.image_shape} for the first one; "
                "every sample must have one shape: add a resize to the transform"
            )
        if planes.dtype.newbyteorder("=") != self.dtype:
            raise TypeError(
                f"transform returned {planes.dtype} for this image and {self.dtype} for the first one; "
                "every sample must have one dtype: convert at the end of the transform"
            )
        if self.memory_format == "contiguous":
            np.copyto(row, planes)
            return
        # Plane by plane: NumPy takes four times longer for the transposed whole.
        for channel, plane in enumerate(planes):
            np.copyto(row[:, :, channel], plane)


class Probed(NamedTuple):
    """What one call of a callable showed."""

    row: RowFormat
    draws_globally: bool
    """Whether it drew from a global generator, so that its results depend on seeds."""
    is_repeatable: bool
    """Whether the same image and seeds gave the same result again; if not, it keeps a state of its own."""


class CallableTransform:
    """Turns one sample into its row by a user's callable; picklable if that is, and free of torch if that is.

    The callable gets a `PIL.Image` of its own, upright RGB, reduced to `max_side`. It returns a torch tensor on the
    CPU (any gradient is left behind) or a NumPy array, both (3, H, W), or an RGB `PIL.Image`, which becomes uint8.
    The two columns of `draws` seed the generators. A callable whose first call is what imports torch is called a
    second time for that image, now with torch's generator seeded.
    """

    num_draws = 2

    def __init__(
        self,
        function: Callable[[Image.Image], Any],
        *,
        row: RowFormat,
        seeding: Seeding,
        max_side: int | None = None,
        rendering: Rendering | None = None,
    ) -> None:
        """Use `function` for rows of the format that `probe` found."""
        check_callable(function)
        self._function = function
        self._row = row
        self._seeding = Seeding(seeding)
        self._max_side = max_side
        self._rendering = rendering or Rendering()
        self.channels_last = row.memory_format == "channels_last"
        self.row_shape = row.row_shape
        self.row_dtype = row.dtype

    def __call__(
        self,
        sample: bytes | NDArray[np.uint8],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the row of `sample`, encoded or upright RGB (H, W, 3), into `out` of `row_shape` and `row_dtype`.

        `draws` are the sample's two uniforms, `scratch` is the calling thread's.

        Raises:
            ValueError: `sample` cannot be decoded, or the callable's result has not the shape of the others.
            TypeError: the callable's result is of another kind or dtype.
            Exception: whatever the callable raises, as it is.
        """
        pixels = decode_counted(sample, scratch, clock, rendering=self._rendering)
        started = perf_counter()
        result = self._result(shrink_to(pixels, self._max_side), draws)
        self._row.write(_planes(result), out)
        if clock is not None:
            clock.add("transform", perf_counter() - started)

    def _result(self, pixels: NDArray[np.uint8], draws: NDArray[np.float64]) -> object:
        if self._seeding is Seeding.none:
            return self._function(Image.fromarray(pixels))
        if self._seeding is Seeding.own:
            return _seeded_call(self._function, pixels, draws)
        with _globals_kept():
            return _seeded_call(self._function, pixels, draws)


def probe(
    function: Callable[[Image.Image], Any], pixels: NDArray[np.uint8], *, memory_format: str = "channels_last"
) -> Probed:
    """Call `function` twice, on upright RGB `pixels` (H, W, 3) already reduced to any `max_side`, to learn its format.

    The generators are seeded for the call and afterwards as they were.

    Raises:
        ValueError: the result is not (3, H, W), or there is no such memory format.
        TypeError: `function` is not callable, or its result is no image or of a dtype that batches cannot have.
        Exception: whatever `function` raises, as it is.
    """
    check_callable(function)
    with _globals_kept():
        result = _seeded_call(function, pixels, _PROBE_DRAWS)
        afterwards = _generator_states()
        _seed(_PROBE_DRAWS)
        draws_globally = afterwards != _generator_states()
        planes = _planes(result).copy()  # it may lie in memory that the next call writes to
        again = _planes(_seeded_call(function, pixels, _PROBE_DRAWS))
    channels, height, width = planes.shape
    row = RowFormat((channels, height, width), planes.dtype.newbyteorder("="), memory_format)
    is_repeatable = again.shape == planes.shape and again.tobytes() == planes.tobytes()
    return Probed(row, draws_globally, is_repeatable)


def check_callable(function: object) -> None:
    """Raise TypeError if `function` cannot be called."""
    if not callable(function):
        raise TypeError(f"transform must be callable with a PIL.Image, got {function!r}")


def _seeded_call(
    function: Callable[[Image.Image], Any], pixels: NDArray[np.uint8], draws: NDArray[np.float64]
) -> object:
    """`function` of an image, as in a process of its own: a fresh copy of the pixels and freshly seeded generators."""
    had_torch = "torch" in sys.modules
    _seed(draws)
    result: object = function(Image.fromarray(pixels))
    if had_torch or "torch" not in sys.modules:
        return result
    # The call imported torch, whose generator was not there to be seeded: in any other process this image might have
    # come second.
    _seed(draws)
    return function(Image.fromarray(pixels))


def _seed(draws: NDArray[np.float64]) -> None:
    """Seed each global generator with a number of its own from the sample's two uniforms; keep torch to one thread."""
    first, second = (int(draw * 2**53) for draw in draws[:2].tolist())
    random.seed(key("random", first=first, second=second))
    seed = key("numpy", first=first, second=second)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch = sys.modules.get("torch")
    if torch is not None:
        # Not torch.manual_seed(), which would seed every accelerator too.
        torch.default_generator.manual_seed(key("torch", first=first, second=second))
        # Its sums over a large image are cut between threads: their number would show in the last bit.
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)


@contextmanager
def _globals_kept() -> Iterator[None]:
    """Put back whatever `_seed` changes; of a torch that was not imported before there is nothing to put back."""
    python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch_state, num_threads = torch.default_generator.get_state(), torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None:
            torch.default_generator.set_state(torch_state)
            if torch.get_num_threads() != num_threads:
                torch.set_num_threads(num_threads)


def _generator_states() -> tuple[object, ...]:
    """The states of the global generators as one value that can be compared."""
    numpy_state: Any = np.random.get_state(legacy=True)
    torch = sys.modules.get("torch")
    torch_state = None if torch is None else torch.default_generator.get_state().numpy().tobytes()
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch_state


def _planes(result: object) -> NDArray[Any]:
    """A callable's result as an array (3, H, W), sharing its memory where it can."""
    torch = sys.modules.get("torch")
    if isinstance(result, Image.Image):
        if result.mode != "RGB":
            raise ValueError(f"transform returned a PIL image of mode {result.mode}; end it with convert('RGB')")
        return np.asarray(result).transpose(2, 0, 1)
    if torch is not None and isinstance(result, torch.Tensor):
        result = _array_of(result)
    if not isinstance(result, np.ndarray):
        raise TypeError(
            "transform must return a torch tensor or a NumPy array (3, H, W), or an RGB PIL image, "
            f"got {type(result).__name__}"
        )
    if result.dtype.kind not in "uif" or result.dtype.itemsize > 8:
        raise TypeError(f"transform returned {result.dtype}, which a batch cannot hold; return uint8 or float32")
    if result.ndim != 3 or result.shape[0] != 3 or 0 in result.shape:
        last = result.ndim == 3 and result.shape[2] == 3
        cure = "put the channels first: transpose(2, 0, 1)" if last else "one RGB image, channels first"
        raise ValueError(f"transform must return (3, H, W), got {result.shape}; {cure}")
    return result


def _array_of(tensor: Any) -> object:
    if tensor.device.type != "cpu":
        raise TypeError(
            f"transform returned a tensor on {tensor.device}; return a CPU tensor; "
            "the batch is moved for you by prefetch_device="
        )
    try:
        return tensor.numpy(force=True)  # takes off the gradient; the tensor is on the CPU already
    except TypeError as error:
        raise TypeError(
            f"transform returned a tensor of {tensor.dtype} and {tensor.layout}, which NumPy cannot hold; "
            "return a dense tensor of uint8 or float32"
        ) from error
