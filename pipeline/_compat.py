"""What differs between versions of Hydra, omegaconf and Python; the only file that asks for a version."""

from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
import omegaconf
from omegaconf import OmegaConf

_HYDRA_13 = hydra.__version__.startswith("1.3.")

# Which defaults Hydra follows: 1.3 warns when it is not told, 1.4 when it is.
HYDRA_DEFAULTS: dict[str, Any] = {"version_base": "1.3"} if _HYDRA_13 else {}

# Hydra 1.4 wants to know what a configuration may make; ours makes one callback and nothing else.
HYDRA_MAIN: dict[str, Any] = {**HYDRA_DEFAULTS, **({} if _HYDRA_13 else {"execution_whitelist": ["pipeline.cli.Door"]})}


def register_resolver(name: str, resolve: Callable[..., Any]) -> None:
    """Make `${name:...}` known to omegaconf, whose function for it has a new name since 2.4."""
    new = "register_new_resolver" if omegaconf.__version__.startswith("2.3.") else "register_resolver"
    getattr(OmegaConf, new)(name, resolve, replace=True)


@contextmanager
def lazy_help_allowed() -> Iterator[None]:
    """Let Hydra 1.3 start on Python 3.14, whose argparse refuses help that is not a string.

    Hydra 1.3 gives its `--shell-completion` a help object that becomes text only when printed (hydra issue 3121).
    """
    check = getattr(ArgumentParser, "_check_help", None)
    if check is None:
        yield
        return

    def check_strings(parser: ArgumentParser, action: Action) -> None:
        if isinstance(action.help, str):
            check(parser, action)

    ArgumentParser._check_help = check_strings  # type: ignore[attr-defined]
    try:
        yield
    finally:
        ArgumentParser._check_help = check  # type: ignore[attr-defined]
