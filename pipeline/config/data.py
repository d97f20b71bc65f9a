"""Where samples come from: one schema for each kind of source."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.config.checks import ConfigError, choice, flag, real, whole

# The functional form, because `raise` is a keyword.
OnError = StrEnum("OnError", {"raise": "raise", "skip": "skip", "replace": "replace"})


PATHS = ("root", "path", "pattern", "val_pattern", "images", "labels", "val_images", "val_labels", "remote_cache_dir")
"""The keys of all kinds of data that hold a path, a URL or a pattern of them."""


@dataclass(kw_only=True)
class Data:
    """What all sources share."""

    root: str | None = None
    """Directory of the images; what null means is said by each kind of source."""
    on_error: OnError = OnError["raise"]
    """What a sample that cannot be decoded does: raise names it and stops, skip shortens its batch,
    replace puts another sample in its place."""
    max_bad_fraction: float = 0.1
    """With skip or replace: the part of all samples, in [0, 1], that may be bad before the run ends."""
    val_fraction: float = 0.1
    """The part of all samples, in (0, 1), kept for evaluation if the source has no split of its own."""
    max_samples: int | None = None
    """Train on so many samples at most, the same part of every class; null: on all there are."""
    max_val_samples: int | None = None
    """Evaluate on so many samples at most, chosen alike; null: on all there are."""

    def __post_init__(self) -> None:
        for name in PATHS:
            if getattr(self, name, None) == "":  # it would mean the current directory
                raise ConfigError(f"data.{name} is empty; give data.{name}=PATH, or leave it out")
        self.on_error = choice("data.on_error", self.on_error, OnError)
        self.max_bad_fraction = real(
            "data.max_bad_fraction",
            self.max_bad_fraction,
            low=0,
            high=1,
            cure="0.1 allows one in ten",
        )
        if self.on_error is OnError["raise"] and self.max_bad_fraction != Data.max_bad_fraction:
            raise ConfigError(
                f"data.max_bad_fraction={self.max_bad_fraction:g} has no use with data.on_error=raise, which stops at "
                "the first bad sample; use data.on_error=skip or replace"
            )
        self.val_fraction = real(
            "data.val_fraction",
            self.val_fraction,
            low=0,
            high=1,
            low_open=True,
            high_open=True,
            cure="0.1 keeps one image in ten for evaluation",
        )
        for name in ("max_samples", "max_val_samples"):
            if getattr(self, name) is not None:
                setattr(self, name, whole(f"data.{name}", getattr(self, name), low=1, cure="null takes all there are"))


@dataclass(kw_only=True)
class SyntheticData(Data):
    """JPEG files of our own making, generated under `root` once and used again by later runs."""

    root: str | None = "data/synthetic"
    """Directory that the files are generated in; every size and seed gets its own directory below it."""
    num_images: int
    """How many images, training and evaluation together."""
    num_classes: int = 10
    """How many classes; images are spread over them evenly."""
    seed: int = 0
    """Which images: the same number gives the same files, whatever the top-level `seed` is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None:
            raise ConfigError("data.root must be a directory, got null; data/synthetic is the usual one")
        self.num_classes = whole("data.num_classes", self.num_classes, low=2, cure="10 is the usual number")
        self.num_images = whole(
            "data.num_images", self.num_images, low=2 * self.num_classes, cure="give every class two images"
        )
        self.seed = whole("data.seed", self.seed, low=0, cure="0 is the usual one")


@dataclass(kw_only=True)
class Reachable(Data):
    """What may lie at a URL: s3://, gs://, https://. Needs the extra `s3`, `gs` or `http`."""

    remote_cache_dir: str | None = None
    """Directory of what was read; null: one in the user's cache directory."""
    remote_cache_gib: float = 10.0
    """The most that it may hold."""
    remote_timeout_s: float = 30.0
    """The most that one request may take, its whole answer included."""
    remote_tries: int = 5
    """How often a request is made before it counts as failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        cure = "10 is the usual size"
        self.remote_cache_gib = real("data.remote_cache_gib", self.remote_cache_gib, low=0, low_open=True, cure=cure)
        cure = "30 is the usual time"
        self.remote_timeout_s = real("data.remote_timeout_s", self.remote_timeout_s, low=0, low_open=True, cure=cure)
        self.remote_tries = whole("data.remote_tries", self.remote_tries, low=1, cure="1 tries nothing again")


@dataclass(kw_only=True)
class FolderData(Reachable):
    """Any tree of class directories, or one with `train/` and `val/` above them."""

    root: str = field()
    """The directory. With `train/` and `val/` inside, `val_fraction` is not used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None:  # omegaconf fills a missing required field from the base class
            raise ConfigError("data.root must be given; add data.root=DIR")


