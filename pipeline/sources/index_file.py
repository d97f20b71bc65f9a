"""A file of arrays beside data, or in the user's cache, that can be lost at any moment without harm."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.lock import file_lock
from pipeline.sources.disk_cache import user_cache_dir
from pipeline.sources.split import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

_RULES = f"headrace index 3 {' '.join(sorted(IMAGE_SUFFIXES))}"
"""What an index was made by; the number grows with every change of what is kept or of what belongs to a data set."""

Arrays = Mapping[str, NDArray[Any]]


class IndexFile:
    """Arrays by name, kept in `directory`, or where that is not writable in the user's cache directory.

    A file that is damaged, half written or made by other rules counts as none: what it says can always be found anew.
    It begins with a line that has a digest of all others; it holds numbers and bytes, never pickles.
    """

    def __init__(self, directory: str, name: str) -> None:
        beside = os.path.join(directory, f".{name}")
        self._places = [beside]
        try:
            digest = blake2b(os.fsencode(beside), digest_size=16).hexdigest()
            self._places.append(user_cache_dir("index", digest))
        except RuntimeError:
            log.debug("%s has no other place: the user has no home directory", beside)
        self._stamps: list[tuple[int, int]] = []

    def read(self) -> Arrays | None:
        """Returns the arrays that were written last, or None."""
        self._stamps = self._stamps_now()
        newest_first = sorted(zip(self._stamps, self._places, strict=True), reverse=True)
        for stamp, path in newest_first:
            arrays = None if stamp == _NOT_THERE else _read(path)
            if arrays is not None:
                return arrays
        return None

    def has_changed(self) -> bool:
        """Whether another process wrote since `read`."""
        return self._stamps != self._stamps_now()

    def write(self, arrays: Arrays) -> None:
        """Puts `arrays` in the place of what was there, as a whole or not at all; a disk that refuses is logged."""
        refused: OSError | None = None
        for path in self._places:
            try:
                _replace(path, arrays)
            except OSError as error:
                refused = error
            else:
                log.info("wrote %s: the next start reads it instead of walking through all files", path)
                return
        log.warning("no index could be written, so the next start walks again: %s", refused)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time in, also on other machines that share the directory where locks reach them."""
        for place in self._places:
            try:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                lock = file_lock(f"{place}.lock", waiting_for="it lists the same files")
                lock.__enter__()
            except OSError:
                continue
            try:
                yield
            finally:
                lock.__exit__(None, None, None)
            return
        yield

    def _stamps_now(self) -> list[tuple[int, int]]:
        stamps = []
        for path in self._places:
            try:
                status = os.stat(path)
                stamps.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                stamps.append(_NOT_THERE)
        return stamps


_NOT_THERE = (-1, -1)


def _read(path: str) -> Arrays | None:
    try:
        with open(path, "rb") as file:
            digest, content = file.readline().rstrip(), file.read()
    except OSError as error:
        log.warning("%s cannot be read and is made anew: %s", path, error)
        return None
    if digest != _digest(content):
        log.warning("%s is damaged and is made anew", path)
        return None
    body = io.BytesIO(content)
    told = json.loads(body.readline())
    if told["rules"] != _RULES:
        log.info("%s is of another version and is made anew", path)
        return None
    return {name: np.lib.format.read_array(body, allow_pickle=False) for name in told["names"]}


def _replace(path: str, arrays: Arrays) -> None:
    body = io.BytesIO()
    body.write(json.dumps({"rules": _RULES, "names": list(arrays)}).encode() + b"\n")
    for array in arrays.values():
        np.lib.format.write_array(body, np.asarray(array), allow_pickle=False)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # One name, so that what a killed writer leaves is what the next one writes over; the digest tells of two at once.
    temporary = f"{path}.part"
    try:
        with open(temporary, "wb") as file:
            file.write(_digest(body.getbuffer()) + b"\n")
            file.write(body.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _digest(content: bytes | memoryview) -> bytes:
    return blake2b(content, digest_size=16).hexdigest().encode()
