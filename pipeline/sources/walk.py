"""The images below some directories, found again without reading the directories that did not change.

The times of a directory change when an entry is added, removed or renamed in it. So it is read again if its times, its
inode or its device are others than last time, and also where those would not tell: where it had changed just before it
was read, for another change within the clock's grain leaves no trace, and where it holds links, whose targets become
directories without a trace here.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.index import (
    Arrays,
    Identity,
    IndexFile,
    identity_of,
    is_settled,
    pack_identities,
    pack_names,
    slices,
    unpack_identities,
    unpack_names,
)
from pipeline.sources.split import IMAGE_SUFFIXES, stable_hash

MIN_FILES = 20_000
"""So many images in directories that had to be read are worth an index: reading them takes a tenth of a second."""
_NAME = "headrace-index"


@dataclass(slots=True)
class _Directory:
    """What one directory holds, hidden names aside."""

    identity: Identity
    is_settled: bool
    """Whether the same identity means the same content."""
    images: bytes = b""
    """Their names in order, each ended by a NUL."""
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """`stable_hash` of each image's path below the root."""
    children: list[tuple[str, int]] = field(default_factory=list)
    """Directories in it, in order, each with the number of images that stand before it."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are no images, by suffix."""


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
        self._index = IndexFile(root, _NAME)
        self._known: dict[str, _Directory] = {}
        self._seen: dict[str, _Directory] = {}
        self._num_read = 0
        self._has_lock = False
        self._lock = ExitStack()

    def __enter__(self) -> Self:
        self._known = _unpack(self._index.read())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            is_worth_it = bool(self._known) or self._num_read >= MIN_FILES
            if kind is None and is_worth_it and not _are_same(self._seen, self._known):
                self._index.write(_pack(self._seen))

    def images(self, directory: str) -> Images:
        """Returns the images below `root/directory`; ValueError for a link that leads back to where it lies."""
        found = Images()
        self._add(found, directory, ())
        return found

    def _add(self, found: Images, directory: str, parents: tuple[tuple[int, int], ...]) -> None:
        here = os.path.join(self._root, directory)
        identity = identity_of(here)
        place = identity[:2]
        if place in parents:
            raise ValueError(f"{here} is a link to a directory that holds it; remove the link")
        entry = self._entry(directory, identity)
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

    def _entry(self, directory: str, identity: Identity) -> _Directory:
        """Returns what `directory` holds, from the index if that can be trusted."""
        known = self._known.get(directory)
        if self._num_read >= MIN_FILES and not self._has_lock and not _can_be_trusted(known, identity):
            self._has_lock = True
            self._lock.enter_context(self._index.locked())
            self._known = _unpack(self._index.read())  # whoever was first has written it meanwhile
            known = self._known.get(directory)
        if known is None or not _can_be_trusted(known, identity):
            known = _read(self._root, directory, identity)
            self._num_read += len(known.hashes)
        self._seen[directory] = known
        return known


def _can_be_trusted(known: _Directory | None, identity: Identity) -> bool:
    return known is not None and known.is_settled and known.identity == identity


def _are_same(seen: dict[str, _Directory], known: dict[str, _Directory]) -> bool:
    """Whether an index of `seen` would serve no better than one of `known` does."""
    if seen.keys() != known.keys():
        return False
    return all(
        (entry.identity, entry.is_settled) == (known[name].identity, known[name].is_settled)
        for name, entry in seen.items()
    )


def _read(root: str, directory: str, identity: Identity) -> _Directory:
    entry = _Directory(identity, is_settled=is_settled(identity))
    names: list[str] = []
    with os.scandir(os.path.join(root, directory)) as entries:
        ordered = sorted(entries, key=lambda found: found.name)
    for found in ordered:
        name = found.name
        entry.is_settled &= not found.is_symlink()
        if name.startswith("."):
            kind = "hidden"
        elif found.is_dir():
            entry.children.append((name, len(names)))
            continue
        else:
            kind = os.path.splitext(name)[1].lower()
            if kind.lstrip(".") in IMAGE_SUFFIXES:
                names.append(name)
                continue
        entry.ignored[kind or "without a suffix"] = entry.ignored.get(kind or "without a suffix", 0) + 1
    entry.images = os.fsencode("".join(f"{name}\0" for name in names))
    hashes = (stable_hash(f"{directory}{os.sep}{name}") for name in names)
    entry.hashes = np.fromiter(hashes, np.uint64, len(names))
    return entry


def _pack(seen: dict[str, _Directory]) -> Arrays:
    entries = list(seen.values())
    children = [child for entry in entries for child in entry.children]
    return {
        "directories": pack_names(seen),
        "identities": pack_identities(entry.identity for entry in entries),
        "settled": np.array([entry.is_settled for entry in entries], np.bool_),
        "images": np.frombuffer(b"".join(entry.images for entry in entries), np.uint8),
        "image_bytes": np.array([len(entry.images) for entry in entries], np.int64),
        "hashes": np.concatenate([entry.hashes for entry in entries]),
        "image_counts": np.array([len(entry.hashes) for entry in entries], np.int64),
        "children": pack_names(name for name, _ in children),
        "child_positions": np.array([position for _, position in children], np.int64),
        "child_counts": np.array([len(entry.children) for entry in entries], np.int64),
        "ignored": np.frombuffer(json.dumps([entry.ignored for entry in entries]).encode(), np.uint8),
    }


def _unpack(arrays: Arrays | None) -> dict[str, _Directory]:
    if arrays is None:
        return {}
    images, hashes = arrays["images"].tobytes(), arrays["hashes"]
    children = list(zip(unpack_names(arrays["children"]), arrays["child_positions"].tolist(), strict=True))
    columns = [
        slices(arrays["image_bytes"]),
        slices(arrays["image_counts"]),
        slices(arrays["child_counts"]),
        arrays["settled"].tolist(),
        unpack_identities(arrays["identities"]),
        json.loads(arrays["ignored"].tobytes()),
    ]
    return {
        name: _Directory(identity, settled, images[in_bytes], hashes[in_images], children[in_children], ignored)
        for name, in_bytes, in_images, in_children, settled, identity, ignored in zip(
            unpack_names(arrays["directories"]), *columns, strict=True
        )
    }
