"""Checkpoints: one plain dict each, replaced atomically, loadable with `weights_only=True`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values) to `path`; whatever happens, a complete file is there.

    Raises:
        OSError: it could not be written, as on a full disk; the file that was there before still is.
    """
    with replacing(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, tensors on `device`, and runs no code from the file.

    With `mmap` the tensors stay in the file until they are looked at.
    """
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    return state


def discard_partial(directory: Path) -> None:
    """Removes what a process that was killed while it wrote in `directory` left there; nobody may be writing now."""
    for path in directory.glob(_aside("*", "*")):
        path.unlink()


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


def _aside(name: str, pid: object) -> str:
    return f".{name}.{pid}.tmp"
