"""A table of samples: CSV, TSV or JSON lines with `path`, `label` and, if wanted, `split` and `weight`."""

import csv
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.files import FileSource
from pipeline.sources.index import Identity, Index, identity_of, is_settled, pack_json, pack_names, unpack_json
from pipeline.sources.index_file import Arrays, IndexFile
from pipeline.sources.labels import number_labels, parse_texts
from pipeline.sources.paths import AnyPath, PathTable
from pipeline.sources.split import Split, of_split, require_samples, stable_hash

log = logging.getLogger(__name__)

MIN_BYTES = 1 << 20
"""A manifest of so many bytes is worth an index: some 20,000 rows take 50 ms to read."""

_REQUIRED, _OPTIONAL = ("path", "label"), ("split", "weight")


@dataclass
class _Table:
    """The columns of a manifest; `lines` holds each row's line number."""

    columns: tuple[str, ...]
    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def open_manifest(path: AnyPath, *, root: AnyPath | None = None, split: Split, val_fraction: float = 0.1) -> FileSource:
    """Returns the rows of one split, in the order of the file.

    `path` is relative to `root` (None: the manifest's own directory). `label` is text (classes are the sorted texts of
    both splits), a whole number from 0 on (the class), or a decimal number (a value). `split` is train or val; without
    that column rows are divided by a hash of `path`. `weight` becomes the source's `weights`. Other columns are
    ignored, which is logged; a blank line is no row. Files are not looked for here.

    Raises:
        ValueError: Anything in the file is not as described; the message has the line's number.
    """
    path = os.path.abspath(os.fsdecode(path))
    rows = _remembered_rows(path)
    is_told = "is_val" in rows
    kept = rows["is_val"] == (split == "val") if is_told else of_split(rows["hashes"], split, val_fraction)
    require_samples(int(kept.sum()), split, f"data.path={path}")
    base = os.path.dirname(path) if root is None else os.path.abspath(os.fsdecode(root))
    paths = PathTable.from_packed(rows["paths"], root=base).taken(kept)
    weights = rows["weights"][kept] if "weights" in rows else None
    return FileSource(paths, rows["labels"][kept], tuple(unpack_json(rows["class_names"])), weights=weights)


def _remembered_rows(path: str) -> Arrays:
    """Returns the manifest's rows, from an index beside it if that was made from the same file."""
    if not os.path.isfile(path):
        raise ValueError(f"data.path={path} does not exist")
    if os.path.getsize(path) < MIN_BYTES:
        return _read_rows(path)
    file = IndexFile(os.path.dirname(path), f"{os.path.basename(path)}.headrace-index")
    with Index(file, min_cost=0, pack=_pack, unpack=_unpack) as index:
        identity = identity_of(os.stat(path))
        return index.entry("rows", identity, lambda: _Rows(identity, is_settled(identity), _read_rows(path))).columns


@dataclass(slots=True)
class _Rows:
    """All rows of a manifest, as `_read_rows` gives them."""

    identity: Identity
    is_settled: bool
    columns: Arrays

    @property
    def cost(self) -> int:
        """Rows read."""
        return len(self.columns["labels"])


def _pack(tables: Sequence[_Rows]) -> Arrays:
    return tables[0].columns


def _unpack(arrays: Arrays, identities: list[Identity]) -> Iterator[_Rows]:
    yield _Rows(identities[0], True, arrays)


def _read_rows(path: str) -> Arrays:
    """Returns `paths`, each ended by a NUL, `labels`, `class_names` as JSON, `is_val` or `hashes`, and `weights`."""
    table = _read_table(path)
    if not table.paths:
        raise ValueError(f"data.path={path} has no rows below its header; add one for each image")
    written = table.labels if _suffix(path) == ".jsonl" else parse_texts(table.labels)
    labels, class_names = number_labels(written, lambda row: f"{path}:{table.lines[row]}")
    rows = {"paths": _pack_paths(path, table), "labels": labels, "class_names": pack_json(class_names)}
    if "split" in table.columns:
        rows["is_val"] = np.array([name == "val" for name in table.splits])
    else:
        rows["hashes"] = np.fromiter(map(stable_hash, table.paths), np.uint64, len(table.paths))
    if "weight" in table.columns:
        rows["weights"] = np.array(table.weights)
    return rows


