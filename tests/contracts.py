"""What every loader promises, whatever makes its batches. One function, called for each of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

MakeLoader = Callable[..., Any]
"""`make(paths, labels, seed=...)` -> a loader of batches of 4 that shuffles and augments."""

BATCH_SIZE = 4


def digest(batch: Any) -> str:
    """SHA-256 of every byte of a batch."""
    images, labels = batch
    total = hashlib.sha256()
    for tensor in (images.contiguous(), labels, batch.ids):
        total.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        total.update(tensor.cpu().numpy().tobytes())
    return total.hexdigest()


def worker_threads() -> set[threading.Thread]:
    """Threads of ours that are alive."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("headrace")}


def assert_loader_contract(make: MakeLoader, paths: Sequence[Path], broken: Path) -> None:
    """Hold the loaders that `make` makes to the contract; `broken` is a file that cannot be decoded."""
    before = worker_threads()
    labels = list(range(len(paths)))
    _every_id_once_with_its_label(make, paths, labels)
    _same_seed_same_bytes_and_next_epoch_differs(make, paths, labels)
    _one_iterator_is_live_at_a_time(make, paths, labels)
    _early_break_leaves_a_loader_that_works(make, paths, labels)
    _a_kept_batch_never_changes(make, paths, labels)
    _a_failure_arrives_at_its_position(make, paths, labels, broken)
    assert worker_threads() == before, "close() left threads behind"


def _every_id_once_with_its_label(make: MakeLoader, paths: Sequence[Path], labels: list[int]) -> None:
    with make(paths, labels) as loader:
        for _ in range(2):
            batches = list(loader)
            assert len(batches) == len(loader) == -(-len(paths) // BATCH_SIZE)
            ids = torch.cat([batch.ids for batch in batches])
            assert sorted(ids.tolist()) == labels
            assert torch.equal(torch.cat([labels for _, labels in batches]), ids), "a label is not its sample's"
            assert all(images.shape[1] == 3 and images.is_floating_point() for images, _ in batches)
            del batches
    with pytest.raises(RuntimeError, match="close"):
        iter(loader).__next__()
    loader.close()


def _same_seed_same_bytes_and_next_epoch_differs(make: MakeLoader, paths: Sequence[Path], labels: list[int]) -> None:
    with make(paths, labels, seed=1) as one, make(paths, labels, seed=1) as same, make(paths, labels, seed=2) as other:
        first, second = ([digest(batch) for batch in one] for _ in range(2))
        assert first == [digest(batch) for batch in same]
        assert first != second, "two epochs are alike"
        assert first != [digest(batch) for batch in other], "two seeds are alike"
        assert second == [digest(batch) for batch in same]


def _one_iterator_is_live_at_a_time(make: MakeLoader, paths: Sequence[Path], labels: list[int]) -> None:
    with make(paths, labels) as loader:
        first = iter(loader)
        next(first)
        with pytest.raises(RuntimeError, match="live iterator"):
            iter(loader)
        for _ in range(len(loader) - 1):
            next(first)
        second = iter(loader)  # the first has given its last batch, though nobody has met its StopIteration
        assert next(second).epoch == 1
        del first, second
        loader.set_epoch(5)
        assert next(iter(loader)).epoch == 5


def _early_break_leaves_a_loader_that_works(make: MakeLoader, paths: Sequence[Path], labels: list[int]) -> None:
    with make(paths, labels) as whole, make(paths, labels) as broken_off:
        list(whole)
        second = [digest(batch) for batch in whole]
        for _ in broken_off:
            break
        assert [digest(batch) for batch in broken_off] == second, "an epoch left by break did not count"


def _a_kept_batch_never_changes(make: MakeLoader, paths: Sequence[Path], labels: list[int]) -> None:
    with make(paths, labels) as loader:
        kept = [(batch, digest(batch)) for _ in range(3) for batch in loader]
        views = [(batch.images[0], batch.images[0].clone()) for batch, _ in kept]
        assert all(digest(batch) == then for batch, then in kept)
    assert all(digest(batch) == then for batch, then in kept), "close() changed a batch"
    del kept
    assert all(torch.equal(view, then) for view, then in views)


def _a_failure_arrives_at_its_position(
    make: MakeLoader, paths: Sequence[Path], labels: list[int], broken: Path
) -> None:
    with make(paths, labels) as loader:
        ids = [batch.ids.tolist() for batch in loader]
    position = 2
    bad = ids[position][1]
    with_bad = [broken if id == bad else path for id, path in enumerate(paths)]
    with make(with_bad, labels) as loader:
        iterator = iter(loader)
        for expected in ids[:position]:
            assert next(iterator).ids.tolist() == expected
        with pytest.raises(ValueError, match=r".") as caught:
            next(iterator)
        notes = " ".join(caught.value.__notes__)
        assert f"id {bad}" in notes
        assert str(broken) in notes
        assert "stage" in notes
        with pytest.raises(StopIteration):
            next(iterator)


def assert_same_batches(loaders: Sequence[Any], epochs: int = 2) -> None:
    """All loaders give the same bytes, epoch by epoch."""
    for epoch in range(epochs):
        expected, *others = ([digest(batch) for batch in loader] for loader in loaders)
        assert expected
        for number, other in enumerate(others, start=1):
            assert other == expected, f"loader {number} differs in epoch {epoch}"


def stack(batches: Sequence[Any]) -> np.ndarray:
    """All images of all batches, as an array."""
    return np.concatenate([batch.images.float().numpy() for batch in batches])