@dataclass(kw_only=True)
class ManifestData(Reachable):
    """A CSV, TSV or JSONL file that lists images and their labels."""

    root: str | None = None
    """What the manifest's relative paths start from; null: the manifest's own directory."""
    path: str
    """The manifest. Columns `path` and `label`, and `split` if it brings its own."""


@dataclass(kw_only=True)
class TarData(Reachable):
    """WebDataset shards: tar files in which an image and its label share a name."""

    pattern: str
    """The shards: a glob (`shards/*.tar`) or a brace list (`shards/train-{000..015}.tar`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is not None:
            raise ConfigError(f"data.root has no use for tar, got {self.root!r}; put it into data.pattern")


@dataclass(kw_only=True)
class ParquetData(Reachable):
    """Parquet files with encoded images in a column. Needs the extra `parquet`."""

    pattern: str
    """The files: a glob (`data/train-*.parquet`) or a brace list."""
    val_pattern: str | None = None
    """Those for evaluation; null: `val_fraction` of the rows is."""
    image: str = "image"
    """Column of the images: binary, or a struct with the field `bytes`."""
    label: str = "label"
    """Column of the labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is not None:
            raise ConfigError(f"data.root has no use for parquet, got {self.root!r}; put it into data.pattern")


@dataclass(kw_only=True)
class ArraysData(Data):
    """NumPy files of decoded images of one size, which are mapped and never copied as a whole."""

    images: str
    """A `.npy` file, uint8 (n, H, W, 3), or (n, H, W) grey."""
    labels: str
    """A `.npy` file (n,), one number for each image."""
    val_images: str | None = None
    """As `images`, for evaluation; null: `val_fraction` of `images` is."""
    val_labels: str | None = None
    """The labels of `val_images`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is not None:
            raise ConfigError(f"data.root has no use for arrays, got {self.root!r}; put it into data.images and others")
        if (self.val_images is None) != (self.val_labels is None):
            lacking = "val_images" if self.val_images is None else "val_labels"
            raise ConfigError(f"data.{lacking} must be given with the other of the two; add data.{lacking}=FILE")


@dataclass(kw_only=True)
class Cifar10Data(Data):
    """CIFAR-10's 60,000 images of 32x32, with its own split into training and evaluation."""

    root: str | None = "data/cifar10"
    """Directory that holds `cifar-10-batches-py`, or receives it."""
    download: bool = False
    """Fetch the archive (170 MB) when it is not there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None:
            raise ConfigError("data.root must be a directory, got null; data/cifar10 is the usual one")
        self.download = flag("data.download", self.download)


@dataclass(kw_only=True)
class Cifar100Data(Data):
    """CIFAR-100's 60,000 images of 32x32, with its own split into training and evaluation."""

    root: str | None = "data/cifar100"
    """Directory that holds `cifar-100-python`, or receives it."""
    coarse: bool = False
    """Learn the 20 superclasses instead of the 100 classes."""
    download: bool = False
    """Fetch the archive (169 MB) when it is not there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None:
            raise ConfigError("data.root must be a directory, got null; data/cifar100 is the usual one")
        self.coarse = flag("data.coarse", self.coarse)
        self.download = flag("data.download", self.download)


@dataclass(kw_only=True)
class OwnData(Data):
    """A source of one's own: code that the configuration names, which is imported and run."""

    root: str | None = None
    """Given to the factory, if it takes `root`; null: it is called without."""
    factory: str
    """`package.module:function`, called with those of `split`, `root` and `val_fraction` that it takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.]+:[\w.]+", self.factory):
            raise ConfigError(f"data.factory must be package.module:function, got {self.factory!r}")
