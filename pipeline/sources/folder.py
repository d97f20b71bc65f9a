"""A tree of class directories: `root/CLASS/**/image` or `root/{train,val}/CLASS/**/image`."""

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.files import FileSource
from pipeline.sources.paths import AnyPath, PathTable
from pipeline.sources.split import IMAGE_SUFFIXES, Split, of_split, require_samples
from pipeline.sources.walk import Images, Walk, is_directory

log = logging.getLogger(__name__)

_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def open_folder(root: AnyPath, *, split: Split, val_fraction: float = 0.1) -> FileSource:
    """Returns the images of one split; classes are numbered by the sorted names of their directories, alike in both.

    With both `train/` and `val/` inside, those are the splits; the classes are the names found in either. Otherwise one
    tree is divided by a hash of each file's path below `root`. Sub-directories belong to their class; names that begin
    with a dot are passed over. Links are followed.

    Raises:
        ValueError: There is no such directory, no class directory, a class without any image, or an empty split.
    """
    root = os.path.abspath(os.fsdecode(root))
    place = f"data.root={root}"
    class_names, is_divided = classes_of(place, _directories(root), lambda name: _directories(os.path.join(root, name)))
    inside = os.path.join(root, split) if is_divided else root
    paths, labels, hashes = _list_images(inside, class_names)
    if not is_divided:
        require_images_of_each(place, class_names, labels)
        kept = of_split(hashes, split, val_fraction)
        paths, labels = paths.taken(kept), labels[kept]
    require_samples(len(paths), split, place)
    return FileSource(paths, labels, class_names)


def classes_of(place: str, names: Sequence[str], inside: Callable[[str], Sequence[str]]) -> tuple[list[str], bool]:
    """Returns the classes of a tree, and whether it is divided into train/ and val/.

    Args:
        place: What messages call it.
        names: The directories in it, hidden ones aside.
        inside: Returns those in one of them.

    Raises:
        ValueError: It holds names of splits but not both, or no class directory.
    """
    is_divided = {"train", "val"} <= set(names)
    if names and set(names) <= _SPLIT_NAMES and not is_divided:
        raise ValueError(
            f"{place} holds {', '.join(sorted(names))} but not both train/ and val/: name the directories so, "
            f"or point data.root at the one to divide by data.val_fraction"
        )
    class_names = sorted({*inside("train"), *inside("val")} if is_divided else names)
    if not class_names:
        raise ValueError(
            f"{place} has no class directories: put each class's images into a directory of its own, such as cat/1.jpg"
        )
    return class_names, is_divided


def require_images_of_each(place: str, class_names: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Raises ValueError where a class of an undivided tree has no image."""
    empty = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if len(empty):
        raise ValueError(
            f"{place} has no image in its class directory {class_names[empty[0]]!r}: remove the directory, "
            f"or add images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )


def _directories(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_directory(entry))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"data.root={root} is not a directory; give the one that holds the class directories"
        ) from None


def _list_images(root: str, class_names: list[str]) -> tuple[PathTable, NDArray[np.int64], NDArray[np.uint64]]:
    """Returns the images below `root` in sorted order, their class numbers, and the hashes of their paths."""
    per_class: list[Images] = []
    with Walk(root) as walk:
        for name in class_names:
            found = walk.images(name) if os.path.isdir(os.path.join(root, name)) else Images()
            per_class.append(found)
    if walk.ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in walk.ignored.most_common(5))
        log.info("%s: ignored %d files that are not images (%s)", root, walk.ignored.total(), kinds)
    paths = PathTable.from_packed(b"".join(piece for found in per_class for piece in found.paths), root=root)
    labels = np.repeat(np.arange(len(per_class)), [found.count for found in per_class])
    hashes = np.concatenate([np.empty(0, np.uint64), *(piece for found in per_class for piece in found.hashes)])
    return paths, labels, hashes
