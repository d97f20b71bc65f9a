"""Some of the samples of another source."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.paths import Paths
from pipeline.sources.source import Source, hash_order


class Subset:
    """Samples `ids` of `source`, numbered anew in that order; owns `source`.

    Its classes are those of the whole source, also where none of the samples is of one.
    """

    def __init__(self, source: Source, ids: NDArray[np.int64]) -> None:
        self._source = source
        self._ids = ids
        self.labels: NDArray[Any] = source.labels[ids]
        self.labels.flags.writeable = False
        self.class_names: Sequence[str] = source.class_names
        weights = getattr(source, "weights", None)
        self.weights: NDArray[np.float64] | None = None if weights is None else weights[ids]

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, id: int) -> bytes | NDArray[np.uint8]:
        """Returns what `source` reads; raises OSError."""
        return self._source.read(self._id(id))

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        return self.labels[id]

    def where(self, id: int) -> str:
        """Returns what `source` calls the sample."""
        return self._source.where(self._id(id))

    def files(self) -> Paths:
        """Returns a path for each sample, or every archive of `source`: it does not say which sample lies in which."""
        files = self._source.files()
        return [files[id] for id in self._ids.tolist()] if len(files) == len(self._source) else files

    def fingerprint(self) -> str:
        """Returns a hash of the whole source's fingerprint and of the samples taken."""
        return hash_order([self._source.fingerprint().encode(), self._ids.tobytes()], self.labels)

    def stamp(self, id: int) -> int:
        """Returns the stamp that `source` gives; raises OSError."""
        return self._source.stamp(self._id(id))

    def close(self) -> None:
        """Closes `source`, if that can be closed."""
        if hasattr(self._source, "close"):
            self._source.close()

    def _id(self, id: int) -> int:
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        return int(self._ids[id])


def at_most(source: Source, max_samples: int | None) -> Source:
    """Returns `source` itself if it has no more samples than that, else so many of them, which are always the same.

    They are spread evenly over the samples in the order of their labels: a class keeps its share to within one sample,
    whether a source has its classes one after another or in turns, where every n-th sample could be of one class. They
    stand in the order in which `source` has them.
    """
    num_samples = len(source)
    if max_samples is None or num_samples <= max_samples:
        return source
    labels = source.labels
    by_label = np.argsort(labels, kind="stable") if labels.ndim == 1 else np.arange(num_samples)
    taken = np.arange(max_samples) * num_samples // max_samples
    return Subset(source, np.sort(by_label[taken]))
