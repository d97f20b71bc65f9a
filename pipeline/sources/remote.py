"""Files on a server or in a bucket, by their URLs: tried again when the network fails, and kept on the local disk."""

from __future__ import annotations

import errno
import io
import logging
import os
import posixpath
import random
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.sources.disk_cache import DiskCache, user_cache_dir

log = logging.getLogger(__name__)

_BLOCK_BYTES = 4 << 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gs", "gcs": "gs"}
_WORTH_ANOTHER_TRY = (408, 425, 429)
"""Of HTTP's 4xx, which else say that the request is wrong: time-out, too early, too many."""

# As the file systems of fsspec call them: web servers, S3, and Google's.
_TOLD_OF_VERSIONS = (
    *("ETag", "Last-Modified", "Content-MD5", "Digest"),
    *("LastModified", "mtime", "etag", "updated", "md5Hash"),
)

_T = TypeVar("_T")


def is_remote(path: str) -> bool:
    """Whether `path` is a URL."""
    return "://" in path


def shown(url: str) -> str:
    """Returns `url` without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def name_of(path: str) -> str:
    """Returns the last part of a path or a URL: of one of the web as it would be called here, without its query."""
    return (
        posixpath.basename(unquote(urlsplit(path).path))
        if path.startswith(("http://", "https://"))
        else os.path.basename(path)
    )


class Remote:
    """Reads URLs by fsspec. Picklable; every process opens connections of its own, at its first read.

    `close()` ends them, and a later read opens others.

    Args:
        cache_dir: Directory of what was read; None: the user's cache directory.
        cache_bytes: The most that it may hold.
        timeout_s: The most that one request may take, its whole answer included.
        num_tries: How often a request is made, with growing pauses, before it counts as failed.
    """

    def __init__(
        self, *, cache_dir: str | None = None, cache_bytes: int = 10 << 30, timeout_s: float = 30.0, num_tries: int = 5
    ) -> None:
        try:
            self.cache_dir = cache_dir or user_cache_dir("remote")
        except RuntimeError as error:
            raise ValueError(f"data.remote_cache_dir is needed for URLs here: {error}") from error
        self._cache = DiskCache(os.path.join(self.cache_dir, "blobs"), cache_bytes)
        self._timeout_s = timeout_s
        self._num_tries = num_tries
        self._keeps = True
        self._systems: dict[str, Any] = {}
        self._process_id = os.getpid()

    def close(self) -> None:
        """Ends this process's connections. May be called twice."""
        systems, self._systems = self._systems, {}
        for system in systems.values():
            session = getattr(system, "_session", None)  # others close theirs when they are collected
            if session is not None and self._process_id == os.getpid():
                system.close_session(system.loop, session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_systems": {}}

    def read(self, url: str, *, start: int = 0, size: int | None = None, version: str = "") -> bytes:
        """Returns the file, or `size` bytes of it from `start` on, from the cache if they were read before.

        Args:
            url: Which file.
            start: First byte.
            size: How many bytes, which must all be there; None: the whole file.
            version: What tells the file from an earlier one of the same URL.

        Raises:
            FileNotFoundError, PermissionError: The server says so.
            OSError: Every try failed; the message has the URL and the last cause.
        """
        key = f"{url}\0{start}\0{size}\0{version}"
        data = self._cache.get(key)
        if data is None:
            data = self.fetch(url, start=start, size=size)
            self._keep(key, data)
        return data

    def _keep(self, key: str, data: bytes) -> None:
        if self._keeps:
            try:
                self._cache.put(key, data)
            except OSError as error:
                self._keeps = False
                log.warning("what is read from now on is not kept in %s, and read again: %s", self.cache_dir, error)

    def fetch(self, url: str, *, start: int = 0, size: int | None = None) -> bytes:
        """Returns what `read` does, and never what was read before."""

        def once() -> bytes:
            system = self._system(url)
            ends = {} if size is None else {"start": start, "end": start + size}
            data: bytes = self._call(system, "cat_file", url, **ends)
            if size is not None and len(data) > size:
                raise _WrongAnswerError(
                    f"the server sent {len(data):,} bytes for a range of {size:,}: it takes no ranges"
                )
            if size is not None and len(data) < size:
                raise OSError(f"{len(data):,} of {size:,} bytes came")
            return data

        return self._patiently(url, once)

    def version(self, url: str) -> tuple[int, str]:
        """Returns the size of a file in bytes, and text that changes when it does, as far as the server tells.

        Raises ValueError where it does not tell the size.
        """
        info: dict[str, Any] = self._patiently(url, lambda: self._call(self._system(url), "info", url))
        told = [str(info[name]) for name in _TOLD_OF_VERSIONS if name in info]
        size = info.get("size")
        if size is None:
            raise ValueError(f"{shown(url)}: the server does not tell its size; serve it with Content-Length")
        return int(size), " ".join([str(size), *told])

    def find(self, url: str) -> list[str]:
        """Returns the paths of all files below `url`, from there on, in no order."""
        root = self._system(url)._strip_protocol(url).rstrip("/") + "/"
        found = self._patiently(url, lambda: self._call(self._system(url), "find", url))
        return [path.removeprefix(root) for path in found if path.startswith(root)]

    def glob(self, url: str) -> list[str]:
        """Returns the URLs that a pattern with `*` stands for, sorted."""
        system = self._system(url)
        found = self._patiently(url, lambda: self._call(system, "glob", url))
        return sorted(system.unstrip_protocol(path) for path in found)

    def open(self, url: str, size: int, *, version: str | None = None) -> io.BufferedReader:
        """Returns a file object over `size` bytes, read in blocks of megabytes; with `version` these are kept."""
        return io.BufferedReader(_Blocks(self, url, size, version), _BLOCK_BYTES)

    def _system(self, url: str) -> Any:
        """The file system of `url`, made in this process: its thread does not live on in a forked one."""
        if self._process_id != os.getpid():
            self._systems, self._process_id = {}, os.getpid()
        protocol = url.partition("://")[0]
        if protocol not in self._systems:
            import fsspec

            try:
                self._systems[protocol] = fsspec.filesystem(protocol, skip_instance_cache=True)
            except (ImportError, ValueError) as error:
                extra = _EXTRAS.get(protocol)
                cure = f"pip install 'headrace[{extra}]'" if extra else "use http, https, s3 or gs"
                raise ValueError(f"{shown(url)} cannot be read: {error}; {cure}") from error
        return self._systems[protocol]

    def _call(self, system: Any, name: str, url: str, **options: Any) -> Any:
        """One request, ended after `timeout_s` where the file system is an asynchronous one."""
        if not getattr(system, "async_impl", False):
            return getattr(system, name)(url, **options)
        from fsspec.asyn import sync

        return sync(system.loop, getattr(system, f"_{name}"), url, timeout=self._timeout_s, **options)

    def _patiently(self, url: str, once: Callable[[], _T]) -> _T:
        pause_s = _FIRST_PAUSE_S
        for number in range(1, self._num_tries + 1):
            try:
                return once()
            except (_WrongAnswerError, ValueError) as error:
                raise _WrongAnswerError(f"{shown(url)}: {_said(error)}") from error
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "not there", shown(url)) from None  # fsspec names the URL
            except PermissionError:
                raise PermissionError(errno.EACCES, "not allowed", shown(url)) from None
            except Exception as error:  # each file system has its own kinds
                status = getattr(error, "status", None)
                if status in (401, 403):
                    raise PermissionError(errno.EACCES, f"not allowed (HTTP {status})", shown(url)) from error
                is_final = isinstance(status, int) and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY
                if is_final or number == self._num_tries:
                    tries = "at once" if is_final else f"in {number} tries"
                    # ECONNABORTED: whoever reads may not begin all tries anew.
                    raise OSError(
                        errno.ECONNABORTED, f"not read {tries}, at last: {_said(error)}", shown(url)
                    ) from error
            # Not the samples' generators: how often the network fails must not change an epoch.
            time.sleep(pause_s * random.SystemRandom().uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")


class _WrongAnswerError(OSError):
    """The server does what another try would not change."""


class _Blocks(io.RawIOBase):
    """The bytes of a URL as a file that can be sought in."""

    def __init__(self, remote: Remote, url: str, size: int, version: str | None) -> None:
        self._remote, self._url, self._size, self._version = remote, url, size, version
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        if size:
            if self._version is None:
                buffer[:size] = self._remote.fetch(self._url, start=self._at, size=size)
            else:
                buffer[:size] = self._remote.read(self._url, start=self._at, size=size, version=self._version)
            self._at += size
        return size


def _said(error: Exception) -> str:
    """What `error` says on one line, its kind if that is nothing; no URL in it, which may hold secrets."""
    status = getattr(error, "status", None)
    words = f"HTTP {status} {getattr(error, 'message', '')}" if isinstance(status, int) else str(error)
    return " ".join(words.split()) or type(error).__name__
