"""Files that a loader needs made of the samples' files before it can start: written once, again after a change."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.decode import inspect
from pipeline.lock import file_lock
from pipeline.sources import FileSource

PREPARED = Path("data/.peers")
"""Below the current directory, a directory for each set of samples."""

_log = logging.getLogger(__name__)


def prepared_path(source: FileSource, name: str) -> Path:
    """Where the file called `name` made of `source` is, or will be."""
    # The fingerprint leaves out the directory that the samples are below; another one's may be other pictures.
    key = hashlib.blake2b(f"{source.fingerprint()}\0{source.where(0)}".encode(errors="surrogateescape"), digest_size=16)
    return PREPARED / key.hexdigest() / name


def prepare_file(source: FileSource, name: str, write: Callable[[Path], None]) -> None:
    """Have `write(path)` make the file called `name`, unless it is there and no sample's file has changed since.

    It is whole or not there at all, and one process writes it while others wait.
    """
    path = prepared_path(source, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    stamps, made_from = _stamps(source), path.with_name(f"{name}.made_from")
    with file_lock(f"{path}.lock", waiting_for=f"it writes {path}"):
        if path.exists() and made_from.exists() and made_from.read_text() == stamps:
            return
        _log.info("writing %s from %d files", path, len(source))
        made_from.unlink(missing_ok=True)
        aside = path.with_name(f"{name}.part")
        write(aside)
        os.replace(aside, path)
        made_from.write_text(stamps)


def read_jpeg(source: FileSource, id: int) -> bytes:
    """The bytes of sample `id`.

    Raises:
        ConfigError: They are not those of an RGB or grey JPEG, of which such a loader makes nothing, or a wrong image.
    """
    data = source.read(id)
    try:
        is_plain = inspect(data).plain_jpeg
    except ValueError as error:
        raise ConfigError(f"{source.where(id)}: {error}") from error
    if not is_plain:
        raise ConfigError(f"{source.where(id)} is not an RGB or grey JPEG, and this loader reads no other; remove it")
    return data


def _stamps(source: FileSource) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for id in range(len(source)):
        digest.update(source.stamp(id).to_bytes(8, "little"))
    return digest.hexdigest()
