"""Images in a column of Parquet files, as Hugging Face's `datasets` and others write them."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.labels import number_labels, parse_texts
from pipeline.sources.paths import Paths, PathTable
from pipeline.sources.remote import Remote, shown
from pipeline.sources.shards import find_shards
from pipeline.sources.source import as_labels, hash_order, stamp_bytes, stamp_file
from pipeline.sources.split import Split, in_split, require_samples

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_GROUP_BYTES = 256 << 20
"""Of images in one row group: a sample is read with all others of its group, and eight workers may hold one each."""
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


class ParquetSource:
    """Encoded images in Parquet files, as `open_parquet` finds them; `versions` are those of URLs, read by `remote`.

    The format has no access to a single row: a row group is read as a whole and kept until others need its room. Files
    are opened for each group and closed again.
    """

    def __init__(
        self,
        files: Sequence[str],
        rows: NDArray[np.int64],
        *,
        column: str,
        labels: Any,
        class_names: Sequence[str],
        remote: Remote | None = None,
        versions: Sequence[tuple[int, str]] = (),
    ) -> None:
        """`rows` (n, 4): each sample's file, row group, row in that group, and row in that file; `column` its image."""
        self._files = PathTable(files)
        self._rows = rows.astype(np.int32)
        self._column = column
        self._remote = remote
        self._versions = versions
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
        return f"{self._shown(file)}:{row}"

    def files(self) -> Paths:
        """Returns every file that holds one of the samples; none of those at URLs."""
        if self._remote is not None:
            return []
        return [self._files[file] for file in np.unique(self._rows[:, 0]).tolist()]

    def fingerprint(self) -> str:
        """Returns a hash of the files' names, the rows of each, and the labels."""
        names = "\0".join(os.path.basename(path) for path in self._files)
        places = np.ascontiguousarray(self._rows[:, [0, 3]]).tobytes()
        return hash_order([os.fsencode(names), places], self.labels)

    def stamp(self, id: int) -> int:
        """Returns 64 bits that change with the file of image `id`, and with its row there; raises OSError."""
        file, _, _, row = self._row(id)
        if self._remote is not None:
            return stamp_bytes(repr((self._versions[file], row)).encode())
        return stamp_file(self._files.encoded(file), row)

    def close(self) -> None:
        """Ends connections to a server, if there are any; a later read opens others."""
        if self._remote is not None:
            self._remote.close()

    def _shown(self, file: int) -> str:
        return self._files[file] if self._remote is None else shown(self._files[file])

    def _row(self, id: int) -> list[int]:
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        row: list[int] = self._rows[id].tolist()
        return row

    def _load(self, file: int, group: int) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._files[file]
        try:
            place = path if self._remote is None else _opened(self._remote, path, self._versions[file])
            with pq.ParquetFile(place, metadata=self._metadata.get(file), page_checksum_verification=True) as opened:
                self._metadata[file] = opened.metadata
                return opened.read_row_group(group, columns=[self._column], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's word about the file; the others are Arrow's about what is in it
            place = self._shown(file)
            raise OSError(f"{place}: row group {group} cannot be read, or was written anew since: {error}") from error


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
    per_part = [find_shards("data.pattern", pattern, remote=remote)]
    if val_pattern is not None:
        per_part.append(find_shards("data.val_pattern", val_pattern, remote=remote))
    files = [file for part in per_part for file in part]
    versions = [] if remote is None else [remote.version(file) for file in files]
    places = files if remote is None else [_opened(remote, *each) for each in zip(files, versions, strict=True)]
    names = files if remote is None else [shown(file) for file in files]
    tables = [_Table(name, place, image, label) for name, place in zip(names, places, strict=True)]
    rows = np.concatenate(
        [np.insert(table.rows, 0, number, axis=1) for number, table in enumerate(tables)], dtype=np.int64
    )
    if len(rows) == 0:
        raise ValueError(f"data.pattern={pattern}: {len(files)} files hold no row")
    labels, class_names = _number(names, rows, tables)
    if val_pattern is not None:
        kept = (rows[:, 0] < len(per_part[0])) == (split == "train")
    else:
        bases = [os.path.basename(file) for file in files]
        kept = in_split((f"{bases[file]}:{row}" for file, row in rows[:, [0, 3]].tolist()), split, val_fraction)
    require_samples(int(kept.sum()), split, f"data.pattern={pattern}")
    column = f"{image}.bytes" if tables[0].is_struct else image
    return ParquetSource(
        files,
        rows[kept],
        column=column,
        labels=labels[kept],
        class_names=class_names,
        remote=remote,
        versions=versions,
    )


class _Table:
    """What one file says of its rows, without the images."""

    def __init__(self, path: str, place: Any, image: str, label: str) -> None:
        """Reads the footer and the labels of `place`, a path or an open file that messages call `path`; ValueError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(place) as file:
                schema = file.schema_arrow
                self.is_struct = _check_columns(path, schema, image, label)
                self.labels: list[Any] = file.read(columns=[label]).column(0).to_pylist()
                self.rows = _rows_of(path, file.metadata, image)
        except pa.ArrowException as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        self.class_names = _written_names(schema.metadata or {}, label)
        if None in self.labels:
            raise ValueError(f"{path}:{self.labels.index(None)}: {label} is missing")


def _opened(remote: Remote, url: str, version: tuple[int, str]) -> io.BufferedReader:
    return remote.open(url, version[0], version=version[1])


def _check_columns(path: str, schema: pa.Schema, image: str, label: str) -> bool:
    """Returns whether the images are a struct's field `bytes`."""
    import pyarrow as pa

    for key, name in (("image", image), ("label", label)):
        if name not in schema.names:
            raise ValueError(f"data.{key}={name}: {path} has no such column, but {', '.join(schema.names)}")
    kind = schema.field(image).type
    is_struct = bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0
    held = kind.field("bytes").type if is_struct else kind
    if not (pa.types.is_binary(held) or pa.types.is_large_binary(held)):
        raise ValueError(f"data.image={image}: {path} has {kind} there; it must be binary, or a struct with bytes")
    return is_struct


def _rows_of(path: str, metadata: pq.FileMetaData, image: str) -> NDArray[np.int64]:
    """Returns (n, 3): the row group of each row, its number there, and its number in the file."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for number, group in enumerate(groups):
        columns = map(group.column, range(group.num_columns))
        num_bytes = sum(
            column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == image
        )
        if num_bytes > MAX_GROUP_BYTES:
            raise ValueError(
                f"{path}: row group {number} has {num_bytes >> 20:,} MiB of images in {group.num_rows:,} rows, and a "
                f"sample is read with all of its group; write the file with row_group_size=100"
            )
    sizes = np.array([group.num_rows for group in groups], np.int64)
    within = np.concatenate([np.arange(0), *map(np.arange, sizes.tolist())])
    return np.stack([np.repeat(np.arange(len(sizes)), sizes), within, np.arange(sizes.sum())], axis=1)


def _written_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """Returns the class names that `datasets` writes beside the schema, if it did."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[label].get("names") or ()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()  # others may keep anything there


def _number(files: list[str], rows: NDArray[np.int64], tables: list[_Table]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Returns the labels of all rows as numbers, and the classes' names: of both splits, so that they agree."""
    written = [label for table in tables for label in table.labels]
    if all(isinstance(label, str) for label in written):
        written = list(parse_texts(written))
    labels, class_names = number_labels(written, lambda row: f"{files[int(rows[row, 0])]}:{rows[row, 3]}")
    names = tables[0].class_names
    for file, table in zip(files, tables, strict=True):
        if table.class_names != names:
            raise ValueError(f"{file} names its classes otherwise than {files[0]} does; write them with the same names")
    if names and class_names and len(class_names) > len(names):
        raise ValueError(f"{files[0]} names {len(names)} classes, but the greatest label is {len(class_names) - 1}")
    return labels, names if names and labels.dtype == np.int64 else class_names
