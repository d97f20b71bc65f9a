"""A file that remembers what a walk found, so that the next start need not walk again."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.lock import file_lock
from pipeline.sources.disk_cache import user_cache_dir

log = logging.getLogger(__name__)

_VERSION = 1
_SETTLED_NS = 2_000_000_000
"""The grain of FAT's clock, the coarsest there is."""

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last changes of content and of anything, in ns."""
Arrays = Mapping[str, Any]
"""NumPy arrays by name."""


class IndexFile:
    """Arrays by name, kept in `directory`, or where that is not writable in the user's cache directory.

    A file that is damaged, of another version or half written counts as none: what it says can always be found anew.
    It holds numbers and bytes, never pickles.
    """

    def __init__(self, directory: str, name: str) -> None:
        beside = os.path.join(directory, f".{name}.npz")
        digest = blake2b(os.fsencode(beside), digest_size=16).hexdigest()
        self._places = (beside, user_cache_dir("index", f"{digest}.npz"))

    def read(self) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays that were written last, or None."""
        for path in self._places:
            try:
                with open(path, "rb") as file, np.load(file, allow_pickle=False) as opened:
                    arrays = {key: opened[key] for key in opened.files}
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                log.warning("%s cannot be read and is made anew: %s", path, error)
                continue
            if arrays.pop("version", np.array(0)).tolist() == _VERSION:
                return arrays
            log.info("%s is of another version and is made anew", path)
        return None

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
                lock = file_lock(place.removesuffix(".npz") + ".lock", waiting_for="it lists the same files")
                lock.__enter__()
            except OSError:
                continue
            try:
                yield
            finally:
                lock.__exit__(None, None, None)
            return
        yield


def identity_of(path: str) -> Identity:
    """Returns what changes when the file or directory at `path` does; of a link, what it leads to. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(identity: Identity) -> bool:
    """Returns whether what is read from now on can be told by `identity`, read before, from what comes later.

    It cannot where the last change is so young that another one may fall into the same grain of the clock.
    """
    return time.time_ns() - max(identity[3:]) > _SETTLED_NS


def pack_identities(identities: Iterable[Identity]) -> NDArray[np.int64]:
    """Returns (n, 5); what was unsigned keeps its bits."""
    numbers = [[number - 2**64 if number >= 2**63 else number for number in identity] for identity in identities]
    return np.array(numbers, np.int64).reshape(-1, 5)


def unpack_identities(packed: NDArray[np.int64]) -> list[Identity]:
    """Returns what `pack_identities` was given."""
    return [(device % 2**64, inode % 2**64, *others) for device, inode, *others in packed.tolist()]


def pack_names(names: Iterable[str]) -> NDArray[np.uint8]:
    """Returns the names as the system writes them, each ended by a NUL; ValueError where one holds a NUL."""
    names = names if isinstance(names, list | tuple) else list(names)
    packed = np.frombuffer(os.fsencode("\0".join([*names, ""])), np.uint8)
    if np.count_nonzero(packed == 0) != len(names):
        number = next(number for number, name in enumerate(names) if "\0" in name)
        raise ValueError(f"name {number} holds a NUL character: {names[number]!r}")
    return packed


def unpack_names(packed: NDArray[np.uint8]) -> tuple[str, ...]:
    """Returns what `pack_names` was given."""
    return tuple(os.fsdecode(packed.tobytes()).split("\0")[:-1])


def slices(lengths: NDArray[np.int64]) -> list[slice]:
    """Returns where pieces of `lengths` lie that follow one another."""
    ends = np.cumsum(lengths)
    return [slice(*bounds) for bounds in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _replace(path: str, arrays: Arrays) -> None:
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".headrace-", suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, version=np.array(_VERSION), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
