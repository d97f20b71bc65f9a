"""What is read before the first epoch."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.config.checks import choice


class PreloadMode(StrEnum):
    """Nothing (none), the cache's store in memory (ram), or a file that later runs map at once (pack).

    A pack holds encoded images, with `cache.store=decoded` their pixels.
    """

    none = "none"
    ram = "ram"
    pack = "pack"


@dataclass(kw_only=True)
class Preload:
    """Filling the store before epoch 0, so that no epoch waits for the disk."""

    mode: PreloadMode = PreloadMode.none
    """Where samples are put."""
    dir: str = "data/.packs"
    """Directory of pack files."""

    def __post_init__(self) -> None:
        self.mode = choice("preload.mode", self.mode, PreloadMode)
