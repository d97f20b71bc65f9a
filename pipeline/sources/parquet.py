"""Images in a column of Parquet files, as Hugging Face's `datasets` and others write them."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.parquet_table import Table, number_rows
from pipeline.sources.paths import Paths, PathTable
from pipeline.sources.remote import Remote, name_of, shown
from pipeline.sources.shards import find_shards
from pipeline.sources.source import as_labels, hash_order, stamp_bytes, stamp_file
from pipeline.sources.split import Split, in_split, require_samples

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_TAIL = struct.Struct("<I4s")
"""Length of the footer, and the format's mark."""
_KEPT_BYTES = 64 << 20
"""Of row groups that a process keeps, and the latest in any case: what is read in order is read once."""


class _Groups:
    """Row groups that one process has read, by (file, group); a forked child begins with none, nor with locks held."""

    def __init__(self) -> None:
        self.process_id = os.getpid()
        self._lock = threading.Lock()
        self._asked: OrderedDict[tuple[int, int], Future[pa.ChunkedArray]] = OrderedDict()

    def __reduce__(self) -> tuple[type[_Groups], tuple[()]]:
        return _Groups, ()

    def get(self, key: tuple[int, int], load: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """Returns what `load` gives, or gave lately. Threads that ask for one group at once have it loaded once."""
        with self._lock:
            known = self._asked.get(key)
            asked: Future[pa.ChunkedArray] = known or Future()
            self._asked[key] = asked
            self._asked.move_to_end(key)
        if known is None:
            try:
                asked.set_result(load())
            except BaseException as error:
                with self._lock:
                    del self._asked[key]
                asked.set_exception(error)
            self._forget_oldest()
        return asked.result()

    def _forget_oldest(self) -> None:
        with self._lock:
            loaded = {key: asked.result().nbytes for key, asked in self._asked.items() if asked.done()}
            num_bytes = sum(loaded.values())
            for key in list(loaded)[:-1]:
                if num_bytes <= _KEPT_BYTES:
                    break
                del self._asked[key]
                num_bytes -= loaded[key]


class Files:
    """Parquet files, local or read by `remote`, and which version of each it is that was found.

    Raises ValueError where a URL's server does not tell its size, OSError where a file is not there.
    """

    def __init__(self, paths: Sequence[str], remote: Remote | None) -> None:
        self.paths = PathTable(paths)
        self.remote = remote
        self._versions = [self._version(path) for path in paths]

    def open(self, number: int) -> str | io.BufferedReader:
        """Returns what pyarrow opens; raises OSError where file `number` is not the one any more that was found."""
        path = self.paths[number]
        if self.remote is not None:
            size, version = self._versions[number]
            return self.remote.open(path, size, version=version)
        if self._version(path) != self._versions[number]:
            raise OSError(errno.ESTALE, "was written anew since this run began; start it again", path)
        return path

    def shown(self, number: int) -> str:
        """Returns the path, or the URL without what is secret in it."""
        path = self.paths[number]
        return path if self.remote is None else shown(path)

    def stamp(self, number: int, row: int) -> int:
        """Returns 64 bits that change with the file and with `row`; raises OSError."""
        if self.remote is not None:
            return stamp_bytes(repr((self._versions[number], row)).encode())
        return stamp_file(self.paths.encoded(number), row)

    def _version(self, path: str) -> tuple[int, str]:
        """The size, and what a server tells, or the footer: it says what lies where, and a touched file is no other."""
        if self.remote is not None:
            return self.remote.version(path)
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL.size))
            footer_bytes, _ = _TAIL.unpack(file.read().rjust(_TAIL.size))
            file.seek(max(0, size - _TAIL.size - footer_bytes))
            return size, blake2b(file.read(), digest_size=16).hexdigest()


