"""CIFAR-10 and CIFAR-100 from their own files, `cifar-10-batches-py` and `cifar-100-python`."""

import os
import pickle
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from pipeline.sources.files import ArraySource
from pipeline.sources.paths import AnyPath
from pipeline.sources.split import Split


@dataclass(frozen=True)
class Published:
    """How one of the two sets was published: the same pickled planes, under other names."""

    name: str
    directory: str
    """Of its files, as the archive unpacks."""
    files: dict[Split, tuple[str, ...]]
    """Those that hold images."""
    names_file: str
    """The one that holds the names of classes."""
    size_mb: int
    """Of the archive."""
    torchvision_class: str

    def folder(self, root: AnyPath) -> str:
        """Returns where the files are to lie: in `root`, or in the directory below it that the archive unpacks to."""
        root = os.path.abspath(os.fsdecode(root))
        return root if os.path.basename(root) == self.directory else os.path.join(root, self.directory)

    def missing(self, root: AnyPath, split: Split) -> list[str]:
        """Returns the files of `split` that are not there, absolute."""
        paths = [os.path.join(self.folder(root), name) for name in (*self.files[split], self.names_file)]
        return [path for path in paths if not os.path.isfile(path)]

    def is_complete(self, root: AnyPath) -> bool:
        """Returns whether all files of both splits are there, so that nothing would be downloaded."""
        return not any(self.missing(root, split) for split in self.files)


CIFAR10 = Published(
    name="CIFAR-10",
    directory="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)},
    names_file="batches.meta",
    size_mb=170,
    torchvision_class="CIFAR10",
)
CIFAR100 = Published(
    name="CIFAR-100",
    directory="cifar-100-python",
    files={"train": ("train",), "val": ("test",)},
    names_file="meta",
    size_mb=169,
    torchvision_class="CIFAR100",
)


def open_cifar10(root: AnyPath, *, split: Split, download: bool = False) -> ArraySource:
    """Returns the 50,000 training images, or the 10,000 test images as "val", 32x32, of 10 classes.

    Args:
        root: Holds `cifar-10-batches-py`, or is it.
        split: Which part.
        download: Fetch the archive (170 MB) into `root` by torchvision, which checks its MD5 sum, when it is not there;
            only this imports torch.

    Raises:
        ValueError: The files are not there and are not to be, or cannot be, downloaded; or are not CIFAR-10's.
    """
    _require(CIFAR10, root, split, download=download)
    return _open(CIFAR10, root, split, labels=b"labels", names=b"label_names", called=f"cifar10/{split}")


def open_cifar100(root: AnyPath, *, split: Split, coarse: bool = False, download: bool = False) -> ArraySource:
    """Returns the 50,000 training images, or the 10,000 test images as "val", 32x32, of 100 classes.

    Args:
        root: Holds `cifar-100-python`, or is it.
        split: Which part.
        coarse: The labels are the 20 superclasses instead.
        download: As in `open_cifar10` (169 MB).

    Raises:
        ValueError: As in `open_cifar10`.
    """
    _require(CIFAR100, root, split, download=download)
    kind = "coarse" if coarse else "fine"
    labels, names = f"{kind}_labels".encode(), f"{kind}_label_names".encode()
    return _open(CIFAR100, root, split, labels=labels, names=names, called=f"cifar100/{kind}/{split}")


def _require(published: Published, root: AnyPath, split: Split, *, download: bool) -> None:
    missing = published.missing(root, split)
    if missing and download:
        _download(published, root)
    elif missing:
        raise ValueError(
            f"data.root={os.fsdecode(root)}: {missing[0]} does not exist; set data.root to where {published.name} "
            f"lies, or data.download=true to fetch it ({published.size_mb} MB)"
        )


def _download(published: Published, root: AnyPath) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, published.torchvision_class)(os.path.dirname(published.folder(root)), download=True)
    except (OSError, RuntimeError) as error:  # no network, no room, or another MD5 sum than the published one
        raise ValueError(
            f"data.download=true: {published.name} could not be fetched into {os.fsdecode(root)} ({error}); try again, "
            f"or unpack its archive of Python files there"
        ) from error


def _open(
    published: Published, root: AnyPath, split: Split, *, labels: bytes, names: bytes, called: str
) -> ArraySource:
    folder = published.folder(root)
    parts = [_load(os.path.join(folder, name), {b"data", labels}) for name in published.files[split]]
    class_names = [name.decode() for name in _load(os.path.join(folder, published.names_file), {names})[names]]
    planes = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
    numbers = [label for part in parts for label in part[labels]]
    return ArraySource(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), numbers, class_names, name=called)


class _ArraysOnly(pickle.Unpickler):
    """Loads containers, texts, numbers and arrays; a pickle that names anything else could run code."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name == "_reconstruct":
            # Its module moved between NumPy's versions; an array names today's.
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR")


def _load(path: str, keys: set[bytes]) -> dict[bytes, Any]:
    try:
        with open(path, "rb") as file:
            content: dict[bytes, Any] = _ArraysOnly(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not a file of CIFAR ({error}); remove it and fetch it again") from None
    if not isinstance(content, dict) or not keys <= content.keys():
        wanted = ", ".join(sorted(key.decode() for key in keys))
        raise ValueError(f"{path} does not hold {wanted} as CIFAR's does; remove it and fetch it again")
    return content
