"""Remembers what was read or decoded, before the first random operation, under a budget."""

from pipeline.cache.lru import LRUCache
from pipeline.cache.pinned import PinnedCache

__all__ = ["LRUCache", "PinnedCache"]
