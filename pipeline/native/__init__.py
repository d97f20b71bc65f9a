"""The native kernel, where it was built: a part of a JPEG decoded alone, and antialiased resizing.

It is optional: `kernel` is None where no compiler or no libjpeg-turbo was there. Which pixels come out never depends on
it; `transforms.resize=fused` is there only with it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

kernel: ModuleType | None
"""The extension, or None."""
try:
    kernel = importlib.import_module("pipeline.native._kernel")
except ImportError:
    kernel = None
