"""Long random runs. `make test` runs them at a fraction of their length, `make soak` at full length."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import digest
from damage import mutated
from fakes import jpeg_bytes, make_loader, photo
from samples import Painted
from watching import SOAK, TESTS, run_script

from pipeline.decode import Scratch, decode, inspect

pytestmark = pytest.mark.soak


def length(full: int, *, short: int) -> int:
    return full if SOAK else short


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


@pytest.mark.parametrize(("backend", "num_workers"), [("threads", 0), ("threads", 3), ("processes", 2)])
def test_batches_held_and_dropped_at_random_never_change(backend: str, num_workers: int) -> None:
    random = np.random.default_rng(num_workers)
    held: deque[tuple[Any, str]] = deque()
    options = {"num_samples": 97, "backend": backend, "num_workers": num_workers, "read_ahead": True}
    with make_loader(Painted(), **options) as loader:
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


def test_very_many_records_cost_their_packed_index_once_and_nothing_more_later(tmp_path: Path) -> None:
    text = (TESTS / "many_records.py").read_text()
    few, many = (
        [json.loads(line) for line in run_script(tmp_path, text, count, limit_s=1500).splitlines()]
        for count in (1_000, length(1_000_000, short=30_000))
    )
    index_bytes, slot_bytes = many[0]["index_bytes"], many[0]["slot_bytes"]
    for epoch in many:
        assert epoch["pss_bytes"] < few[0]["pss_bytes"] + 1.2 * index_bytes + slot_bytes
    assert many[2]["pss_bytes"] < 1.02 * many[0]["pss_bytes"]
