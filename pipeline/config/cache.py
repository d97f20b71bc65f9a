"""What is remembered between epochs."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.config.checks import choice, real, whole


class CachePolicy(StrEnum):
    """Which samples stay: none, the used last (lru), the first to come (pinned), what saves most a byte (valued)."""

    none = "none"
    lru = "lru"
    pinned = "pinned"
    valued = "valued"


class Store(StrEnum):
    """What is kept: a file's bytes (encoded), its pixels (decoded), or pixels if all of them fit (auto)."""

    auto = "auto"
    encoded = "encoded"
    decoded = "decoded"


@dataclass(kw_only=True)
class Cache:
    """A store of samples in memory. Batches are the same bytes whatever is chosen here."""

    policy: CachePolicy = CachePolicy.none
    """Which samples stay when there is no room for all."""
    max_images: int | None = None
    """At most so many images; null: as many as `max_gib` holds."""
    max_gib: float | None = None
    """At most so many GiB; null: what is free. Never more than is free."""
    store: Store = Store.auto
    """What is kept of a sample."""

    def __post_init__(self) -> None:
        self.policy = choice("cache.policy", self.policy, CachePolicy)
        self.store = choice("cache.store", self.store, Store)
        if self.max_images is not None:
            self.max_images = whole("cache.max_images", self.max_images, low=1, cure="use cache=none to keep none")
        if self.max_gib is not None:
            self.max_gib = real("cache.max_gib", self.max_gib, low=0, low_open=True, cure="use cache=none to keep none")
