"""From `logger.*` to loggers: this package's own, and those that a user names."""

from __future__ import annotations

from typing import Any

from pipeline.config import ConfigError
from pipeline.config import Logger as LoggerOptions
from pipeline.named import import_named, said
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
    factory: Any = import_named("logger.extra", name)
    try:
        logger: Any = factory()
    except Exception as error:
        raise ConfigError(f"logger.extra={name} gave no logger when it was called: {said(error)}") from error
    missing = [method for method in _METHODS if not callable(getattr(logger, method, None))]
    if missing:
        raise ConfigError(
            f"logger.extra={name} gave {type(logger).__name__}, which has no {', '.join(missing)}; "
            f"a logger has {', '.join(_METHODS)}"
        )
    made: Logger = logger
    return made
