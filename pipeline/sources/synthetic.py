"""The synthetic tiers: sets of real JPEG files, made once and found again.

A set's directory under `root` is named after what was asked for, so that tiers never mix:
`n2000-c10-s0-v1/CLASS/000123.jpg`, and `manifest.json`, written last: with it the set is complete and never touched.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.lock import file_lock
from pipeline.sources.files import FileSource
from pipeline.sources.motifs import NUM_MOTIFS, motif_names
from pipeline.sources.paths import AnyPath
from pipeline.sources.split import Split, require_samples, stable_hash

log = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever the same request would give other bytes."""


@dataclass(frozen=True)
class SyntheticSet:
    """What was asked for: it decides every byte.

    Raises:
        ValueError: A number is out of range.
    """

    num_images: int
    num_classes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= NUM_MOTIFS:
            raise ValueError(f"data.num_classes must be in 2..{NUM_MOTIFS}, got {self.num_classes}")
        if self.num_images < 2 * self.num_classes:
            raise ValueError(
                f"data.num_images must be >= {2 * self.num_classes}, two for each of data.num_classes, "
                f"got {self.num_images}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"data.seed must be in 0..2**64-1, got {self.seed}")

    def directory(self, root: AnyPath) -> Path:
        """Returns the directory of this set under `root`, absolute."""
        name = f"n{self.num_images}-c{self.num_classes}-s{self.seed}-v{VERSION}"
        return Path(os.path.abspath(os.fsdecode(root))) / name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the class directories, in the order of the class numbers."""
        return motif_names(self.num_classes)

    def paths(self) -> list[str]:
        """Returns the path of every image below the directory; image i is of class i modulo `num_classes`."""
        names = self.class_names
        return [f"{names[index % self.num_classes]}/{index:06d}.jpg" for index in range(self.num_images)]

    def in_split(self, split: Split, val_fraction: float) -> NDArray[np.bool_]:
        """Returns which images belong to `split`.

        Images are drawn in rounds of one for each class. Whole rounds are held out, those with the smallest hashes and
        at least one (unless `val_fraction` is 0), so both splits are balanced.

        Raises:
            ValueError: `val_fraction` is not in [0, 1].
        """
        if not 0 <= val_fraction <= 1:
            raise ValueError(f"data.val_fraction must be in [0, 1], got {val_fraction}")
        num_rounds = self.num_images // self.num_classes
        num_held_out = max(round(num_rounds * val_fraction), 1 if val_fraction > 0 else 0)
        ranked = sorted(range(num_rounds), key=lambda number: stable_hash(f"{self.seed}/{number}"))
        held_out = np.isin(np.arange(self.num_images) // self.num_classes, ranked[:num_held_out])
        return held_out if split == "val" else ~held_out


def open_synthetic(
    root: AnyPath,
    *,
    num_images: int,
    num_classes: int = 10,
    seed: int = 0,
    split: Split,
    val_fraction: float = 0.1,
) -> FileSource:
    """Returns one split of a synthetic set, generated first where it is not complete (`generate_synthetic`)."""
    wanted = SyntheticSet(num_images, num_classes, seed)
    kept = np.flatnonzero(wanted.in_split(split, val_fraction))
    require_samples(len(kept), split, f"data.root={os.fsdecode(root)}")
    directory = generate_synthetic(root, num_images=num_images, num_classes=num_classes, seed=seed)
    paths = wanted.paths()
    return FileSource([paths[i] for i in kept], kept % num_classes, wanted.class_names, root=directory)


def generate_synthetic(
    root: AnyPath, *, num_images: int, num_classes: int = 10, seed: int = 0, num_workers: int | None = None
) -> Path:
    """Makes sure that a synthetic set is complete under `root`, and returns its directory.

    Says before it starts how many images, GB and minutes there are to make. An interrupted generation goes on with the
    files that are missing or damaged. Another process that wants the same set waits for the first. `num_workers` (None:
    one for each core) does not change a byte.

    Raises:
        ValueError: The disk lacks the room, or a number is out of range.
        OSError: A file cannot be written.
    """
    wanted = SyntheticSet(num_images, num_classes, seed)
    directory = wanted.directory(root)
    if _is_complete(directory, wanted):
        return directory
    # Here rather than above: a complete set opens without OpenCV and the painter.
    from pipeline.sources.generation import generate_missing

    directory.mkdir(parents=True, exist_ok=True)
    with file_lock(str(directory) + ".lock", waiting_for=f"it generates {directory}"):
        if not _is_complete(directory, wanted):
            sizes = generate_missing(directory, wanted.paths(), num_classes, seed=seed, num_workers=num_workers)
            manifest = {"version": VERSION, **asdict(wanted), **sizes}
            aside = directory / ".manifest.json"
            aside.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            aside.replace(directory / "manifest.json")
    return directory


def is_generated(root: AnyPath, *, num_images: int, num_classes: int = 10, seed: int = 0) -> bool:
    """Returns whether a synthetic set is complete under `root`, so that `open_synthetic` generates nothing.

    Raises:
        ValueError: What is there is damaged, or a number is out of range.
    """
    wanted = SyntheticSet(num_images, num_classes, seed)
    return _is_complete(wanted.directory(root), wanted)


def _is_complete(directory: Path, wanted: SyntheticSet) -> bool:
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove {directory} and let it be generated again") from None
    expected = {"version": VERSION, **asdict(wanted)}
    found = {key: manifest.get(key) for key in expected}
    if found != expected:
        raise ValueError(f"{path} describes {found}, not {expected}: remove {directory} and let it be generated again")
    return True
