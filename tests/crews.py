"""Loaders over worker processes, and what they must yield whatever happens to the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts import digest
from fakes import FakeSample, make_loader

from pipeline.loader.loader import Loader
from pipeline.sampler import SequentialSampler


def processes(sample: Callable[..., None], **options: Any) -> Loader:
    """Worker processes over `sample`, in order of id unless told otherwise."""
    num_samples = options.setdefault("num_samples", 20)
    options.setdefault("sampler", SequentialSampler(num_samples))
    options.setdefault("num_workers", 1)
    return make_loader(sample, backend="processes", **options)


def expected(epochs: int = 1, **options: Any) -> list[list[str]]:
    """The digests of an undisturbed run, epoch by epoch."""
    num_samples = options.setdefault("num_samples", 20)
    options.setdefault("sampler", SequentialSampler(num_samples))
    with make_loader(FakeSample(), **options) as loader:
        return [[digest(batch) for batch in loader] for _ in range(epochs)]
