"""What the tests of packs share: a source that counts what is asked of it, and a pack of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.build_pack import build_pack
from pipeline.cache.load import Sample
from pipeline.cache.packed import PackedLoad
from pipeline.config import Preload, Transforms
from pipeline.loader.read import Decoding
from pipeline.sources import FileSource


class Watched(FileSource):
    """Files whose loads and stamps are counted; `load` is what a pack keeps, the file or with `decoded` its pixels."""

    def __init__(self, paths: Sequence[Path], *, decoded: bool = False, max_side: int | None = None) -> None:
        super().__init__(paths, range(len(paths)))
        self.decoded, self.max_side = decoded, max_side
        self._kept = Decoding(self.read, self.where, max_side=max_side) if decoded else self.read
        self.loaded: list[int] = []
        self.stamped: list[int] = []

    def load(self, id: int) -> Sample:
        self.loaded.append(id)
        return self._kept(id)

    def stamp(self, id: int) -> int:
        self.stamped.append(id)
        return super().stamp(id)

    def forget(self) -> None:
        self.loaded.clear()
        self.stamped.clear()


@contextmanager
def packed(source: Any, directory: Path) -> Iterator[PackedLoad]:
    """The load from the pack of a `Watched` in `directory`."""
    with ExitStack() as resources:
        yield build_pack(
            source,
            Preload(mode="pack", dir=str(directory)),  # type: ignore[arg-type]
            source.load,
            decoded=source.decoded,
            transforms=Transforms(size=8, max_side=source.max_side),
            num_threads=2,
            name="test",
            resources=resources,
        )


def write_files(directory: Path, count: int) -> list[Path]:
    """`count` files of different bytes and lengths, in order of id; an empty one first."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{id:03d}.jpg" for id in range(count)]
    for id, path in enumerate(paths):
        path.write_bytes(bytes([id % 256]) * (37 * id))
    return paths


def rewrite(path: Path, data: bytes) -> None:
    """Give `path` other bytes and a time that differs, however coarse the file system's clock is."""
    time_ns = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(time_ns + 10**9, time_ns + 10**9))


def the_pack(directory: Path) -> Path:
    """The only pack file in `directory`."""
    (path,) = directory.glob("*.pack")
    return path
