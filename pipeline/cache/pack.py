"""All samples of a source in one memory-mapped file."""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.lock import file_lock

MAGIC = b"HEADRACE"
VERSION = 1
_HEADER = struct.Struct("<8sIIQ64s")
"""Magic, version, padding, number of samples, key as 64 hex digits; then n + 1 offsets (int64), then the samples."""


class PackFile:
    """Encoded samples by id, mapped read-only, so that all processes of the host share the pages.

    Opened at once whatever its size. Owns its mapping; `close` may be called twice.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Open `path`. FileNotFoundError when it is missing, ValueError when it was made for another key or version."""
        self._path, self._key = path, key
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise ValueError(f"{path} is not a pack file: it has {len(header)} bytes")
            magic, version, _, count, found = _HEADER.unpack(header)
            if magic != MAGIC or version != VERSION or found != _key_bytes(key):
                raise ValueError(f"{path} was made for other data or by another version; delete it")
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            first = _HEADER.size + 8 * (count + 1)
            if len(self._map) < first:
                raise ValueError(f"{path} was cut: it has {len(self._map)} bytes; delete it")
            self._offsets: NDArray[np.int64] = np.frombuffer(self._map, np.int64, count + 1, _HEADER.size).copy()
        if self._offsets[-1] != len(self._map):
            raise ValueError(f"{path} was cut: it has {len(self._map)} of {self._offsets[-1]} bytes; delete it")

    def __reduce__(self) -> tuple[type[PackFile], tuple[Path, str]]:
        # Another process maps the same pages of the page cache.
        return PackFile, (self._path, self._key)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._offsets) - 1

    def __call__(self, id: int) -> bytes:
        """The encoded sample `id`. RuntimeError after `close`."""
        if self._map is None:
            raise RuntimeError("close() was already called on this pack")
        return self._map[self._offsets[id] : self._offsets[id + 1]]

    def close(self) -> None:
        """Unmap the file."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_or_build(path: Path, key: str, count: int, samples: Callable[[], Iterable[bytes]]) -> PackFile:
    """The pack at `path`, built first when it is missing, stale or was left unfinished by an interruption.

    One process builds, under a lock on a file beside it; the others wait and then open what it made. The pack is
    written aside and renamed, so an interrupted build is never taken for a whole one.

    Args:
        path: where the pack is, or will be.
        key: 64 hex digits that name the content; a pack with another key is replaced.
        count: number of samples.
        samples: called when a build is needed; yields every sample's bytes in order of id.
    """
    if pack := _opened(path, key):  # without the lock: a finished pack may lie where nothing can be written
        return pack
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(path) + ".lock", waiting_for=f"it packs {path}"):
        if pack := _opened(path, key):
            return pack
        _build(path, key, count, samples())
    return PackFile(path, key)


def _opened(path: Path, key: str) -> PackFile | None:
    try:
        return PackFile(path, key)
    except (FileNotFoundError, ValueError):
        return None


def _build(path: Path, key: str, count: int, samples: Iterable[bytes]) -> None:
    aside = path.with_suffix(".tmp")  # one name, for one builder holds the lock: a killed one's remains are overwritten
    offsets = np.zeros(count + 1, np.int64)
    offsets[0] = _HEADER.size + offsets.nbytes
    written = 0
    try:
        with aside.open("wb") as file:
            file.seek(int(offsets[0]))
            for sample in samples:
                file.write(sample)
                written += 1
                offsets[written] = offsets[written - 1] + len(sample)
            if written != count:
                raise RuntimeError(f"{written} samples came for a pack of {count}")
            file.seek(0)
            file.write(_HEADER.pack(MAGIC, VERSION, 0, count, _key_bytes(key)))
            file.write(offsets.tobytes())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _key_bytes(key: str) -> bytes:
    if len(key) != 64:
        raise ValueError(f"a pack's key has 64 hex digits, got {len(key)}: {json.dumps(key)}")
    return key.encode()
