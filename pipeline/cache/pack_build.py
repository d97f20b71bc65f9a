"""Opens a pack, or builds it: whole or not at all, by one process, from earlier packs where they hold the same."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.load import Sample
from pipeline.cache.pack import (
    LACKING,
    PackFile,
    PackIndex,
    PackKey,
    first_sample_byte,
    hash_name,
    marker_of,
    write_head,
)
from pipeline.config import ConfigError
from pipeline.lock import file_lock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackContents:
    """What a pack is to hold."""

    key: PackKey
    count: int
    load: Callable[[int], Sample]
    """What is kept of sample `id`: bytes, or pixels `(H, W, 3)`."""
    stamp: Callable[[int], int]
    """64 bits that change with the file of sample `id`."""
    where: Callable[[int], str]
    passes_over: Callable[[Exception], bool] = lambda _: False
    """Errors of `load` and `stamp` for which an entry is empty: whoever wants the sample loads it from the source."""


class PackEntry(NamedTuple):
    """One sample on its way into a pack."""

    stamp: int
    name: int
    sample: Sample | None
    """None: an error that is passed over kept it from being loaded."""
    is_taken_over: bool


EachEntry = Callable[[Callable[[int], PackEntry], range], Generator[PackEntry, None, None]]
"""`each(make, ids)` yields `make(id)` for every id in order, by as many threads as it likes."""


def open_or_build(
    path: Path,
    contents: PackContents,
    *,
    family: str,
    each: EachEntry,
    check_room: Callable[[], None],
) -> PackFile:
    """The pack at `path`, built first when it is missing, damaged, marked as stale or of something else.

    One process builds, under a lock on a file beside it; the others wait and then open what it made. The pack is
    written aside and renamed, so an interrupted build is never taken for a whole one. A stale pack stays in use where
    its directory cannot be written, or has no room for another.

    Args:
        path: where the pack is, or will be.
        contents: what it holds.
        family: samples are taken over from packs beside it whose names begin so, if they were kept in the same way.
        each: makes the entries.
        check_room: called before a build; raises ConfigError when there is no room for it.

    Raises:
        ConfigError: There is no room, or the directory cannot be written.
    """
    pack = _opened(path, contents.key)  # without the lock: a finished pack may lie where nothing can be written
    if pack is not None and (not pack.is_stale() or not os.access(path.parent, os.W_OK)):
        return pack
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(f"{path}.lock", waiting_for=f"it packs {path}"))
            _aside(path).unlink(missing_ok=True)  # what a killed builder left would count as taken room
        except OSError as error:
            raise ConfigError(f"preload.dir cannot be written: {error}; set it to a directory that can be") from error
        pack = _opened(path, contents.key)
        if pack is not None and not pack.is_stale():
            return pack
        try:
            check_room()
        except ConfigError as error:
            if pack is None:
                raise
            _log.warning("%s is used as it is, though samples have changed: %s", path, error)
            return pack
        if pack is not None:
            pack.close()  # some systems replace no file that is mapped
        _build(path, contents, family, each)
    return PackFile(path, contents.key)


def _opened(path: Path, key: PackKey | None = None) -> PackFile | None:
    try:
        return PackFile(path, key)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _aside(path: Path) -> Path:
    return path.with_suffix(".tmp")  # one name, for one builder holds the lock


def _build(path: Path, contents: PackContents, family: str, each: EachEntry) -> None:
    aside = _aside(path)
    try:
        with closing(_Earlier(path.parent, family, contents.key.pixels)) as earlier, aside.open("wb") as file:
            num_taken_over = _write(file, contents, earlier, each)
        marker_of(path).unlink(missing_ok=True)
        aside.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.add_note(f"while {path} was packed; set preload.dir to another disk")
        raise
    finally:
        aside.unlink(missing_ok=True)
    _log.info(
        "packed %s: %d samples taken over from earlier packs, %d read from the source",
        path,
        num_taken_over,
        contents.count - num_taken_over,
    )


def _write(file: IO[bytes], contents: PackContents, earlier: _Earlier, each: EachEntry) -> int:
    """Write a whole pack; returns how many of its samples came from `earlier` ones."""

    def make(id: int) -> PackEntry:
        # Before the sample is loaded: a file that changes meanwhile has another stamp than its entry.
        stamp, name = 0, hash_name(contents.where(id))
        try:
            stamp = contents.stamp(id)
            sample = earlier.find(name, stamp)
            return PackEntry(stamp, name, contents.load(id) if sample is None else sample, sample is not None)
        except Exception as error:
            if contents.passes_over(error):
                return PackEntry(stamp, name, None, is_taken_over=False)
            raise

    first = file.seek(first_sample_byte(contents.count))
    head = bytearray(32 * contents.count + 8)
    index = PackIndex.over(head, contents.count, 0)
    index.offsets[0] = first
    num_taken_over = 0
    with closing(each(make, range(contents.count))) as entries:
        for id, (stamp, name, sample, is_taken_over) in enumerate(entries):
            if isinstance(sample, np.ndarray):
                index.shapes[id] = sample.shape[:2]
            if sample is None:
                index.shapes[id] = LACKING
            index.offsets[id + 1] = index.offsets[id] + file.write(b"" if sample is None else _memory(sample))
            index.stamps[id], index.names[id] = stamp, name
            num_taken_over += is_taken_over
    write_head(file, contents.key, memoryview(head))
    file.flush()
    os.fsync(file.fileno())
    return num_taken_over


def _memory(sample: Sample) -> bytes | memoryview:
    return np.ascontiguousarray(sample).reshape(-1).data if isinstance(sample, np.ndarray) else sample


class _Found(NamedTuple):
    """A pack, and its samples sorted by name, those of one name by stamp."""

    pack: PackFile
    ids: NDArray[np.intp]
    names: NDArray[np.uint64]
    stamps: NDArray[np.uint64]


class _Earlier:
    """What the packs of a family hold, by name and stamp; whoever makes it closes it."""

    def __init__(self, directory: Path, family: str, pixels: bytes) -> None:
        """Open the packs in `directory` whose names begin with `family` and whose samples were kept as `pixels`."""
        beside = [path for path in directory.glob("*.pack") if path.name.startswith(family)]
        opened: Iterable[PackFile | None] = map(_opened, beside)
        self._found = [_sorted(pack) for pack in opened if pack is not None and pack.key.pixels == pixels]

    def find(self, name: int, stamp: int) -> Sample | None:
        """A sample of that name and stamp."""
        for pack, ids, names, stamps in self._found:
            # A plain int would be compared as a float, of 53 bits.
            low, high = (int(names.searchsorted(np.uint64(name), side)) for side in ("left", "right"))
            place = low + int(stamps[low:high].searchsorted(np.uint64(stamp)))
            if place < high and int(stamps[place]) == stamp:
                found = int(ids[place])
                return None if pack.lacks(found) else pack(found)
        return None

    def close(self) -> None:
        while self._found:
            self._found.pop().pack.close()


def _sorted(pack: PackFile) -> _Found:
    index = pack.index
    ids = np.lexsort((index.stamps, index.names))
    return _Found(pack, ids, index.names[ids], index.stamps[ids])