class ParquetSource:
    """Encoded images in Parquet files, as `open_parquet` finds them.

    The format has no access to a single row: a row group is read as a whole and kept until others need its room. Files
    are opened for each group and closed again.
    """

    def __init__(
        self,
        files: Files,
        rows: NDArray[np.int64],
        *,
        column: str,
        labels: Any,
        class_names: Sequence[str],
    ) -> None:
        """`rows` (n, 4): each sample's file, row group, row in that group, and row in that file; `column` its image."""
        self._files = files
        self._rows = rows.astype(np.int32)
        self._column = column
        self.labels = as_labels(labels, len(rows))
        self.class_names = tuple(class_names)
        self._groups = _Groups()
        self._metadata: dict[int, pq.FileMetaData] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": _Groups(), "_metadata": {}}

    def read(self, id: int) -> bytes:
        """Returns the bytes of image `id`; raises OSError, also where the row has none."""
        file, group, row, _ = self._row(id)
        if self._groups.process_id != os.getpid():
            self._groups = _Groups()
        image = self._groups.get((file, group), lambda: self._load(file, group))[row].as_py()
        if isinstance(image, dict):
            image = image["bytes"]
        if image is None:
            raise FileNotFoundError(errno.ENOENT, f"no bytes in the column {self._column}", self.where(id))
        return bytes(image)

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        return self.labels[id]

    def where(self, id: int) -> str:
        """Returns "file.parquet:row", rows counted from 0 in their file."""
        file, _, _, row = self._row(id)
        return f"{self._files.shown(file)}:{row}"

    def files(self) -> Paths:
        """Returns every file that holds one of the samples; none of those at URLs."""
        if self._files.remote is not None:
            return []
        return [self._files.paths[file] for file in np.unique(self._rows[:, 0]).tolist()]

    def fingerprint(self) -> str:
        """Returns a hash of the files' names, the rows of each, and the labels."""
        names = "\0".join(map(name_of, self._files.paths))
        places = np.ascontiguousarray(self._rows[:, [0, 3]]).tobytes()
        return hash_order([os.fsencode(names), places], self.labels)

    def stamp(self, id: int) -> int:
        """Returns 64 bits that change with the file of image `id`, and with its row there; raises OSError."""
        file, _, _, row = self._row(id)
        return self._files.stamp(file, row)

    def close(self) -> None:
        """Ends connections to a server, if there are any; a later read opens others."""
        if self._files.remote is not None:
            self._files.remote.close()

    def _row(self, id: int) -> list[int]:
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        row: list[int] = self._rows[id].tolist()
        return row

    def _load(self, file: int, group: int) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            place = self._files.open(file)
            with pq.ParquetFile(place, metadata=self._metadata.get(file), page_checksum_verification=True) as opened:
                self._metadata[file] = opened.metadata
                return opened.read_row_group(group, columns=[self._column], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's word about the file; the others are Arrow's about what is in it
            raise OSError(f"{self._files.shown(file)}: row group {group} cannot be read: {error}") from error


def open_parquet(
    pattern: str,
    *,
    val_pattern: str | None = None,
    image: str = "image",
    label: str = "label",
    split: Split,
    val_fraction: float = 0.1,
    remote: Remote | None = None,
) -> ParquetSource:
    """Returns the samples of one split, in the order of files and rows.

    Args:
        pattern: A glob (`data/train-*.parquet`), braces, or both.
        val_pattern: The files of the val split; None: rows are divided by a hash of their file's name and their number.
        image: Column of the encoded images: binary, or a struct with the field `bytes`.
        label: Column of the labels: whole numbers from 0 on (classes, named by what `datasets` wrote beside the schema,
            if it did), decimal numbers (values), or texts (classes, the sorted texts of both splits).
        split: Which part.
        val_fraction: How much is for validation, where there is no `val_pattern`.
        remote: Reads the files, which are URLs; None: they are local.

    Raises:
        ValueError: pyarrow is not installed, no file matches, a column is missing or of another type, a label is
            missing, or a row group holds more images than a reader should have to hold.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ValueError(
            "data=parquet needs pyarrow, which is not installed: pip install 'headrace[parquet]'"
        ) from None
    train = find_shards("data.pattern", pattern, remote=remote)
    val = [] if val_pattern is None else find_shards("data.val_pattern", val_pattern, remote=remote)
    if both := sorted(set(train) & set(val)):
        raise ValueError(
            f"data.val_pattern={val_pattern} names files that data.pattern={pattern} names too, such as {both[0]}: "
            f"give each file to one split"
        )
    files = Files([*train, *val], remote)
    tables = [Table(files.shown(number), files.open(number), image, label) for number in range(len(files.paths))]
    rows, labels, class_names = number_rows(tables)
    if len(rows) == 0:
        raise ValueError(f"data.pattern={pattern}: {len(tables)} files hold no row")
    if val_pattern is not None:
        kept = (rows[:, 0] < len(train)) == (split == "train")
    else:
        bases = list(map(name_of, train))
        kept = in_split((f"{bases[file]}:{row}" for file, row in rows[:, [0, 3]].tolist()), split, val_fraction)
    require_samples(int(kept.sum()), split, f"data.pattern={pattern}")
    column = f"{image}.bytes" if tables[0].is_struct else image
    return ParquetSource(files, rows[kept], column=column, labels=labels[kept], class_names=class_names)
