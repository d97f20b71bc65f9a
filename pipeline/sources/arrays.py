"""Decoded images of one size in a NumPy file, which is mapped: nothing is copied, and processes share its pages."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.labels import MAX_CLASSES
from pipeline.sources.paths import AnyPath, Paths
from pipeline.sources.source import Source, as_labels, hash_order, stamp_file
from pipeline.sources.split import Split, in_split, require_samples
from pipeline.sources.subset import Subset


class MappedSource:
    """Images in a `.npy` file, as `open_arrays` finds them.

    A pickle has the file's path and the labels, no pixel; another process maps the file at its first read. `close()`
    lets the map go, which lasts as long as a sample read from it; a later read maps the file again. Who writes to the
    file meanwhile changes samples, and who cuts it short ends the process.
    """

    def __init__(
        self, path: str, images: NDArray[np.uint8], labels: NDArray[Any], class_names: Sequence[str] = (), *, name: str
    ) -> None:
        """`images` are those of the file at `path`, mapped; `name` is what the fingerprint calls the whole set."""
        self._path = path
        self._images: NDArray[np.uint8] | None = images
        self._shape: tuple[int, ...] = images.shape
        self._name = name
        self.labels: NDArray[Any] = as_labels(labels, len(images))
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> dict[str, Any]:
        # NumPy would pickle a map as a copy of all it maps.
        return {**self.__dict__, "_images": None}

    def read(self, id: int) -> NDArray[np.uint8]:
        """Returns image `id`, read-only (H, W, 3): a view of the map, of a grey image a copy.

        Raises:
            OSError: The file has gone, or holds other images than when it was opened.
        """
        self._check(id)
        image: NDArray[np.uint8] = self._mapped()[id]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
            image.flags.writeable = False
        return image

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        return self.labels[id]

    def where(self, id: int) -> str:
        """Returns "images.npy:number"."""
        return f"{self._path}:{id}"

    def files(self) -> Paths:
        """Returns the one file of images."""
        return [self._path]

    def fingerprint(self) -> str:
        """Returns a hash of the file's name without its directory, the shape of the images and the labels."""
        return hash_order([self._name.encode(), repr(self._shape).encode()], self.labels)

    def stamp(self, id: int) -> int:
        """Returns 64 bits that change with the file, for each image others; raises OSError."""
        self._check(id)
        return stamp_file(self._path, id)

    def close(self) -> None:
        """Lets the map go; calling it again does nothing."""
        self._images = None

    def _check(self, id: int) -> None:
        if not 0 <= id < len(self):
            raise IndexError(f"image {id} of {len(self)}")

    def _mapped(self) -> NDArray[np.uint8]:
        images = self._images
        if images is None:
            # Two threads may both come here; either map is as good.
            try:
                images = np.asarray(np.lib.format.open_memmap(self._path, mode="r"))
            except ValueError as error:
                raise OSError(f"{self._path}: {error}; the file changed after it was opened") from error
            if images.shape != self._shape or images.dtype != np.uint8:
                raise OSError(
                    f"{self._path}: {images.dtype} {images.shape} instead of uint8 {self._shape}; "
                    "the file changed after it was opened"
                )
            self._images = images
        return images


