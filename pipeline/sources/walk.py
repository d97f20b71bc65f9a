"""The images below some directories, found again without reading the directories that did not change.

The times of a directory change when an entry is added, removed or renamed in it. So it is read again if its times or
its inode are others than last time, and also where those would not tell: where it had changed just before it was read,
for another change within the clock's grain leaves no trace; where it holds links, whose targets become directories
without a trace here; and on file systems that are not known to keep these times.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.index import (
    Identity,
    Index,
    identity_of,
    is_settled,
    pack_json,
    pack_names,
    slices,
    unpack_json,
    unpack_names,
)
from pipeline.sources.index_file import Arrays, IndexFile
from pipeline.sources.mounts import keeps_directory_times
from pipeline.sources.split import IMAGE_SUFFIXES, stable_hash

MIN_FILES = 20_000
"""So many images in directories that had to be read are worth an index: reading them takes a tenth of a second."""
_NAME = "headrace-index"


@dataclass(slots=True)
class _Directory:
    """What one directory holds, hidden names aside."""

    identity: Identity
    is_settled: bool
    images: bytes = b""
    """Their names in order, each ended by a NUL."""
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """`stable_hash` of each image's path below the root."""
    children: list[tuple[str, int]] = field(default_factory=list)
    """Directories in it, in order, each with the number of images that stand before it."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are no images, by suffix."""
    has_links: bool = False

    @property
    def cost(self) -> int:
        """Images found; none of a directory whose identity will never tell what it holds."""
        return 0 if self.has_links else len(self.hashes)


@dataclass(slots=True)
class Images:
    """Images below a root in the order of a walk: names sorted, a directory's images where its name stands."""

    paths: list[bytes] = field(default_factory=list)
    """Pieces of their paths below the root, each path ended by a NUL."""
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    """`stable_hash` of each path, in pieces too."""
    count: int = 0


class Walk:
    """Walks through directories below `root`; at its end, as a context manager, it writes an index if that is worth it.

    Processes that find no index wait for the first of them to write it.
    """

    def __init__(self, root: str) -> None:
        self.ignored: Counter[str] = Counter()
        """Files that are no images, by suffix, of everything walked so far."""
        self._root = root
        self._index = Index(IndexFile(root, _NAME), min_cost=MIN_FILES, pack=_pack, unpack=_unpack)
        self._keeps_times: dict[int, bool] = {}
        """By device."""

    def __enter__(self) -> Self:
        self._index.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._index.__exit__(*exc)

    def images(self, directory: str) -> Images:
        """Returns the images below `root/directory`; ValueError for a link that leads back to where it lies."""
        found = Images()
        self._add(found, directory, ())
        return found

    def _add(self, found: Images, directory: str, parents: tuple[tuple[int, int], ...]) -> None:
        here = os.path.join(self._root, directory)
        status = os.stat(here)
        place = status.st_dev, status.st_ino
        if place in parents:
            raise ValueError(f"{here} is a link to a directory that holds it; remove the link")
        entry = self._entry(directory, status)
        self.ignored.update(entry.ignored)
        prefix = os.fsencode(directory + os.sep)
        names = entry.images.split(b"\0")
        begin = 0
        for child, end in (*entry.children, (None, len(entry.hashes))):
            if begin < end:
                found.paths.append(prefix + (b"\0" + prefix).join(names[begin:end]) + b"\0")
                found.hashes.append(entry.hashes[begin:end])
                found.count += end - begin
            if child is not None:
                self._add(found, f"{directory}{os.sep}{child}", (*parents, place))
            begin = end

    def _entry(self, directory: str, status: os.stat_result) -> _Directory:
        device, identity = status.st_dev, identity_of(status)
        if device not in self._keeps_times:
            self._keeps_times[device] = keeps_directory_times(os.path.join(self._root, directory))
        if not self._keeps_times[device]:
            return _read(self._root, directory, identity)
        return self._index.entry(directory, identity, lambda: _read(self._root, directory, identity))


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Returns whether `entry` is a directory, or a link to one; of a link to itself False, as of one to nothing."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _read(root: str, directory: str, identity: Identity) -> _Directory:
    entry = _Directory(identity, is_settled=is_settled(identity))
    names: list[str] = []
    with os.scandir(os.path.join(root, directory)) as entries:
        ordered = sorted(entries, key=lambda found: found.name)
    for found in ordered:
        name = found.name
        entry.has_links |= found.is_symlink()
        if name.startswith("."):
            kind = "hidden"
        elif is_directory(found):
            entry.children.append((name, len(names)))
            continue
        else:
            kind = os.path.splitext(name)[1].lower()
            if kind.lstrip(".") in IMAGE_SUFFIXES:
                names.append(name)
                continue
        entry.ignored[kind or "without a suffix"] = entry.ignored.get(kind or "without a suffix", 0) + 1
    entry.is_settled &= not entry.has_links
    entry.images = os.fsencode("".join(f"{name}\0" for name in names))
    hashes = (stable_hash(f"{directory}{os.sep}{name}") for name in names)
    entry.hashes = np.fromiter(hashes, np.uint64, len(names))
    return entry


def _pack(entries: Sequence[_Directory]) -> Arrays:
    children = [child for entry in entries for child in entry.children]
    return {
        "images": np.frombuffer(b"".join(entry.images for entry in entries), np.uint8),
        "image_bytes": np.array([len(entry.images) for entry in entries], np.int64),
        "hashes": np.concatenate([entry.hashes for entry in entries]),
        "image_counts": np.array([len(entry.hashes) for entry in entries], np.int64),
        "children": pack_names(name for name, _ in children),
        "child_positions": np.array([position for _, position in children], np.int64),
        "child_counts": np.array([len(entry.children) for entry in entries], np.int64),
        "ignored": pack_json([entry.ignored for entry in entries]),
    }


def _unpack(arrays: Arrays, identities: list[Identity]) -> Iterator[_Directory]:
    images, hashes = arrays["images"].tobytes(), arrays["hashes"]
    children = list(zip(unpack_names(arrays["children"]), arrays["child_positions"].tolist(), strict=True))
    columns = [
        slices(arrays["image_bytes"]),
        slices(arrays["image_counts"]),
        slices(arrays["child_counts"]),
        unpack_json(arrays["ignored"]),
    ]
    for identity, in_bytes, in_images, in_children, ignored in zip(identities, *columns, strict=True):
        yield _Directory(identity, True, images[in_bytes], hashes[in_images], children[in_children], ignored)
