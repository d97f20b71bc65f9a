"""Which samples of one undivided set are for validation."""

import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Split: TypeAlias = Literal["train", "val"]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "avif"})
"""What counts as an image, without the dot and in lower case."""


def in_split(names: Iterable[str], split: Split, val_fraction: float) -> NDArray[np.bool_]:
    """Returns which samples belong to `split`.

    A sample's side is a function of its own name and `val_fraction` alone: adding, removing or reordering others never
    moves it, and raising the fraction only moves samples from train to val.

    Raises:
        ValueError: `val_fraction` is not in [0, 1].
    """
    return of_split(np.fromiter(map(stable_hash, names), np.uint64), split, val_fraction)


def of_split(hashes: NDArray[np.uint64], split: Split, val_fraction: float) -> NDArray[np.bool_]:
    """Returns the same as `in_split` for names whose `stable_hash` are `hashes`."""
    if not 0 <= val_fraction <= 1:
        raise ValueError(f"data.val_fraction must be in [0, 1], got {val_fraction}")
    held_out: NDArray[np.bool_] = hashes < int(val_fraction * 2**64)
    return held_out if split == "val" else ~held_out


def stable_hash(name: str) -> int:
    """Returns 64 evenly spread bits of `name`, the same on every machine and in every version."""
    digest = blake2b(os.fsencode(name.replace(os.sep, "/")), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def require_samples(num_samples: int, split: Split, where: str) -> None:
    """Raises ValueError when `split` came out empty of a set that has samples."""
    if num_samples == 0:
        cure = "raise data.val_fraction" if split == "val" else "lower data.val_fraction"
        raise ValueError(f"no sample of {where} falls into the {split} split: {cure}, or add samples")
