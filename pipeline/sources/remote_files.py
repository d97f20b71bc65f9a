"""Trees and manifests of files that lie on a server or in a bucket."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import compress
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import ArrayLike

from pipeline.sources.files import FileSource
from pipeline.sources.folder import classes_of, require_images_of_each
from pipeline.sources.manifest import open_manifest
from pipeline.sources.paths import AnyPath, Paths
from pipeline.sources.remote import Remote, is_remote, shown
from pipeline.sources.source import stamp_bytes
from pipeline.sources.split import IMAGE_SUFFIXES, Split, in_split, require_samples

_LISTS_NOTHING = ("http", "https")


class RemoteFileSource(FileSource):
    """Encoded images at URLs, of which some may be local paths.

    Args:
        paths: URLs, or paths below `root`.
        labels: As in `FileSource`, like `class_names` and `weights`.
        class_names: One name a class number.
        root: URL that relative paths start from.
        remote: Reads the URLs.
        weights: How often to draw each sample.
    """

    def __init__(
        self,
        paths: Iterable[AnyPath],
        labels: ArrayLike,
        class_names: Sequence[str] = (),
        *,
        root: str,
        remote: Remote,
        weights: ArrayLike | None = None,
    ) -> None:
        super().__init__(paths, labels, class_names, weights=weights)
        self._root = root.rstrip("/")
        self._remote = remote

    def read(self, id: int) -> bytes:
        """Returns the bytes of file `id`, from the local cache if they were read before; raises OSError."""
        url = self._url(id)
        return self._remote.read(url) if is_remote(url) else super().read(id)

    def where(self, id: int) -> str:
        """Returns the URL of file `id` without user and password, and of a query a digest that tells it from others."""
        url = self._url(id)
        query = urlsplit(url).query
        return f"{shown(url)}?{blake2b(query.encode(), digest_size=4).hexdigest()}" if query else shown(url)

    def files(self) -> Paths:
        """Returns no path: none is local."""
        return []

    def stamp(self, id: int) -> int:
        """Returns 64 bits of the URL: asking the server about each file would take as long as reading it."""
        return stamp_bytes(os.fsencode(self._url(id)))

    def close(self) -> None:
        """Ends the connections; a later read opens others."""
        self._remote.close()

    def _url(self, id: int) -> str:
        path = self.paths[id]
        if is_remote(path) or path.startswith("/"):
            return path
        # A path is a name, whatever `#`, `?` and `%` are in a URL of the web.
        return f"{self._root}/{quote(path) if self._root.startswith('http') else path}"


def open_remote_folder(root: str, *, remote: Remote, split: Split, val_fraction: float = 0.1) -> RemoteFileSource:
    """Returns the images of one split below the URL `root`: those that `open_folder` finds in a copy of it.

    Raises:
        ValueError: A web server, which lists nothing; else as of `open_folder`.
    """
    place = f"data.root={shown(root)}"
    if root.partition("://")[0] in _LISTS_NOTHING:
        raise ValueError(f"{place}: a web server lists no files; use data=manifest or data=tar")
    found = sorted(tuple(path.split("/")) for path in remote.find(root))
    class_names, is_divided = classes_of(place, _directories(found), lambda name: _directories(found, name))
    if is_divided:
        found = [path[1:] for path in found if path[0] == split]
        root = f"{root.rstrip('/')}/{split}"
    images = [path for path in found if len(path) > 1 and _is_image(path)]
    paths = ["/".join(path) for path in images]
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[path[0]] for path in images], np.int64)
    if not is_divided:
        require_images_of_each(place, class_names, labels)
        kept = in_split(paths, split, val_fraction)
        paths, labels = list(compress(paths, kept)), labels[kept]
    require_samples(len(paths), split, place)
    return RemoteFileSource(paths, labels, class_names, root=root, remote=remote)


def open_remote_manifest(
    path: str, *, root: str | None, remote: Remote, split: Split, val_fraction: float = 0.1
) -> RemoteFileSource:
    """Returns the rows of one split of a manifest that lies at a URL, or whose images do; else as `open_manifest`.

    A manifest at a URL is fetched anew each time. Relative paths start from `root`, or from the manifest's place.
    """
    base = (
        root
        or (urlsplit(path)._replace(query="", fragment="").geturl() if is_remote(path) else path).rpartition("/")[0]
    )
    local = _fetched(path, remote) if is_remote(path) else path
    try:
        source = open_manifest(local, split=split, val_fraction=val_fraction)
    except ValueError as error:
        raise ValueError(str(error).replace(local, shown(path))) from error
    paths = source.paths.relative()
    return RemoteFileSource(paths, source.labels, source.class_names, root=base, remote=remote, weights=source.weights)


def _fetched(url: str, remote: Remote) -> str:
    """Returns a local copy of the manifest at `url`, whose time changes only if its content does."""
    content = remote.fetch(url)
    directory = os.path.join(remote.cache_dir, "manifests", blake2b(os.fsencode(url), digest_size=8).hexdigest())
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, posixpath.basename(shown(url)))
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return path
    except FileNotFoundError:
        pass
    temporary = f"{path}.{os.getpid()}.part"
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
    return path


def _directories(found: Iterable[Sequence[str]], *parents: str) -> list[str]:
    """Returns what directories `parents` hold directly, hidden ones aside; there are none without a file."""
    depth = len(parents)
    names = {path[depth] for path in found if len(path) > depth + 1 and tuple(path[:depth]) == parents}
    return sorted(name for name in names if not name.startswith("."))


def _is_image(path: Sequence[str]) -> bool:
    hidden = any(name.startswith(".") for name in path)
    return not hidden and os.path.splitext(path[-1])[1].lower().lstrip(".") in IMAGE_SUFFIXES
