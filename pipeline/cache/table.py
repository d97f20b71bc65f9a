"""The shared memory of a store: what it is, where each sample lies in it, and the samples themselves.

    header      4,096 bytes, `Field`s of 8
    words       8 bytes a sample: 0 nothing, `word_of(start, ...)`: lies there, minus that: being written there
    forms       8 bytes a sample: > 0 bytes of an encoded image, < 0 -(height << 32 | width) of pixels
    ranks       8 bytes a sample (float64): the lower, the sooner it gives way; only stores that evict write them
    asked       1 byte a sample: whether it was asked for yet
    pages       4 bytes a page of the data (int32): 1 + the sample that lay there last; only stores that evict
    data

Memory is taken page by page when it is first written. Everything but the data and the ranks is written by single
aligned stores under a claim, so a reader sees a value whole: a sample is there when its word says so, and its word is
stored last.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.settings import Kind, Settings
from pipeline.config.cache import CachePolicy
from pipeline.shared import anonymous_file, map_file

PAGE_BYTES = 4096
_UNLIMITED = 2**62
_VERSION = 1
_START_BITS = 46
_GENERATIONS = 1 << 16

ROOM_TO_EVICT = 4
"""Addresses that an evicting store has for each byte it keeps: pages given back leave holes, and holes cost nothing."""


class Field(IntEnum):
    """Numbers in the header."""

    version = 0
    num_samples = 1
    max_bytes = 2
    max_images = 3
    policy = 4
    kind = 5
    head = 6
    """Where the next sample is put, in bytes from the data's start."""
    kept_bytes = 7
    kept_images = 8
    evictions = 9
    smallest_bytes = 10
    """Of all samples that were to be kept; 0: there was none."""
    threshold = 11
    """As a float64: the rank up to which a sample last found no room, in a store that goes by value."""
    places = 12
    """Given out so far."""
    is_changing = 13
    """1 while somebody changes what lies where: whoever finds it so knows that the one before died over it."""
    had_no_room = 14
    """1 once a file was not exchanged for its pixels for want of room."""


class Table:
    """A store's memory, mapped. Views of it stay valid as long as they are referenced."""

    def __init__(self, fd: int) -> None:
        """Map the file of `fd`, which `create` made; the descriptor stays the caller's."""
        memory = map_file(fd, os.fstat(fd).st_size, writable=True)
        self.header: NDArray[np.int64] = memory[:PAGE_BYTES].view(np.int64)
        if self.header[Field.version] != _VERSION:
            raise RuntimeError(f"a store of version {self.header[Field.version]} cannot be read by version {_VERSION}")
        limit = int(self.header[Field.max_images])
        self.settings = Settings(
            num_samples=int(self.header[Field.num_samples]),
            max_bytes=int(self.header[Field.max_bytes]),
            max_images=None if limit == _UNLIMITED else limit,
            policy=list(CachePolicy)[self.header[Field.policy]],
            kind=list(Kind)[self.header[Field.kind]],
        )
        layout = _Layout.of(self.settings)
        count = self.settings.num_samples
        self.threshold: NDArray[np.float64] = self.header[Field.threshold : Field.threshold + 1].view(np.float64)
        self.words: NDArray[np.int64] = memory[layout.words :][: 8 * count].view(np.int64)
        self.forms: NDArray[np.int64] = memory[layout.forms :][: 8 * count].view(np.int64)
        self.ranks: NDArray[np.float64] = memory[layout.ranks :][: 8 * count].view(np.float64)
        self.asked: NDArray[np.uint8] = memory[layout.asked :][:count]
        self.pages: NDArray[np.int32] = memory[layout.pages : layout.data].view(np.int32)
        self.data: NDArray[np.uint8] = memory[layout.data :]
        self.data_start = layout.data


def create(settings: Settings) -> int:
    """A descriptor of the memory of an empty store; the caller closes it. ValueError for a budget below 0."""
    if settings.max_bytes < 0 or (settings.max_images or 0) < 0:
        raise ValueError(f"a store's budget must be >= 0, got {settings.max_bytes} bytes, {settings.max_images} images")
    fd = anonymous_file("store", _Layout.of(settings).end)
    header = np.zeros(len(Field), np.int64)
    header[Field.version] = _VERSION
    header[Field.num_samples] = settings.num_samples
    header[Field.max_bytes] = settings.max_bytes
    header[Field.max_images] = _UNLIMITED if settings.max_images is None else settings.max_images
    header[Field.policy] = list(CachePolicy).index(settings.policy)
    header[Field.kind] = list(Kind).index(settings.kind)
    os.pwrite(fd, header.tobytes(), 0)
    return fd


class _Layout(NamedTuple):
    """Where the parts begin, in bytes; each on a page of its own."""

    words: int
    forms: int
    ranks: int
    asked: int
    pages: int
    data: int
    end: int

    @classmethod
    def of(cls, settings: Settings) -> _Layout:
        span = whole_pages(settings.max_bytes) * (ROOM_TO_EVICT if settings.evicts else 1)
        column = whole_pages(8 * settings.num_samples)
        words = PAGE_BYTES
        asked = words + 3 * column
        pages = asked + whole_pages(settings.num_samples)
        data = pages + (whole_pages(4 * (span // PAGE_BYTES)) if settings.evicts else 0)
        return cls(words, words + column, words + 2 * column, asked, pages, data, data + span)


def word_of(start: int, num_places: int) -> int:
    """The word of a sample that lies at `start`, the `num_places`-th place that was given out.

    Without that number one that left and came back to its place would look as if it had been there all the time.
    """
    return 1 + start + (num_places % _GENERATIONS << _START_BITS)


def start_of(word: int) -> int:
    """Where the sample of this word lies or is being written, in bytes from the data's start."""
    return (abs(word) - 1) % (1 << _START_BITS)


def whole_pages(size_bytes: int) -> int:
    """`size_bytes` rounded up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
