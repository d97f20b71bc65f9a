"""Headrace: input pipelines for training image models with PyTorch.

Names are imported when first used, so that worker processes and the command line can import parts of the package
without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import HighPerformanceDataset, LRUCache, PrefetchLoader, create_dataloader
    from pipeline.build import Pipeline, build_pipeline
    from pipeline.loader.batch import Batch

__all__ = [
    "Batch",
    "HighPerformanceDataset",
    "LRUCache",
    "Pipeline",
    "PrefetchLoader",
    "build_pipeline",
    "create_dataloader",
]

_HOMES = {
    "Batch": "pipeline.loader.batch",
    "HighPerformanceDataset": "pipeline.api",
    "LRUCache": "pipeline.cache",
    "Pipeline": "pipeline.build",
    "PrefetchLoader": "pipeline.prefetch",
    "build_pipeline": "pipeline.build",
    "create_dataloader": "pipeline.api",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
