"""Checkpoints: one plain dict each, replaced atomically, loadable with `weights_only=True`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.training.replacing import replacing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values) to `path`; whatever happens, a complete file is there.

    Raises:
        OSError: it could not be written, as on a full disk; the file that was there before still is.
    """
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError | KeyboardInterrupt):
            raise error.__context__ from None  # torch's writer fails once more as it closes, with words about positions
        raise


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, tensors on `device`, and runs no code from the file.

    With `mmap` the tensors stay in the file until they are looked at.
    """
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    return state
