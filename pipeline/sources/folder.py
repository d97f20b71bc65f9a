"""A tree of class directories: `root/CLASS/**/image` or `root/{train,val}/CLASS/**/image`."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import compress

from pipeline.sources.files import FileSource
from pipeline.sources.paths import AnyPath
from pipeline.sources.split import IMAGE_SUFFIXES, Split, in_split, require_samples

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
    names = _directories(root)
    if {"train", "val"} <= set(names):
        inside = os.path.join(root, split)
        class_names = sorted(
            set(_directories(os.path.join(root, "train"))) | set(_directories(os.path.join(root, "val")))
        )
    elif names and set(names) <= _SPLIT_NAMES:
        raise ValueError(
            f"data.root={root} holds {', '.join(names)} but not both train/ and val/: name the directories so, "
            f"or point data.root at the one to divide by data.val_fraction"
        )
    else:
        inside, class_names = root, names
    if not class_names:
        raise ValueError(
            f"data.root={root} has no class directories: put each class's images into a directory of its own, "
            f"such as {os.path.join(root, 'cat', '1.jpg')}"
        )
    paths, labels = _list_images(inside, class_names, may_lack_classes=inside != root)
    if inside == root:
        kept = in_split(paths, split, val_fraction)
        paths, labels = list(compress(paths, kept)), list(compress(labels, kept))
    require_samples(len(paths), split, f"data.root={root}")
    return FileSource(paths, labels, class_names, root=inside)


def _directories(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"data.root={root} is not a directory; give the one that holds the class directories"
        ) from None


def _list_images(root: str, class_names: list[str], *, may_lack_classes: bool) -> tuple[list[str], list[int]]:
    """Returns paths below `root` in sorted order, and their class numbers."""
    paths: list[str] = []
    labels: list[int] = []
    ignored: Counter[str] = Counter()
    for number, name in enumerate(class_names):
        num_before = len(paths)
        if os.path.isdir(os.path.join(root, name)):
            paths.extend(_walk(root, name, ignored, ()))
        if len(paths) == num_before and not may_lack_classes:
            raise ValueError(
                f"data.root={root} has no image in its class directory {name!r}: remove the directory, "
                f"or add images ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        labels.extend([number] * (len(paths) - num_before))
    if ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(5))
        log.info("%s: ignored %d files that are not images (%s)", root, ignored.total(), kinds)
    return paths, labels


def _walk(root: str, directory: str, ignored: Counter[str], parents: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yields the images below `root/directory`, as paths below `root`, sorted; counts the other files by suffix."""
    here = os.path.join(root, directory)
    status = os.stat(here)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        raise ValueError(f"{here} is a link to a directory that holds it; remove the link")
    with os.scandir(here) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = f"{directory}{os.sep}{entry.name}"
        if entry.name.startswith("."):
            ignored["hidden"] += 1
        elif entry.is_dir():
            yield from _walk(root, path, ignored, (*parents, identity))
        elif (suffix := os.path.splitext(entry.name)[1].lower()).lstrip(".") in IMAGE_SUFFIXES:
            yield path
        else:
            ignored[suffix or "without a suffix"] += 1