def _pack_paths(path: str, table: _Table) -> NDArray[np.uint8]:
    try:
        return pack_names(table.paths)
    except UnicodeEncodeError as error:
        strange = error.object[error.start]
        line = next(line for line, name in zip(table.lines, table.paths, strict=True) if strange in name)
        raise ValueError(f"{path}:{line}: path cannot be the name of a file: {error.reason}") from None


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _read_table(path: str) -> _Table:
    readers = {".csv": ",", ".tsv": "\t", ".jsonl": None}
    suffix = _suffix(path)
    if suffix not in readers:
        raise ValueError(f"data.path={path} must end in {', '.join(readers)}")
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front of the header.
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = readers[suffix]
            rows = _json_rows(path, file) if delimiter is None else _delimited_rows(path, file, delimiter)
            return _collect(path, rows)
    except UnicodeDecodeError as error:
        raise ValueError(f"data.path={path} is not UTF-8 text: {error}; save it as UTF-8") from None


def _delimited_rows(path: str, file: Iterator[str], delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for values in reader:
            if not values:  # a blank line
                continue
            if header is None:
                header = [name.strip() for name in values]
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}:{reader.line_num}: a column stands twice in the header {header}")
            elif len(values) != len(header):
                raise ValueError(f"{path}:{reader.line_num}: {len(values)} fields, but the header has {len(header)}")
            else:
                yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from None


def _json_rows(path: str, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path}:{number}: each line must be an object such as {{"path": ..., "label": ...}}')
        yield number, row


def _collect(path: str, rows: Iterator[tuple[int, dict[str, Any]]]) -> _Table:
    """Checks every row against the columns of the first one."""
    table: _Table | None = None
    for line, row in rows:
        place = f"{path}:{line}"
        if table is None:
            table = _Table(_check_columns(place, tuple(row)))
        for name in table.columns:
            if row.get(name) in (None, ""):
                raise ValueError(f"{place}: {name} is missing")
        for name in row.keys() & set(_OPTIONAL) - set(table.columns):
            raise ValueError(f"{place}: {name} is given here but not in the first row; give it in every row or in none")
        if not isinstance(row["path"], str):
            raise ValueError(f"{place}: path must be text, got {row['path']!r}")
        if "\0" in row["path"]:
            raise ValueError(f"{place}: path holds a NUL character: {row['path']!r}")
        table.lines.append(line)
        table.paths.append(row["path"])
        table.labels.append(row["label"])
        if "split" in table.columns:
            table.splits.append(_check_split(place, row["split"]))
        if "weight" in table.columns:
            table.weights.append(_check_weight(place, row["weight"]))
    return table if table is not None else _Table(())


def _check_columns(place: str, names: Sequence[str]) -> tuple[str, ...]:
    for name in _REQUIRED:
        if name not in names:
            raise ValueError(
                f"{place}: the column {name!r} is missing, got {list(names)}; the first line names the columns"
            )
    others = [name for name in names if name not in _REQUIRED + _OPTIONAL]
    if others:
        log.info("%s: ignored the columns %s", place, ", ".join(map(repr, others)))
    return tuple(name for name in names if name in _REQUIRED + _OPTIONAL)


def _check_split(place: str, value: Any) -> str:
    if value not in ("train", "val"):
        raise ValueError(f"{place}: split must be train or val, got {value!r}")
    return str(value)


def _check_weight(place: str, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{place}: weight must be a finite number >= 0, got {value!r}")
    return weight
