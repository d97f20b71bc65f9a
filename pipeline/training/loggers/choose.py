"""From `logger.*` to loggers: this package's own, and those that a user names."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any

from pipeline.config import ConfigError
from pipeline.config import Logger as LoggerOptions
from pipeline.training.loggers.csv_file import CsvLogger
from pipeline.training.loggers.logger import Logger
from pipeline.training.loggers.tensorboard import TensorBoardLogger

_METHODS = ("start", "step", "epoch", "close")


def choose_loggers(options: LoggerOptions) -> dict[str, Logger]:
    """The loggers that `options` ask for, none of them started, by the name that a message gives them.

    Imports the modules that `logger.extra` names, and so runs what stands in them, and calls their factories.

    Raises:
        ConfigError: TensorBoard is not installed, or one of `logger.extra` cannot be had.
    """
    loggers: dict[str, Logger] = {}
    if options.csv:
        loggers["csv"] = CsvLogger()
    if options.tensorboard:
        loggers["tensorboard"] = TensorBoardLogger()
    for name in options.extra:
        loggers[name] = _make(name)
    return loggers


def _make(name: str) -> Logger:
    """The logger that the factory `package.module:factory` gives."""
    module_name, _, factory_name = name.partition(":")
    try:
        factory = attrgetter(factory_name)(import_module(module_name))
    except ModuleNotFoundError as error:
        cure = "install it" if error.name not in _prefixes(module_name) else "add its directory to PYTHONPATH"
        raise ConfigError(f"logger.extra={name} cannot be imported: {_said(error)}; {cure}") from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise ConfigError(f"logger.extra={name} cannot be imported: {_said(error)}") from error
    try:
        logger: Any = factory()
    except Exception as error:
        raise ConfigError(f"logger.extra={name} gave no logger when it was called: {_said(error)}") from error
    missing = [method for method in _METHODS if not callable(getattr(logger, method, None))]
    if missing:
        raise ConfigError(
            f"logger.extra={name} gave {type(logger).__name__}, which has no {', '.join(missing)}; "
            f"a logger has {', '.join(_METHODS)}"
        )
    made: Logger = logger
    return made


def _prefixes(module_name: str) -> list[str]:
    """The packages that `module_name` lies in, and itself."""
    parts = module_name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _said(error: Exception) -> str:
    """What `error` says, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
