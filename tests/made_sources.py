"""Small sets of samples in every form that a source opens. The files of most hold no image: no source decodes."""

from __future__ import annotations

import csv
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.sources import (
    ArraySource,
    FileSource,
    Source,
    Split,
    at_most,
    open_arrays,
    open_cifar10,
    open_cifar100,
    open_folder,
    open_manifest,
    open_parquet,
    open_synthetic,
    open_tar,
)

CLASSES = ("ant", "bee", "cow")


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or str(path.name).encode())
    return path


def make_tree(root: Path, per_class: int = 20) -> Path:
    for name in CLASSES:
        for number in range(per_class):
            write(root / name / f"{number:03d}.jpg", f"{name}{number}".encode())
    return root


def make_manifest(root: Path) -> Path:
    rows = [("path", "label"), *((f"{CLASSES[i % 3]}/{i:03d}.jpg", CLASSES[i % 3]) for i in range(30))]
    for path, _ in rows[1:]:
        write(root / path)
    with open(root / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "list.csv"


def make_shards(root: Path, num_shards: int = 3, per_shard: int = 10, label: str = "cls") -> str:
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with tarfile.open(root / f"s-{shard:03d}.tar", "w") as archive:
            for number in range(per_shard):
                key, name = f"dir/{shard}{number:03d}", CLASSES[number % 3]
                text = name if label == "cls" else json.dumps({"label": name, "note": 1})
                for suffix, content in ((label, text.encode()), ("jpg", f"image {key}".encode() * 50)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return str(root / "s-{000..002}.tar")


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as the strings of Python 2, which the published files hold."""

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012  # as its base class has it


def as_python2_wrote(value: object) -> bytes:
    """`value` in the form of CIFAR's published files."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def make_cifar10(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {
            b"data": rng.integers(0, 256, (4, 3072), np.uint8),
            b"labels": [3, 0, 9, 1],
            b"filenames": [b"x.png"] * 4,
        }
        write(root / "cifar-10-batches-py" / name, as_python2_wrote(batch))
    write(root / "cifar-10-batches-py" / "batches.meta", as_python2_wrote({b"label_names": [b"n"] * 10}))
    return root


def make_cifar100(root: Path) -> Path:
    """The layout of the published archive, unpacked; of each class a few images."""
    folder = root / "cifar-100-python"
    rng = np.random.default_rng(1)
    for name, count in (("train", 12), ("test", 6)):
        part = {
            b"filenames": [b"x.png"] * count,
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": [(id * 9) % 100 for id in range(count)],
            b"coarse_labels": [(id * 9) % 20 for id in range(count)],
            b"data": rng.integers(0, 256, (count, 3072), np.uint8),
        }
        write(folder / name, as_python2_wrote(part))
    fine, coarse = ([f"{kind}{number}".encode() for number in range(count)] for kind, count in (("f", 100), ("c", 20)))
    write(folder / "meta", as_python2_wrote({b"fine_label_names": fine, b"coarse_label_names": coarse}))
    return root


def make_arrays(root: Path, num_images: int = 20, shape: tuple[int, ...] = (6, 5, 3)) -> tuple[Path, Path]:
    """The files of images and labels in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(num_images).integers(0, 256, (num_images, *shape), np.uint8)
    np.save(root / "images.npy", images)
    np.save(root / "labels.npy", np.arange(num_images) % 3)
    return root / "images.npy", root / "labels.npy"


def make_parquet(
    root: Path, num_files: int = 2, per_file: int = 12, *, struct: bool = False, labels: str = "texts", **options: Any
) -> str:
    """Files in `root` as `datasets` writes them with `struct`, in row groups of five; `options` are `write_table`'s."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root.mkdir(parents=True, exist_ok=True)
    for file in range(num_files):
        images: list[Any] = [f"image {file} {row}".encode() * 50 for row in range(per_file)]
        if struct:
            images = [{"bytes": image, "path": "x.jpg"} for image in images]
        numbers = [row % 3 for row in range(per_file)]
        written = {"texts": [CLASSES[n] for n in numbers], "numbers": numbers, "values": [n / 4 for n in numbers]}
        table = arrow.table({"label": written[labels], "note": numbers, "image": images})
        if struct:
            features = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        parquet.write_table(table, root / f"part-{file:05d}.parquet", **({"row_group_size": 5} | options))
    return str(root / "part-*.parquet")


def open_parts(root: Path, split: Split) -> Source:
    """Arrays that bring their own split."""
    (images, labels), (val_images, val_labels) = make_arrays(root / "train"), make_arrays(root / "val", 9)
    return open_arrays(images, labels, val_images=val_images, val_labels=val_labels, split=split)


def open_files(root: Path, split: Split) -> FileSource:
    paths = [write(root / split / f"{number}.jpg") for number in range(12)]
    return FileSource(paths, [number % 3 for number in range(12)], CLASSES)


def in_memory(split: Split) -> ArraySource:
    shape = {"train": (9, 4, 5, 3), "val": (8, 4, 5, 3)}[split]
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return ArraySource(pixels, np.arange(shape[0]) % 3, CLASSES, name=f"array/{split}")


SOURCES: dict[str, Callable[[Path, Split], Source]] = {
    "files": open_files,
    "memory": lambda _, split: in_memory(split),
    "synthetic": lambda root, split: open_synthetic(root, num_images=20, num_classes=2, split=split),
    "folder": lambda root, split: open_folder(make_tree(root), split=split),
    "manifest": lambda root, split: open_manifest(make_manifest(root), split=split, val_fraction=0.3),
    "tar": lambda root, split: open_tar(make_shards(root), split=split, val_fraction=0.3),
    "arrays": lambda root, split: open_arrays(*make_arrays(root), split=split, val_fraction=0.3),
    "grey arrays": lambda root, split: open_arrays(*make_arrays(root, shape=(6, 5)), split=split, val_fraction=0.3),
    "arrays with their split": open_parts,
    "parquet": lambda root, split: open_parquet(make_parquet(root), split=split, val_fraction=0.3),
    "parquet of datasets": lambda root, split: open_parquet(
        make_parquet(root / "train", struct=True, labels="numbers"),
        val_pattern=make_parquet(root / "val", 1, struct=True, labels="numbers"),
        split=split,
    ),
    "cifar10": lambda root, split: open_cifar10(make_cifar10(root), split=split),
    "cifar100": lambda root, split: open_cifar100(make_cifar100(root), split=split),
    "cifar100 coarse": lambda root, split: open_cifar100(make_cifar100(root), split=split, coarse=True),
    "subset": lambda root, split: at_most(open_folder(make_tree(root), split=split, val_fraction=0.5), 8),
}
