"""What a store is made with."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pipeline.config.cache import CachePolicy


class Kind(StrEnum):
    """What is kept of a sample; `either`: of each the one that saves more time a byte."""

    encoded = "encoded"
    decoded = "decoded"
    either = "either"

    @property
    def in_words(self) -> str:
        """What is kept, for people."""
        return "files or pixels" if self is Kind.either else f"{self} images"


class Settings(NamedTuple):
    """A store's budget, and how it spends it."""

    num_samples: int
    """Of the source: ids are below."""
    max_bytes: int
    max_images: int | None = None
    """None: as many as `max_bytes` holds."""
    policy: CachePolicy = CachePolicy.pinned
    kind: Kind = Kind.encoded

    @property
    def evicts(self) -> bool:
        """Whether a sample that is kept may give way to another."""
        return self.policy is not CachePolicy.pinned
