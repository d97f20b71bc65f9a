"""What lies where in WebDataset shards: read from their headers once, then from an index beside them."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.index import Identity, Index, identity_of, is_settled, pack_json, pack_names, slices, unpack_json
from pipeline.sources.index_file import Arrays, IndexFile
from pipeline.sources.labels import WrittenLabel
from pipeline.sources.remote import Remote, shown
from pipeline.sources.split import IMAGE_SUFFIXES, stable_hash

MIN_BYTES = 64 << 20
"""Shards of so many bytes together are worth an index: the headers of 1,000 samples take 50 ms, and seeks on a disk."""

_PIECE_BYTES = 1 << 20

_METADATA = re.compile(r"__[^/]*__(/|$)")


@dataclass(slots=True)
class Shard:
    """The samples of one archive, in the order of their first members."""

    identity: Identity
    is_settled: bool
    members: bytes
    """Names of the images, each ended by a NUL."""
    hashes: NDArray[np.uint64]
    """`stable_hash` of each sample's key."""
    places: NDArray[np.int64]
    """(n, 2): offset and size of each image in bytes."""
    labels: list[WrittenLabel]

    @property
    def cost(self) -> int:
        """Samples found."""
        return len(self.hashes)


def contents_of(shards: Sequence[str], remote: Remote | None = None) -> list[Shard]:
    """Returns what each of `shards` holds, reading those that changed since their index was written.

    URLs are read through `remote`, and their index lies in its cache.

    Raises:
        ValueError: An archive is compressed, no tar, damaged or cut, or a sample lacks its image or its label.
    """
    identities = [_identity(shard, remote) for shard in shards]
    if remote is None and sum(size for _, size, _, _ in identities) < MIN_BYTES:
        return [_read(shard, identity, remote) for shard, identity in zip(shards, identities, strict=True)]
    digest = blake2b(os.fsencode("\0".join(shards)), digest_size=4).hexdigest()
    directory = os.path.dirname(shards[0]) if remote is None else remote.cache_dir
    file = IndexFile(directory, f"headrace-shards-{digest}")
    with Index(file, min_cost=0, pack=_pack, unpack=_unpack) as index:
        return [
            index.entry(_name(shard, remote), identity, partial(_read, shard, identity, remote))
            for shard, identity in zip(shards, identities, strict=True)
        ]


def _name(shard: str, remote: Remote | None) -> str:
    """Returns what the index calls `shard`: nothing of a URL, whose query may be as good as a password."""
    return shard if remote is None else blake2b(os.fsencode(shard), digest_size=16).hexdigest()


def _identity(shard: str, remote: Remote | None) -> Identity:
    """Returns the file's own; of a URL size and version as the server tells them, which need no time to settle."""
    if remote is None:
        return identity_of(os.stat(shard))
    size, version = remote.version(shard)
    told = blake2b(version.encode(), digest_size=8).digest()
    return int.from_bytes(told, "little"), size, 0, 0


def _pack(shards: Sequence[Shard]) -> Arrays:
    return {
        "members": np.frombuffer(b"".join(shard.members for shard in shards), np.uint8),
        "member_bytes": np.array([len(shard.members) for shard in shards]),
        "counts": np.array([len(shard.hashes) for shard in shards]),
        "hashes": np.concatenate([shard.hashes for shard in shards]),
        "places": np.concatenate([shard.places for shard in shards]),
        "labels": pack_json([label for shard in shards for label in shard.labels]),
    }


def _unpack(arrays: Arrays, identities: list[Identity]) -> Iterator[Shard]:
    members, hashes, places = arrays["members"].tobytes(), arrays["hashes"], arrays["places"]
    labels: list[WrittenLabel] = unpack_json(arrays["labels"])
    columns = slices(arrays["member_bytes"]), slices(arrays["counts"])
    for identity, in_bytes, those in zip(identities, *columns, strict=True):
        yield Shard(identity, True, members[in_bytes], hashes[those], places[those], labels[those])


