"""WebDataset shards as a random-access source: indexed once, then each image is one positioned read.

The format is that of the webdataset project: members that share a key (the name up to the first dot of its last part)
are one sample, and the rest of the name says what a member is.
"""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.sources.labels import WrittenLabel, number_labels, parse_texts
from pipeline.sources.paths import Paths, PathTable
from pipeline.sources.remote import Remote, shown
from pipeline.sources.shards import find_shards
from pipeline.sources.source import as_labels, hash_order, stamp_bytes, stamp_file
from pipeline.sources.split import Split, of_split, require_samples
from pipeline.sources.tar_index import contents_of

_MAX_OPEN_SHARDS = 256
"""More shards than this are opened for each read (10 us): the usual limit is 1,024 descriptors a process."""


class TarSource:
    """Encoded images in uncompressed tar archives, as `open_tar` finds them.

    Archives are opened at their first read in each process. `close()` frees the descriptors, when no read is running;
    a later read opens them again.
    """

    def __init__(
        self,
        shards: Sequence[str],
        members: Sequence[str] | PathTable,
        *,
        spans: np.ndarray[Any, np.dtype[np.int64]],
        labels: np.ndarray[Any, Any],
        class_names: Sequence[str],
    ) -> None:
        """`spans` (n, 3): each sample's shard, and its offset and size in bytes there."""
        self._shards = PathTable(shards)
        self._members = members if isinstance(members, PathTable) else PathTable(members)
        self._spans = spans
        self.labels = as_labels(labels, len(self._members))
        self.class_names = tuple(class_names)
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors and locks belong to one process.
        return {**self.__dict__, "_lock": None, "_descriptors": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read(self, id: int) -> bytes:
        """Returns the bytes of image `id`; raises OSError, also when the archive is now shorter than its index says."""
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        shard, offset, size = self._spans[id].tolist()
        if len(self._shards) > _MAX_OPEN_SHARDS or not hasattr(os, "pread"):
            with open(self._shards[shard], "rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        else:
            data = os.pread(self._descriptor(shard), size, offset)
        if len(data) < size:
            raise OSError(f"{self.where(id)}: {len(data)} of {size} bytes; the archive changed after it was indexed")
        return data

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(shard)
                if descriptor is None:
                    descriptor = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
                    self._descriptors[shard] = descriptor
        return descriptor

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        return self.labels[id]

    def where(self, id: int) -> str:
        """Returns "archive.tar:member"."""
        return f"{self._shards[int(self._spans[id, 0])]}:{self._members[id]}"

    def files(self) -> Paths:
        """Returns every archive that holds one of the samples."""
        return [self._shards[shard] for shard in np.unique(self._spans[:, 0]).tolist()]

    def fingerprint(self) -> str:
        """Returns a hash of the members' names in order, the archives they lie in by number, and the labels."""
        shard_numbers = np.ascontiguousarray(self._spans[:, 0]).tobytes()
        return hash_order([self._members.packed, shard_numbers], self.labels)

    def stamp(self, id: int) -> int:
        """Returns 64 bits that change with the archive of image `id`, and with its place there; raises OSError."""
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        shard, *place = self._spans[id].tolist()
        return stamp_file(self._shards.encoded(shard), *place)

    def close(self) -> None:
        """Closes every archive; calling it again does nothing."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])


class RemoteTarSource(TarSource):
    """Images in archives at URLs: each is one request for a range of bytes, kept in the cache of `remote`."""

    def __init__(self, shards: Sequence[str], members: PathTable, *, remote: Remote, **contents: Any) -> None:
        """`contents` are those of `TarSource`, and `versions`, what tells each shard from earlier ones of its URL."""
        self._versions: list[str] = contents.pop("versions")
        super().__init__(shards, members, **contents)
        self._remote = remote

    def read(self, id: int) -> bytes:
        """Returns the bytes of image `id`; raises OSError."""
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        shard, offset, size = self._spans[id].tolist()
        return self._remote.read(self._shards[shard], start=offset, size=size, version=self._versions[shard])

    def where(self, id: int) -> str:
        """Returns "URL:member", without user, password and query."""
        return f"{shown(self._shards[int(self._spans[id, 0])])}:{self._members[id]}"

    def files(self) -> Paths:
        """Returns no path: none is local."""
        return []

    def stamp(self, id: int) -> int:
        """Returns 64 bits of the shard's version and of the image's place there."""
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        shard, *place = self._spans[id].tolist()
        return stamp_bytes(repr((self._versions[shard], *place)).encode())

    def close(self) -> None:
        """Ends the connections; a later read opens others."""
        self._remote.close()


def open_tar(pattern: str, *, split: Split, val_fraction: float = 0.1, remote: Remote | None = None) -> TarSource:
    """Returns the samples of one split of the shards that `pattern` names, in the order of shards and members.

    Args:
        pattern: A glob (`shards/*.tar`), braces (`shards/{000..099}.tar`, `{a,b}.tar`), or both. With "{split}" in it,
            that becomes train or val and the shards are the split; else samples are divided by a hash of their keys.
        split: Which part.
        val_fraction: How much is for validation, where the pattern does not tell.
        remote: Reads the shards, which are URLs; None: they are local.

    A label is the member `.cls` (a whole number, or a class's name) or the field `label` of `.json`.

    Raises:
        ValueError: No shard matches, a shard is compressed or no tar, or a sample lacks its image or its label.
    """
    divided = "{split}" in pattern
    place = f"data.pattern={pattern if remote is None else shown(pattern)}"
    patterns = [pattern.replace("{split}", name) for name in ("train", "val")] if divided else [pattern]
    per_part = [find_shards("data.pattern", part, remote=remote) for part in patterns]
    shards = [shard for part in per_part for shard in part]
    contents = contents_of(shards, remote)
    members = PathTable.from_packed(b"".join(shard.members for shard in contents))
    if len(members) == 0:
        raise ValueError(f"{place}: {len(shards)} shards hold no sample")
    numbers = np.repeat(np.arange(len(shards)), [len(shard.hashes) for shard in contents])
    written: list[WrittenLabel] = [label for shard in contents for label in shard.labels]
    if all(isinstance(label, str) for label in written):
        written = list(parse_texts([str(label) for label in written]))
    # Classes are numbered over both parts, so that both agree.
    names = shards if remote is None else [shown(shard) for shard in shards]
    labels, class_names = number_labels(written, lambda row: f"{names[numbers[row]]}:{members[row]}")
    spans = np.column_stack([numbers, np.concatenate([shard.places for shard in contents])])
    if divided:
        kept = (numbers < len(per_part[0])) == (split == "train")
    else:
        kept = of_split(np.concatenate([shard.hashes for shard in contents]), split, val_fraction)
    require_samples(int(kept.sum()), split, place)
    parts: dict[str, Any] = {"spans": spans[kept], "labels": labels[kept], "class_names": class_names}
    if remote is None:
        return TarSource(shards, members.taken(kept), **parts)
    versions = [str(shard.identity) for shard in contents]
    return RemoteTarSource(shards, members.taken(kept), remote=remote, versions=versions, **parts)
