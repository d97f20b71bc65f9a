"""CIFAR-10 from its own files, `cifar-10-batches-py`."""

import os
import pickle
from typing import IO, Any

import numpy as np

from pipeline.sources.files import ArraySource
from pipeline.sources.paths import AnyPath
from pipeline.sources.split import Split

_DIRECTORY = "cifar-10-batches-py"
_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "val": ("test_batch",),
}


def open_cifar10(root: AnyPath, *, split: Split, download: bool = False) -> ArraySource:
    """Returns the 50,000 training images, or the 10,000 test images as "val", 32x32.

    Args:
        root: Holds `cifar-10-batches-py`, or is it.
        split: Which part.
        download: Fetch the archive (170 MB) into `root` by torchvision when it is not there; only this imports torch.

    Raises:
        ValueError: The files are not there, or are not CIFAR-10's.
    """
    root = os.path.abspath(os.fsdecode(root))
    folder, names = _folder(root), _BATCHES[split]
    missing = _missing(folder, split)
    if missing and download:
        from torchvision.datasets import CIFAR10

        CIFAR10(os.path.dirname(folder), download=True)
    elif missing:
        raise ValueError(
            f"data.root={root}: {os.path.join(folder, missing[0])} does not exist; "
            f"set data.root to where CIFAR-10 lies, or data.download=true to fetch it (170 MB)"
        )
    batches = [_load(os.path.join(folder, name)) for name in names]
    class_names = [name.decode() for name in _load(os.path.join(folder, "batches.meta"))[b"label_names"]]
    planes = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = [label for batch in batches for label in batch[b"labels"]]
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return ArraySource(pixels, labels, class_names, name=f"cifar10/{split}")


def is_complete(root: AnyPath) -> bool:
    """Returns whether all files of both splits are there, so that `open_cifar10` downloads nothing."""
    folder = _folder(os.path.abspath(os.fsdecode(root)))
    return not any(_missing(folder, split) for split in _BATCHES)


def _folder(root: str) -> str:
    return root if os.path.basename(root) == _DIRECTORY else os.path.join(root, _DIRECTORY)


def _missing(folder: str, split: Split) -> list[str]:
    return [name for name in (*_BATCHES[split], "batches.meta") if not os.path.isfile(os.path.join(folder, name))]


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
        raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR-10")


def _load(path: str) -> dict[bytes, Any]:
    try:
        with open(path, "rb") as file:
            content: dict[bytes, Any] = _ArraysOnly(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not a file of CIFAR-10 ({error}); remove it and fetch it again") from None
    return content
