"""Files that take another's place in one step. Imports no torch, for who only writes a report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and else leaves no trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(_aside(path.name, os.getpid()))
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_json(path: Path, value: Any) -> None:
    """Writes plain values to `path` as JSON for people to read; the file is there whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def discard_partial(directory: Path) -> None:
    """Removes what a process that was killed while it wrote in `directory` left there; nobody may be writing now."""
    for path in directory.glob(_aside("*", "*")):
        path.unlink()


def _aside(name: str, pid: object) -> str:
    return f".{name}.{pid}.tmp"
