"""Loading from a pack, with a check of each sample when it is first used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pipeline.cache.load import Sample
from pipeline.cache.pack import PackFile

_UNCHECKED, _FRESH, _FROM_SOURCE = range(3)

_log = logging.getLogger(__name__)


class PackedLoad:
    """`load(id)` over a pack, as long as the sample's name and stamp are those packed; otherwise from the source.

    A sample's stamp is looked at when a process first uses it; another process looks for itself. The first sample that
    has changed is named in a warning, and the pack is marked, so that the next opening builds it again.
    """

    def __init__(
        self,
        pack: PackFile,
        *,
        load: Callable[[int], Sample],
        stamp: Callable[[int], int],
        where: Callable[[int], str],
    ) -> None:
        """Use `pack`, which the caller closes; `load`, `stamp` and `where` are the source's."""
        self._pack = pack
        self._load = load
        self._stamp = stamp
        self._where = where
        self._states = bytearray(len(pack))
        self._told = threading.Lock()
        """Taken once and kept, by whoever tells: it is never waited for."""

    def __reduce__(self) -> tuple[Callable[..., PackedLoad], tuple[object, ...]]:
        return _remade, (self._pack, self._load, self._stamp, self._where)

    def __call__(self, id: int) -> Sample:
        """Sample `id`. Raises what the source raises for a file that is gone, and RuntimeError when it was closed."""
        state = self._states[id]
        if state == _UNCHECKED:
            state = self._check(id)
        return self._pack(id) if state == _FRESH else self._load(id)

    def _check(self, id: int) -> int:
        try:
            fresh = self._pack.holds(id, self._where(id), self._stamp(id))
        except OSError:
            # What the file's state is, is for the source to say: it raises, or a later stat succeeds.
            return _FROM_SOURCE
        self._states[id] = _FRESH if fresh and not self._pack.lacks(id) else _FROM_SOURCE
        if not fresh and self._told.acquire(blocking=False):
            self._pack.mark_stale()
            _log.warning(
                "%s has changed since it was packed in %s: it, and whatever else has, is loaded from the source; "
                "the next run packs it again",
                self._where(id),
                self._pack.path,
            )
        return self._states[id]


def _remade(
    pack: PackFile, load: Callable[[int], Sample], stamp: Callable[[int], int], where: Callable[[int], str]
) -> PackedLoad:
    return PackedLoad(pack, load=load, stamp=stamp, where=where)
