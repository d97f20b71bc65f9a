"""Who is told how a run goes: `metrics.csv`, TensorBoard, and a user's own loggers."""

from pipeline.training.loggers.choose import choose_loggers
from pipeline.training.loggers.logger import Logger, RunStart
from pipeline.training.loggers.loggers import Loggers

__all__ = ["Logger", "Loggers", "RunStart", "choose_loggers"]