@dataclass(slots=True)
class _Sample:
    """The members of one key that matter."""

    image: tarfile.TarInfo | None = None
    label: WrittenLabel | None = None
    label_suffix: str | None = None


def _read(place: str, identity: Identity, remote: Remote | None) -> Shard:
    settled = is_settled(identity)
    shard = place if remote is None else shown(place)
    try:
        with ExitStack() as opened:
            file = None if remote is None else opened.enter_context(remote.open(place, identity[1]))
            archive = opened.enter_context(tarfile.open(place, "r:", fileobj=file))
            samples = _group_members(shard, archive)
            _require_end(shard, archive)
    except tarfile.ReadError as error:
        raise ValueError(
            f"{shard} is not an uncompressed tar archive, or damaged or cut ({error}); unpack .gz, .bz2, .xz and .zst "
            f"archives first, fetch it again if it should be whole"
        ) from None
    members: list[str] = []
    places: list[tuple[int, int]] = []
    labels: list[WrittenLabel] = []
    for key, sample in samples.items():
        if sample.image is None:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(
                f"{shard}: sample {key!r} has no image ({suffixes}); a key ends at the first dot of its name"
            )
        if sample.label is None:
            raise ValueError(f"{shard}: sample {key!r} has no label (.cls, or .json with a field label)")
        members.append(sample.image.name)
        places.append((sample.image.offset_data, sample.image.size))
        labels.append(sample.label)
    return Shard(
        identity,
        settled,
        pack_names(members).tobytes(),
        np.fromiter(map(stable_hash, samples), np.uint64, len(samples)),
        np.array(places, np.int64).reshape(-1, 2),
        labels,
    )


def _group_members(shard: str, archive: tarfile.TarFile) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for member in archive:
        directory, name = os.path.split(member.name)
        stem, dot, suffix = name.partition(".")
        # Of no sample by the format: names without a suffix, hidden ones, and what lies in `__any__` at the top.
        if not member.isfile() or not stem or not dot or _METADATA.match(member.name):
            continue
        key, suffix = os.path.join(directory, stem), suffix.lower()
        sample = samples.setdefault(key, _Sample())
        if suffix in IMAGE_SUFFIXES:
            if sample.image is not None:
                raise ValueError(f"{shard}: sample {key!r} has two images, {sample.image.name} and {member.name}")
            sample.image = member
        elif suffix == sample.label_suffix:
            raise ValueError(f"{shard}: sample {key!r} has two labels, the second in {member.name}")
        elif suffix == "cls" or (suffix == "json" and sample.label_suffix != "cls"):
            content = archive.extractfile(member)
            assert content is not None  # `isfile()` held
            sample.label, sample.label_suffix = _parse_label(f"{shard}:{member.name}", suffix, content.read()), suffix
    return samples


def _require_end(shard: str, archive: tarfile.TarFile) -> None:
    """Raises ValueError where the members end before the archive does.

    For tarfile the first header that it cannot read ends them, as if there were no samples behind it. By POSIX it is
    blocks of zeros that do.
    """
    file = archive.fileobj
    assert file is not None  # it is open
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    damage = "damaged" if len(block) == tarfile.BLOCKSIZE else "cut"
    while block and not any(block):
        block = file.read(_PIECE_BYTES)
        if not block:
            return
    raise ValueError(
        f"{shard} is {damage} at byte {archive.offset:,}: neither a member's header nor the end "
        f"of the archive stands there; fetch it or write it again (archives put behind one another are several shards)"
    )


def _parse_label(place: str, suffix: str, content: bytes) -> WrittenLabel | None:
    """Returns a label, or None for JSON without one: `.cls` may be beside it."""
    try:
        if suffix == "cls":
            return content.decode().strip()
        fields = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    label: WrittenLabel | None = fields.get("label") if isinstance(fields, dict) else None
    return label
