"""What happens to decoded pixels: geometry, resizing, colour, normalisation.

Importing the package loads nothing: worker processes must be able to use it without torch, which only `device` needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.transforms.device import BatchTransform
    from pipeline.transforms.sample import SampleTransform

__all__ = ["BatchTransform", "SampleTransform"]

_HOMES = {"BatchTransform": "pipeline.transforms.device", "SampleTransform": "pipeline.transforms.sample"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
