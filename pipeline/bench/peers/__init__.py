"""The loaders that a trial can measure beside this one, each in a module that imports it.

Two steps, both in a Python that has the loader: `prepare` makes what it needs first and imports it, off the clock;
`open_contender` is its construction, on the clock.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.bench.peers.environments import interpreter, why_not
from pipeline.config import BenchConfig
from pipeline.config.bench import ContenderName

if TYPE_CHECKING:
    import torch

    from pipeline.bench.contender import Contender

__all__ = ["interpreter", "load", "open_contender", "prepare", "why_not"]

_MODULES = {
    ContenderName.torch: "torch_dataloader",
    ContenderName.dali: "dali",
    ContenderName.ffcv: "ffcv",
    ContenderName.turboloader: "turboloader",
    ContenderName.spdl: "spdl",
}


def load(cfg: BenchConfig) -> None:
    """Import the loader `cfg.bench.contender`; ours is there already."""
    if cfg.bench.contender in _MODULES:
        _module(cfg)


def prepare(cfg: BenchConfig) -> None:
    """Import the loader `cfg.bench.contender` and write what it reads, unless it is there and up to date.

    Raises:
        ConfigError: It cannot do what `cfg` asks for; the message names the key.
    """
    _module(cfg).prepare(cfg)


def open_contender(cfg: BenchConfig, device: torch.device) -> AbstractContextManager[Contender]:
    """The loader `cfg.bench.contender`, its batches on `device`; call `prepare` first.

    Leaving the block closes the stream and ends its workers. Raises ConfigError as `prepare` does.
    """
    opened: AbstractContextManager[Contender] = _module(cfg).open_loader(cfg, device)
    return opened


def _module(cfg: BenchConfig) -> Any:
    return import_module(f"{__name__}.{_MODULES[cfg.bench.contender]}")
