"""The configuration's schema: one dataclass file a group. Imports no torch, so a wrong value fails at once.

The dataclasses are plain Python: `Loader(num_workers=4, backend="threads")` checks its values as the command
line does. Strings stand for the members of the enums, which compare equal to them.
"""

from pipeline.config.bench import Bench, BenchMode, ContenderName, Sweep
from pipeline.config.cache import Cache, CachePolicy, Store
from pipeline.config.checks import ConfigError
from pipeline.config.data import (
    ArraysData,
    Cifar10Data,
    Cifar100Data,
    Data,
    FolderData,
    ManifestData,
    OnError,
    OwnData,
    ParquetData,
    Reachable,
    SyntheticData,
    TarData,
)
from pipeline.config.loader import Backend, Loader, SamplerName
from pipeline.config.model import Model
from pipeline.config.prefetch import ImageDtype, Prefetch, PrefetchDevice
from pipeline.config.preload import Preload, PreloadMode
from pipeline.config.report import Report
from pipeline.config.root import BenchConfig, PipelineConfig, TrainConfig
from pipeline.config.run import Debug, Device, Run
from pipeline.config.training import Amp, Dist, Logger, Optim, OptimName, Schedule, ScheduleName
from pipeline.config.transforms import Augment, Decode, Place, Policy, Resize, Transforms

__all__ = [
    "Amp",
    "ArraysData",
    "Augment",
    "Backend",
    "Bench",
    "BenchConfig",
    "BenchMode",
    "Cache",
    "CachePolicy",
    "Cifar10Data",
    "Cifar100Data",
    "ConfigError",
    "ContenderName",
    "Data",
    "Debug",
    "Decode",
    "Device",
    "Dist",
    "FolderData",
    "ImageDtype",
    "Loader",
    "Logger",
    "ManifestData",
    "Model",
    "OnError",
    "Optim",
    "OptimName",
    "OwnData",
    "ParquetData",
    "PipelineConfig",
    "Place",
    "Policy",
    "Prefetch",
    "PrefetchDevice",
    "Preload",
    "PreloadMode",
    "Reachable",
    "Report",
    "Resize",
    "Run",
    "SamplerName",
    "Schedule",
    "ScheduleName",
    "Store",
    "Sweep",
    "SyntheticData",
    "TarData",
    "TrainConfig",
    "Transforms",
]
