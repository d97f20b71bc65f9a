"""The pack file: all samples of a source in one file that every process of the host maps."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.load import Sample

MAGIC = b"HEADRACE"
VERSION = 2
LACKING = (0, -1)
_HEADER = struct.Struct("<8sIIQ32s32s16s")
"""The fields of `_Header`; then the arrays of `PackIndex`, then the samples."""


class PackKey(NamedTuple):
    """What a pack is of: hashes of 32 bytes each."""

    samples: bytes
    """Which samples, in what order."""
    pixels: bytes
    """What is kept of each: its file, or the pixels that some options and decoders make of it."""

    @classmethod
    def of(cls, fingerprint: str, pixels: str) -> Self:
        """The key of the samples that `fingerprint` names, kept as `pixels` says."""
        return cls(*(hashlib.blake2b(text.encode(), digest_size=32).digest() for text in (fingerprint, pixels)))


@dataclass(frozen=True, slots=True)
class PackIndex:
    """What a pack knows of its n samples beside their bytes."""

    offsets: NDArray[np.int64]
    """(n + 1,): where each sample begins in the file; it ends where the next one begins."""
    stamps: NDArray[np.uint64]
    """(n,): the source's stamps, taken before the samples were loaded."""
    names: NDArray[np.uint64]
    """(n,): hashes of what the source calls the samples."""
    shapes: NDArray[np.int32]
    """(n, 2): height and width of pixels; zeros for an encoded image, `LACKING` for one that could not be loaded."""

    @classmethod
    def over(cls, memory: bytearray | mmap.mmap, count: int, start_byte: int) -> Self:
        """The index of `count` samples that lies in `memory`, as views."""
        stamps = start_byte + 8 * (count + 1)
        names, shapes = stamps + 8 * count, stamps + 16 * count
        return cls(
            np.frombuffer(memory, "<i8", count + 1, start_byte),
            np.frombuffer(memory, "<u8", count, stamps),
            np.frombuffer(memory, "<u8", count, names),
            np.frombuffer(memory, "<i4", 2 * count, shapes).reshape(count, 2),
        )


def first_sample_byte(count: int) -> int:
    """Where the samples begin in a pack of `count`."""
    return _HEADER.size + 32 * count + 8


class _Header(NamedTuple):
    magic: bytes
    version: int
    checksum: int
    """CRC-32 of this header, with a checksum of 0, and of the index."""
    num_samples: int
    samples: bytes
    pixels: bytes
    build: bytes
    """16 random bytes: which of the packs that lay at a path in the course of time this one is."""


def write_head(file: IO[bytes], key: PackKey, index: memoryview) -> None:
    """Write what stands before the samples: the header, and the bytes that a `PackIndex` lies over."""
    num_samples = (len(index) - 8) // 32
    header = _Header(MAGIC, VERSION, 0, num_samples, *key, os.urandom(16))
    file.seek(0)
    file.write(_HEADER.pack(*header._replace(checksum=_checksum(header, index))))
    file.write(index)


def _checksum(header: _Header, index: memoryview) -> int:
    return zlib.crc32(index, zlib.crc32(_HEADER.pack(*header._replace(checksum=0))))


class PackFile:
    """Samples by id, mapped read-only, so that all processes of the host share the pages.

    Opening looks at the header and the index (32 bytes a sample), not at the samples. Pickles as its path: another
    process maps the same file. `close` may be called twice; pixels that were given out stay valid.
    """

    def __init__(self, path: Path, key: PackKey | None = None) -> None:
        """Open `path`. FileNotFoundError when it is missing, ValueError when it is damaged, or not what `key` says."""
        self.path = path.absolute()
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size:
                raise ValueError(f"{path} is not a pack file: it has {len(start)} bytes; delete it")
            header = _Header._make(_HEADER.unpack(start))
            if header.magic != MAGIC or header.version != VERSION:
                raise ValueError(f"{path} is no pack file of version {VERSION}; delete it")
            self.key = PackKey(header.samples, header.pixels)
            if key is not None and key != self.key:
                raise ValueError(f"{path} was made of other samples or pixels; delete it")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._build = header.build
        first = first_sample_byte(header.num_samples)
        if len(mapped) < first or _checksum(header, memoryview(mapped)[_HEADER.size : first]) != header.checksum:
            raise ValueError(f"{path} was cut, or its index damaged; delete it")
        index = PackIndex.over(mapped, header.num_samples, _HEADER.size)
        if index.offsets[-1] != len(mapped):
            raise ValueError(f"{path} was cut: it has {len(mapped)} of {index.offsets[-1]} bytes; delete it")
        # Unmapped when the last array over it is gone: pixels that somebody holds keep it.
        self._contents: tuple[NDArray[np.uint8], PackIndex] | None = (np.frombuffer(mapped, np.uint8), index)
        self._count = header.num_samples

    def __reduce__(self) -> tuple[type[PackFile], tuple[Path, PackKey]]:
        return PackFile, (self.path, self.key)

    def __len__(self) -> int:
        """Number of samples."""
        return self._count

    def __call__(self, id: int) -> Sample:
        """Sample `id`: bytes, or pixels `(H, W, 3)` as a read-only view of the file. RuntimeError after `close`."""
        memory, index = self._opened()
        start, end = index.offsets[id : id + 2].tolist()
        height, width = index.shapes[id].tolist()
        return memory[start:end].reshape(height, width, 3) if height else memory[start:end].tobytes()

    def lacks(self, id: int) -> bool:
        """Whether sample `id` could not be loaded when this was built: only the source may have it."""
        return bool((self.index.shapes[id] == LACKING).all())

    def holds(self, id: int, where: str, stamp: int) -> bool:
        """Whether sample `id` is the one that its source calls `where`, with this stamp."""
        index = self.index
        return int(index.stamps[id]) == stamp and int(index.names[id]) == hash_name(where)

    @property
    def index(self) -> PackIndex:
        """Of all samples, as views of the file. RuntimeError after `close`."""
        return self._opened()[1]

    def mark_stale(self) -> None:
        """Have the next opening build it again. Where nothing can be written nothing happens: it cannot be built."""
        with suppress(OSError):
            self.marker.write_bytes(self._build)

    def is_stale(self) -> bool:
        """Whether it was marked so; a mark that was meant for an earlier pack at this path does not count."""
        try:
            return self.marker.read_bytes() == self._build
        except OSError:  # no mark, or none for us to read: samples are checked whatever it says
            return False

    @property
    def marker(self) -> Path:
        """The file that marks the pack as stale."""
        return marker_of(self.path)

    def close(self) -> None:
        """Let go of the file."""
        self._contents = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _opened(self) -> tuple[NDArray[np.uint8], PackIndex]:
        contents = self._contents
        if contents is None:
            raise RuntimeError(f"close() was already called on the pack {self.path}")
        return contents


def marker_of(path: Path) -> Path:
    """The file that marks the pack at `path` as stale."""
    return path.with_name(f"{path.name}.stale")


def hash_name(where: str) -> int:
    """64 bits for what a source calls a sample; a relative path counts as the file that it leads to from here."""
    name = os.path.abspath(where)
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")
