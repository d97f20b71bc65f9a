"""What a trial measures: a loader, open and ready, whoever wrote it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

Stream = Generator[tuple[Any, Any], None, None]
"""Endless batches, epoch after epoch: images and labels.

Images are `(B, 3, H, W)` normalised float32, as a torch tensor or a NumPy array, on the device the trial is for. Labels
are a tensor, an array or a list; None from a loader that has none. Workers persist over epochs.
"""


@dataclass(slots=True, kw_only=True)
class Contender:
    """A loader's stream of batches, and what has to be known to compare it fairly. Whoever opened it closes it."""

    stream: Stream
    batches_per_epoch: int
    num_samples: int
    """Samples in an epoch."""
    num_ready: int
    """Batches that may lie ready before the next one is asked for."""
    num_workers: int
    """Workers that make batches; 0: the loop itself."""
    resize: str
    """The filter that images are resized with, in words: aliased pixels are cheaper."""
    layout: str
    """channels-last or contiguous."""
    served_from: str
    """Where samples come from while the clock runs: "files", "a pack file", "memory (preload=ram)"."""
    deviations: list[str] = field(default_factory=list)
    """What this loader cannot do as the configuration says, each in a few words; empty: nothing."""
    files: list[str] | None = None
    """The files it reads while the clock runs; None: the source's own; none of them: nothing is read."""
