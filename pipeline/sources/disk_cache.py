"""Bytes kept in files that several processes share, up to a bound."""

from __future__ import annotations

import os
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

from pipeline.lock import file_lock

_DIGEST_BYTES = 16
_ABANDONED_S = 3600.0
"""A file being written that is older is a killed process's."""
_LEFT_BY_SWEEP = 0.9


def user_cache_dir(*parts: str) -> str:
    """Returns the path `parts` below this project's directory in the user's cache directory; nothing is made.

    Raises RuntimeError where the user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
    return os.path.join(base, "headrace", *parts)


class DiskCache:
    """Blobs of bytes by key, each in a file with its checksum, at most `max_bytes` of them together.

    The ones used longest ago go first. Any number of processes and machines may use one directory: a blob is there as a
    whole or not at all, and one that is damaged counts as not there.
    """

    def __init__(self, directory: str, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def get(self, key: str) -> bytes | None:
        """Returns what was put last under `key`, or None."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                content = file.read()
            os.utime(path)
        except OSError:
            return None
        data = content[_DIGEST_BYTES:]
        return data if _digest(data) == content[:_DIGEST_BYTES] else None

    def put(self, key: str, data: bytes) -> None:
        """Keeps `data`, if it is not more than there may be of all; raises OSError where the disk refuses."""
        if len(data) + _DIGEST_BYTES > self._max_bytes:
            return
        path = self._path(key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".part-")
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(data) + data)
            with file_lock(os.path.join(self._directory, ".lock"), waiting_for="room in the cache of remote files"):
                self._make_room(len(data) + _DIGEST_BYTES)
                os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _make_room(self, num_bytes: int) -> None:
        """Counts `num_bytes` more, and removes the oldest blobs where that is too much; called under the lock."""
        counter = os.path.join(self._directory, ".bytes")
        try:
            with open(counter) as file:
                kept_bytes = int(file.read())
        except (OSError, ValueError):
            kept_bytes = self._max_bytes  # nobody has counted: count now
        if kept_bytes + num_bytes > self._max_bytes:
            kept_bytes = self._sweep(int(self._max_bytes * _LEFT_BY_SWEEP) - num_bytes)
        with open(counter, "w") as file:
            file.write(str(kept_bytes + num_bytes))

    def _sweep(self, left_bytes: int) -> int:
        """Removes blobs, those used longest ago first, until `left_bytes` are left; returns what is left."""
        found: list[tuple[float, int, str]] = []
        for directory, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # another process's, gone meanwhile
                if not name.startswith("."):
                    found.append((status.st_mtime, status.st_size, path))
                elif name.startswith(".part-") and time.time() - status.st_mtime > _ABANDONED_S:
                    os.unlink(path)
        kept_bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if kept_bytes <= left_bytes:
                break
            os.unlink(path)
            kept_bytes -= size
        return kept_bytes

    def _path(self, key: str) -> str:
        name = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        return os.path.join(self._directory, name[:2], name[2:])


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
