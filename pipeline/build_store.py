"""Stores, made and filled. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

from pipeline.build_estimate import LookedAt
from pipeline.cache.host import HostRank, share_file
from pipeline.cache.load import CachedLoad, Sample, Store, ValuedLoad
from pipeline.cache.settings import Settings
from pipeline.config import CachePolicy, ConfigError
from pipeline.preload import preload
from pipeline.stats import Stats

if TYPE_CHECKING:
    from pipeline.cache.shared_store import SharedStore

CAN_SHARE = sys.platform == "linux"
"""Whether a store can be shared by processes; elsewhere there is one for threads."""

RANK_LIMIT_S = 60.0
"""How long a rank waits for the first of its host to make a store."""


def is_shared(policy: CachePolicy, *, in_processes: bool) -> bool:
    """Whether processes share such a store. ConfigError where they would have to and cannot."""
    # An LRU of threads lies in their own memory: pages that may go must be copied at every hit.
    if CAN_SHARE:
        return in_processes or policy is not CachePolicy.lru
    if in_processes or policy is CachePolicy.valued:
        raise ConfigError(f"cache={policy} needs Linux here; use loader.backend=threads with cache=lru or cache=pinned")
    return False


def shared_store(
    settings: Callable[[], Settings],
    *,
    rank: HostRank | None,
    name: Callable[[], str],
    resources: ExitStack,
    begin: Callable[[SharedStore], None] | None = None,
) -> SharedStore:
    """A store that all worker processes share, and all ranks of this host that ask for one of this `name`.

    Whoever makes it asks for `settings` and may `begin` to fill it, before anybody else sees it. `resources` closes it.
    """
    from pipeline.cache.shared_store import SharedStore  # not above: they need Linux
    from pipeline.cache.table import create

    def make() -> int:
        fd = create(settings())
        try:
            if begin is not None:
                with closing(SharedStore(os.dup(fd))) as store:
                    begin(store)
        except BaseException:
            os.close(fd)
            raise
        return fd

    if rank is None:
        store = SharedStore(make())
    else:
        file = share_file(name(), make, rank, limit_s=RANK_LIMIT_S)
        resources.callback(file.close)
        store = SharedStore(os.dup(file.fd))
    resources.callback(store.close)
    return store


def keep_looked_at(load: CachedLoad | ValuedLoad, looked_at: Mapping[int, LookedAt], stats: Stats) -> None:
    """Keep, as far as there is room, what was read to estimate sizes: it need not be read again."""
    for id, looked in looked_at.items():
        if not load.store.wants(id):
            break
        stats.clock.add("read", looked.read_s)
        with suppress(OSError, ValueError), load.store.claimed(id):  # whoever wants it meets the error, at its place
            load.keep_read(id, *looked)


def fill(
    load: Callable[[int], Sample],
    store: Store,
    ids: Sequence[int],
    *,
    num_threads: int,
    name: str,
    cures: Sequence[str],
    passes_over: Callable[[Exception], bool] = lambda _: False,
) -> None:
    """Load `ids`, samples called `name`, into `store`, in that order; ConfigError with `cures` when it has no room.

    A sample whose error it `passes_over` is left to whoever wants it.
    """

    def load_and_check(id: int) -> Sample:
        try:
            sample = load(id)
        except Exception as error:
            if passes_over(error):
                return b""
            raise
        if not store.has(id) and len(sample) > 0:
            raise ConfigError(
                f"the images of {name} are larger than a few of them looked: there is room for "
                f"{store.stats()['entries']:,} of {len(ids):,}; use {', '.join(cures[:-1])} or {cures[-1]}"
            )
        return sample

    for _ in preload(load_and_check, ids, num_threads=num_threads, name=name):
        pass