def open_arrays(
    images: AnyPath,
    labels: AnyPath,
    *,
    val_images: AnyPath | None = None,
    val_labels: AnyPath | None = None,
    split: Split,
    val_fraction: float = 0.1,
) -> Source:
    """Returns the images of one split, in the order of the file.

    Args:
        images: A `.npy` file, uint8 (n, H, W, 3) RGB, or (n, H, W) grey, whose samples have three equal channels.
        labels: A `.npy` file (n,): whole numbers from 0 on are classes, decimal numbers are values.
        val_images: Those for validation; None: images are divided by a hash of their numbers, so that an image that is
            added at the end moves no other.
        val_labels: Goes with `val_images`.
        split: Which part.
        val_fraction: How much is for validation, where no `val_images` are given.

    Raises:
        ValueError: A file is not there or not as described, or a split is empty; the message names key and shape.
    """
    if (val_images is None) != (val_labels is None):
        given, lacking = ("val_labels", "val_images") if val_images is None else ("val_images", "val_labels")
        raise ValueError(f"data.{given} is given and data.{lacking} is not; give both, or neither")
    path, label_path = _absolute(images), _absolute(labels)
    numbers = _load_labels(label_path, "data.labels")
    if val_images is None or val_labels is None:
        source = _open_part(path, numbers, label_path, _class_names(numbers), prefix="")
        kept = np.flatnonzero(in_split(map(str, range(len(source))), split, val_fraction))
        require_samples(len(kept), split, f"data.images={path}")
        return Subset(source, kept)
    val_path, val_label_path = _absolute(val_images), _absolute(val_labels)
    val_numbers = _load_labels(val_label_path, "data.val_labels")
    if (numbers.dtype.kind == "f") != (val_numbers.dtype.kind == "f"):
        raise ValueError(
            f"data.labels={label_path} are {numbers.dtype} and data.val_labels={val_label_path} are "
            f"{val_numbers.dtype}; save both as whole numbers (classes), or both as decimal numbers (values)"
        )
    # Classes are numbered over both parts, so that both agree.
    class_names = max(_class_names(numbers), _class_names(val_numbers), key=len)
    if split == "val":
        return _open_part(val_path, val_numbers, val_label_path, class_names, prefix="val_")
    return _open_part(path, numbers, label_path, class_names, prefix="")


def _open_part(
    path: str, numbers: NDArray[Any], label_path: str, class_names: tuple[str, ...], *, prefix: str
) -> MappedSource:
    key, label_key = f"data.{prefix}images", f"data.{prefix}labels"
    images = _map(path, key)
    _check_images(images, f"{key}={path}")
    if len(numbers) != len(images):
        raise ValueError(
            f"{label_key}={label_path}: {len(numbers)} labels for the {len(images)} images {images.shape} of {path}; "
            "give one for each image"
        )
    return MappedSource(path, images, numbers, class_names, name=f"{prefix}{os.path.basename(path)}")


def _map(path: str, key: str) -> NDArray[Any]:
    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except OSError as error:
        raise ValueError(f"{key}={path} cannot be opened ({error.strerror}); give a .npy file") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{key}={path} is not a .npy file of numbers ({error}); write it with numpy.save") from None


def _check_images(images: NDArray[Any], place: str) -> None:
    """Raises ValueError for what cannot be used as it lies in the file."""
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not is_image:
        first = images.ndim == 4 and images.shape[1] == 3
        cure = "put the channels last: transpose(0, 2, 3, 1)" if first else "convert it and save it again"
        raise ValueError(
            f"{place} must be uint8 (n, H, W, 3), or (n, H, W) grey, got {images.dtype} {images.shape}; {cure}"
        )
    if images.size == 0:
        raise ValueError(f"{place} holds no image, got shape {images.shape}; save at least one")
    if not images.flags.c_contiguous:
        raise ValueError(
            f"{place} {images.shape} lies in Fortran order, where an image is spread over the whole file; "
            "save numpy.ascontiguousarray of it"
        )


def _load_labels(path: str, key: str) -> NDArray[Any]:
    labels = np.array(_map(path, key))
    if labels.ndim != 1:
        cure = (
            "save labels.reshape(-1)"
            if labels.ndim > 1 and labels.size == len(labels)
            else "save one number for each image"
        )
        raise ValueError(f"{key}={path} must be (n,), got {labels.dtype} {labels.shape}; {cure}")
    if labels.dtype.kind not in "iuf":
        raise ValueError(
            f"{key}={path} must be numbers, got {labels.dtype} {labels.shape}; save class numbers 0, 1, ..."
        )
    is_class = labels.dtype.kind != "f"
    wrong = (labels < 0) | (labels >= MAX_CLASSES) if is_class else ~np.isfinite(labels)
    if wrong.any():
        first = int(np.argmax(wrong))
        cure = "a class number from 0 on (save decimal numbers for values)" if is_class else "a finite number"
        raise ValueError(f"{key}={path} {labels.shape}: label {first} is {labels[first]}; it must be {cure}")
    return labels


def _class_names(labels: NDArray[Any]) -> tuple[str, ...]:
    return () if labels.dtype.kind == "f" or labels.size == 0 else tuple(map(str, range(int(labels.max()) + 1)))


def _absolute(path: AnyPath) -> str:
    return os.path.abspath(os.fsdecode(path))
