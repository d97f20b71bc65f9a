"""What Parquet files say of their rows, without the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.labels import number_labels, parse_texts

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_GROUP_BYTES = 256 << 20
"""Of images in one row group: a sample is read with all others of its group, and eight workers may hold one each."""


class Table:
    """What one file says of its rows."""

    def __init__(self, path: str, place: Any, image: str, label: str) -> None:
        """Reads the footer and the labels of `place`, a path or an open file that messages call `path`; ValueError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            with pq.ParquetFile(place, page_checksum_verification=True) as file:
                schema = file.schema_arrow
                self.is_struct = _check_columns(path, schema, image, label)
                self.labels: list[Any] = file.read(columns=[label]).column(0).to_pylist()
                self.rows = _rows_of(path, file.metadata, image)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's word about the file; the others are Arrow's about what is in it
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        self.class_names = _written_names(schema.metadata or {}, label)
        if None in self.labels:
            raise ValueError(f"{path}:{self.labels.index(None)}: {label} is missing")


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
        # Of a struct each field is a column; a dot may be part of a name as well.
        num_bytes = sum(
            column.total_uncompressed_size for column in columns if f"{column.path_in_schema}.".startswith(f"{image}.")
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


def number_rows(tables: Sequence[Table]) -> tuple[NDArray[np.int64], NDArray[Any], tuple[str, ...]]:
    """Returns the rows of all `tables`, labels as numbers, and the classes' names: of both splits, so that they agree.

    Of each row (n, 4): the number of its table, row group, row in that group, and row in that table.

    Raises ValueError where tables do not go together, or labels are of several kinds.
    """
    rows = np.concatenate(
        [np.insert(table.rows, 0, number, axis=1) for number, table in enumerate(tables)], dtype=np.int64
    )
    first = tables[0]
    for table in tables:
        if table.class_names != first.class_names:
            raise ValueError(f"{table.path} names its classes otherwise than {first.path}; write them with one list")
        if table.is_struct != first.is_struct:
            raise ValueError(
                f"the images are bytes in one of {first.path} and {table.path} and structs in the other; "
                f"write all files with one schema"
            )
    written = [label for table in tables for label in table.labels]
    if not written:
        return rows, np.empty(0, np.int64), first.class_names
    if all(isinstance(label, str) for label in written):
        written = list(parse_texts(written))
    labels, class_names = number_labels(written, lambda row: f"{tables[int(rows[row, 0])].path}:{rows[row, 3]}")
    names = first.class_names
    if names and class_names and len(class_names) > len(names):
        raise ValueError(f"{first.path} names {len(names)} classes, but the greatest label is {len(class_names) - 1}")
    return rows, labels, names if names and labels.dtype == np.int64 else class_names
