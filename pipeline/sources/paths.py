"""Very many paths in little memory."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Paths(Protocol):
    """Paths by number: a `PathTable`, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> str: ...

    def __iter__(self) -> Iterator[str]: ...


class PathTable:
    """An immutable sequence of paths, packed into one run of bytes: about their length + 8 bytes each.

    A list of a million `str` costs over 100 MB, is walked by every garbage collection, and is copied page by page in a
    forked worker as its reference counts change. Paths that are not valid UTF-8 survive, as they do in `os.fsdecode`.

    Args:
        paths: Any iterable; no reference to it or to its elements is kept.
        root: Put in front of every relative path when it is read; not part of `packed`.

    Raises:
        TypeError: `paths` is one path, or holds something else than paths.
        ValueError: A path holds a NUL character.
    """

    __slots__ = ("_ends", "_packed", "_root")

    def __init__(self, paths: Iterable[AnyPath], *, root: AnyPath | None = None) -> None:
        if isinstance(paths, str | bytes | os.PathLike):
            raise TypeError(f"paths must be a sequence of paths, got the single path {os.fsdecode(paths)!r}")
        paths = paths if isinstance(paths, list | tuple) else list(paths)
        self._keep(_pack(paths), root)
        if len(self._ends) != len(paths):
            number = next(number for number, path in enumerate(paths) if b"\0" in os.fsencode(path))
            raise ValueError(f"path {number} holds a NUL character: {os.fsdecode(paths[number])!r}")

    @classmethod
    def from_packed(cls, packed: bytes | NDArray[np.uint8], *, root: AnyPath | None = None) -> Self:
        """Returns the table of the paths in `packed`, each ended by a NUL; an array is kept, not copied."""
        table = cls.__new__(cls)
        table._keep(packed, root)
        return table

    def _keep(self, packed: bytes | NDArray[np.uint8], root: AnyPath | None) -> None:
        # An array and not bytes: arrays pickle out of band, so that worker processes map one copy.
        self._packed: NDArray[np.uint8] = np.frombuffer(packed, np.uint8)
        self._root = None if root is None else os.fsencode(root)
        self._ends: NDArray[np.int64] = np.flatnonzero(self._packed == 0)

    def relative(self) -> Self:
        """Returns the table without a root."""
        return type(self).from_packed(self._packed)

    def taken(self, kept: NDArray[np.bool_]) -> Self:
        """Returns the table of the paths at which `kept` is true, in their order."""
        lengths = np.diff(self._ends, prepend=-1)
        return type(self).from_packed(self._packed[np.repeat(kept, lengths)], root=self._root)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, id: int) -> str:
        return os.fsdecode(self.encoded(id))

    def __iter__(self) -> Iterator[str]:
        return (self[id] for id in range(len(self)))

    @property
    def packed(self) -> memoryview:
        """Every path without the root, each ended by a NUL."""
        return self._packed.data

    def encoded(self, id: int) -> bytes:
        """Returns path `id` as the operating system takes it, root included; raises IndexError outside [0, len)."""
        if id < 0:
            raise IndexError(f"path {id} of {len(self)}")
        start = int(self._ends[id - 1]) + 1 if id else 0
        path = self._packed[start : int(self._ends[id])].tobytes()
        return path if self._root is None else os.path.join(self._root, path)


def _pack(paths: list[AnyPath] | tuple[AnyPath, ...]) -> bytes:
    if not paths:
        return b""
    # One join instead of an encoding for each path: a million texts take 20 ms, and 60 by way of `os.fspath`, which
    # Path objects need.
    texts: tuple[Iterable[Any], ...] = (paths, map(os.fspath, paths))
    for each in texts:
        try:
            return os.fsencode("\0".join(each)) + b"\0"
        except TypeError:
            continue
    # Some are bytes, or no paths: this call takes the ones and names the others.
    return b"\0".join(map(os.fsencode, paths)) + b"\0"
