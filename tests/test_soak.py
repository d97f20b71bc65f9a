"""Long random runs. `make test` runs them at a fraction of their length, `make soak` at full length."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy as np
import pytest
from contracts import digest
from fakes import FakeSample, jpeg_bytes, make_loader, photo

from pipeline.decode import Scratch, decode, inspect

FULL = os.environ.get("HEADRACE_SOAK") == "1"

pytestmark = pytest.mark.soak


def length(full: int, *, short: int) -> int:
    return full if FULL else short


def mutated(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """`data` with bytes flipped, cut off, or spliced with another file."""
    kind = random.integers(3)
    place = int(random.integers(2, len(data)))
    if kind == 0:
        changed = bytearray(data)
        for index in random.integers(2, len(data), random.integers(1, 9)).tolist():
            changed[index] = int(random.integers(256))
        return bytes(changed)
    return data[:place] if kind == 1 else data[:place] + other[int(random.integers(len(other))) :]


def test_a_mutated_jpeg_is_an_image_or_a_named_error() -> None:
    random = np.random.default_rng(0)
    originals = [jpeg_bytes(photo(seed, 48, 64), quality) for seed, quality in ((1, 30), (2, 75), (3, 95))]
    scratch, refused = Scratch(), 0
    count = length(10_000, short=500)
    for number in range(count):
        data = mutated(originals[number % 3], originals[(number + 1) % 3], random)
        try:
            info = inspect(data)
            pixels = decode(data, info, scratch)
        except ValueError:
            refused += 1
        else:
            assert pixels.shape == (info.height, info.width, 3)
    assert count / 10 < refused < count


@pytest.mark.parametrize("num_workers", [0, 3])
def test_batches_held_and_dropped_at_random_never_change(num_workers: int) -> None:
    random = np.random.default_rng(num_workers)
    held: deque[tuple[Any, str]] = deque()
    with make_loader(FakeSample(), num_samples=97, num_workers=num_workers, read_ahead=True) as loader:
        seen = 0
        while seen < length(20_000, short=1_000):
            for batch in loader:
                seen += 1
                if random.random() < 0.5:
                    held.append((batch, digest(batch)))
                while len(held) > random.integers(0, 30):
                    kept, then = held.popleft()
                    assert digest(kept) == then
                    del kept
                if random.random() < 0.02:
                    break
            if random.random() < 0.1:
                loader.set_epoch(int(random.integers(1000)))
            if random.random() < 0.1:
                loader.load_state_dict(loader.state_dict())
        assert loader._ring.num_slots <= 2 * 2 + 2
    assert all(digest(kept) == then for kept, then in held)
