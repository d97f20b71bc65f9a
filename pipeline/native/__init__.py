"""The native kernel, where it was built: a part of a JPEG decoded alone, antialiased resizing, and levels to floats.

It is optional: `kernel` is None where no compiler or no libjpeg-turbo was there. The pixels of one `transforms.resize`
never depend on it; but `fused` is there only with it, and is what `auto` is then.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

VERSION = 4
"""Of what the extension offers; `module.c` has the same."""


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("HEADRACE_NATIVE") == "0":
        return None, "left out by HEADRACE_NATIVE=0"
    try:
        module = importlib.import_module("pipeline.native._kernel")
    except ModuleNotFoundError:
        return None, "not built: make native builds it, or says why not"
    except ImportError as error:
        return None, f"built, but not to be loaded here: make native builds it anew ({error})"
    if getattr(module, "VERSION", None) != VERSION:
        return None, "built from other sources: make native builds it anew"
    return module, ""


kernel, why_not = _load()
"""The extension, or None and why it is not there."""
