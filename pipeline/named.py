"""What a configuration names as `package.module:name`: code of the user's, which importing it runs."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from traceback import extract_tb

from pipeline.config.checks import ConfigError


def import_named(key: str, name: str) -> object:
    """What `name` stands for, whose module is imported; `key` is the configuration's, for messages.

    Raises:
        ConfigError: the module raises when it is imported, or it has nothing of that name.
    """
    module_name, _, path = name.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        parts = module_name.split(".")
        is_its_own = error.name in [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        cure = "add its directory to PYTHONPATH" if is_its_own else "install it"
        raise ConfigError(f"{key}={name} cannot be imported: {error}; {cure}") from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise ConfigError(f"{key}={name} cannot be imported: {said(error)}") from error
    try:
        found: object = attrgetter(path)(module)
    except AttributeError as error:
        raise ConfigError(f"{key}={name}: {module_name} has no {path}; define it there, or correct the name") from error
    return found


def said(error: Exception) -> str:
    """What `error` of a user's code says and where it was raised, on one line."""
    frames = extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{place}".split())
