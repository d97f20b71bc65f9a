"""What every source promises, whatever its samples lie in. One function, called for each kind of them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import Source, Split

MakeSource = Callable[[Split], Source]
"""Opens one split of a set of files that are the same at each call; both splits have samples."""

NUM_THREADS = 8


def assert_source_contract(make: MakeSource) -> None:
    """Hold the sources that `make` opens to the contract; changes the times of their files."""
    # All of them before anything is looked at: `make` may write its files anew each time.
    source, again, other = make("train"), make("train"), make("val")
    _labels_and_names_are_of_its_samples(source)
    samples = _every_sample_reads_the_same_however_often_and_in_any_thread(source)
    for same in (again, pickle.loads(pickle.dumps(source)), pickle.loads(pickle.dumps(again))):
        _is_the_same(source, same, samples)
    assert source.fingerprint() != other.fingerprint(), "the splits have one fingerprint"
    assert tuple(source.class_names) == tuple(other.class_names), "the splits number their classes differently"
    _no_sample_is_in_both(source, other)
    _outside_there_is_nothing(source)
    _stamps_change_with_the_files(source)
    for opened in (source, again, other):
        if hasattr(opened, "close"):
            opened.close()
            opened.close()


def _labels_and_names_are_of_its_samples(source: Source) -> None:
    assert len(source) > 0
    assert len(source.labels) == len(source)
    assert source.labels.dtype in (np.int64, np.float32)
    assert not source.labels.flags.writeable
    assert all(np.array_equal(source.label(id), source.labels[id]) for id in range(len(source)))
    if len(source.class_names) > 0:
        assert source.labels.dtype == np.int64
        assert 0 <= source.labels.min() <= source.labels.max() < len(source.class_names)
    assert len({source.where(id) for id in range(len(source))}) == len(source), "two samples have one name"
    assert all(os.path.isfile(path) for path in source.files())


def _every_sample_reads_the_same_however_often_and_in_any_thread(source: Source) -> list[bytes]:
    samples = [_bytes_of(source, id) for id in range(len(source))]
    assert all(samples)
    # A stride apart, so that threads meet in the same file, and all of them at every sample.
    orders = [np.roll(np.arange(len(source)), start).tolist() for start in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for order, read in zip(
            orders, pool.map(lambda ids: [_bytes_of(source, id) for id in ids], orders), strict=True
        ):
            assert read == [samples[id] for id in order]
    return samples


def _is_the_same(source: Source, same: Source, samples: list[bytes]) -> None:
    assert [_bytes_of(same, id) for id in range(len(same))] == samples
    assert np.array_equal(same.labels, source.labels)
    assert same.labels.dtype == source.labels.dtype
    assert tuple(same.class_names) == tuple(source.class_names)
    assert same.fingerprint() == source.fingerprint()
    assert list(same.files()) == list(source.files())
    for tell in ("where", "stamp"):
        assert [getattr(same, tell)(id) for id in range(len(same))] == _told(source, tell)


def _no_sample_is_in_both(source: Source, other: Source) -> None:
    assert not set(_told(source, "where")) & set(_told(other, "where"))


def _outside_there_is_nothing(source: Source) -> None:
    for outside in (-1, len(source)):
        for ask in (source.read, source.stamp):
            with pytest.raises(IndexError):
                ask(outside)


def _stamps_change_with_the_files(source: Source) -> None:
    before = _told(source, "stamp")
    assert all(0 <= stamp < 2**64 for stamp in before)
    assert _told(source, "stamp") == before
    if len(source.files()) == 0:  # pixels in memory, whose stamps are checksums
        return
    for path in map(Path, set(source.files())):
        os.utime(path, ns=(5, path.stat().st_mtime_ns + 10**9))
    assert not [id for id, stamp in enumerate(_told(source, "stamp")) if stamp == before[id]], "a stamp stayed"


def _told(source: Source, what: str) -> list[object]:
    return [getattr(source, what)(id) for id in range(len(source))]


def _bytes_of(source: Source, id: int) -> bytes:
    """The sample, and of pixels also that they are what a decoder takes."""
    sample = source.read(id)
    if isinstance(sample, np.ndarray):
        assert sample.dtype == np.uint8
        assert (sample.ndim, sample.shape[2]) == (3, 3)
        return repr(sample.shape).encode() + sample.tobytes()
    assert type(sample) is bytes
    return sample
