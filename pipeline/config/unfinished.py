"""Choices that the schema knows and this version cannot do yet: refused by name, never silently replaced.

Each is one row; the change that makes a choice work removes its row.
"""

from collections.abc import Collection
from typing import Any

from pipeline.config.checks import ConfigError

# Key -> (values that work, what to say instead of them).
_WORKING: dict[str, tuple[Collection[Any], str]] = {
    "data.on_error": (("raise",), "use raise"),
    "data.max_bad_fraction": ((0.1,), "leave it at 0.1: data.on_error=raise stops at the first bad sample"),
}


def refuse_unfinished(config: object) -> None:
    """Raise ConfigError if `config`, a `PipelineConfig`, asks for what does not work yet."""
    for key, (working, cure) in _WORKING.items():
        group, name = key.split(".")
        if not hasattr(config, group):
            continue  # a pipeline alone has no `dist`
        value = getattr(getattr(config, group), name)
        if value not in working:
            raise ConfigError(f"{key}={value} does not work in this version; {cure}")
