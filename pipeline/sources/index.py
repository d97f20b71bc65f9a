"""What was found in directories and files, found again without reading those that did not change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.index_file import Arrays, IndexFile

_SETTLED_NS = 2_000_000_000
"""The grain of FAT's clock, the coarsest there is."""

Identity = tuple[int, int, int, int]
"""Inode, size, and times of the last changes of content and of anything, in ns: alike on every machine of a mount."""


class Entry(Protocol):
    """What was read of one directory or file."""

    identity: Identity
    """From before it was read."""
    is_settled: bool
    """Whether the same identity will mean the same content."""

    @property
    def cost(self) -> int:
        """How much had to be read that an index spares the next reader."""


E = TypeVar("E", bound=Entry)


class Index(Generic[E]):
    """Entries by name: from an `IndexFile` where their identities are the same, and read where not.

    Of several processes that have to read more than `min_cost`, the others wait for the first one, which writes the
    file at the end of its context if there was anything new.

    Args:
        file: Where it is kept.
        min_cost: So much to read is worth a file.
        pack: Arrays of entries, other than their identities.
        unpack: The entries again, from arrays and identities.
    """

    def __init__(
        self,
        file: IndexFile,
        *,
        min_cost: int,
        pack: Callable[[Sequence[E]], Arrays],
        unpack: Callable[[Arrays, list[Identity]], Iterable[E]],
    ) -> None:
        self._file = file
        self._min_cost = min_cost
        self._pack = pack
        self._unpack = unpack
        self._known: dict[str, E] = {}
        self._seen: dict[str, E] = {}
        self._cost = 0
        self._has_lock = False
        self._lock = ExitStack()

    def __enter__(self) -> Self:
        self._load()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            lasting = {name: entry for name, entry in self._seen.items() if entry.is_settled}
            is_worth_it = bool(lasting) and (bool(self._known) or self._cost >= self._min_cost)
            if kind is None and is_worth_it and _identities(lasting) != _identities(self._known):
                self._wait()
                if not self._file.has_changed():  # else another process, which saw what is there as late as this one
                    self._file.write(self._packed(lasting))

    def entry(self, name: str, identity: Identity, read: Callable[[], E]) -> E:
        """Returns what `read` gives, or gave for the same identity; raises what it raises."""
        known = self._trusted(name, identity)
        # What is not settled is written by no other process, so that each would wait only to read it itself.
        if known is None and self._cost >= self._min_cost and not self._has_lock and is_settled(identity):
            self._wait()
            if self._file.has_changed():
                self._load()
                known = self._trusted(name, identity)
        if known is None:
            known = read()
            self._cost += known.cost
        self._seen[name] = known
        return known

    def _trusted(self, name: str, identity: Identity) -> E | None:
        known = self._known.get(name)
        return known if known is not None and known.identity == identity else None

    def _wait(self) -> None:
        if not self._has_lock:
            self._lock.enter_context(self._file.locked())
            self._has_lock = True

    def _load(self) -> None:
        arrays = self._file.read()
        if arrays is not None:
            entries = self._unpack(arrays, _unpack_identities(arrays["identities"]))
            self._known = dict(zip(unpack_names(arrays["entries"]), entries, strict=True))

    def _packed(self, entries: dict[str, E]) -> Arrays:
        identities = _pack_identities(entry.identity for entry in entries.values())
        return {**self._pack(list(entries.values())), "entries": pack_names(entries), "identities": identities}


def identity_of(status: os.stat_result) -> Identity:
    """Returns what changes when the directory or file of `status` does."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(identity: Identity) -> bool:
    """Returns whether what is read from now on can be told by `identity`, taken before, from what comes later.

    It cannot where the last change is so young that another one may fall into the same grain of the clock.
    """
    return time.time_ns() - max(identity[2:]) > _SETTLED_NS


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


def pack_json(value: Any) -> NDArray[np.uint8]:
    """Returns lists, texts and numbers as bytes."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpack_json(packed: NDArray[np.uint8]) -> Any:
    """Returns what `pack_json` was given."""
    return json.loads(packed.tobytes())


def slices(lengths: NDArray[np.int64]) -> list[slice]:
    """Returns where pieces of `lengths` lie that follow one another."""
    ends = np.cumsum(lengths)
    return [slice(*bounds) for bounds in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _identities(entries: dict[str, E]) -> dict[str, Identity]:
    return {name: entry.identity for name, entry in entries.items()}


def _pack_identities(identities: Iterable[Identity]) -> NDArray[np.int64]:
    """Returns (n, 4); what was unsigned keeps its bits."""
    numbers = [[number - 2**64 if number >= 2**63 else number for number in identity] for identity in identities]
    return np.array(numbers, np.int64).reshape(-1, 4)


def _unpack_identities(packed: NDArray[np.int64]) -> list[Identity]:
    return [(inode % 2**64, size % 2**64, *times) for inode, size, *times in packed.tolist()]
