"""Inputs that a configuration names: found before anything slow starts."""

from glob import glob
from pathlib import Path

from pipeline.config.checks import ConfigError
from pipeline.config.data import (
    PATHS,
    ArraysData,
    Cifar10Data,
    Cifar100Data,
    FolderData,
    ManifestData,
    ParquetData,
    TarData,
)
from pipeline.config.root import AUTO, PipelineConfig

_ARRAYS = ("images", "labels", "val_images", "val_labels")


def make_paths_absolute(config: PipelineConfig, cwd: Path) -> None:
    """Make the paths in `config` start from `cwd`, so that they mean the same wherever a run is moved to."""
    for group, name in (
        *((config.data, name) for name in PATHS),
        (config.preload, "dir"),
        (config, "resume"),
        (config, "init_from"),
    ):
        path = getattr(group, name, None)
        if path is not None and (name, path) != ("resume", AUTO) and "://" not in path:
            setattr(group, name, str(cwd / Path(path).expanduser()))


def check_paths(config: PipelineConfig) -> None:
    """Raise ConfigError if an input that the run would read is not there."""
    data, init_from = config.data, getattr(config, "init_from", None)
    if init_from is not None and getattr(config, "resume", None) is None and not Path(init_from).is_file():
        raise ConfigError(f"init_from is not a file: {init_from}; give a checkpoint or a saved state_dict")
    if isinstance(data, FolderData) and "://" not in data.root and not Path(data.root).is_dir():
        raise ConfigError(f"data.root is not a directory: {data.root}; give the one that holds the class directories")
    if isinstance(data, ManifestData):
        _check_manifest(data)
    if isinstance(data, TarData):
        _check_shards("data.pattern", data.pattern, "shards/*.tar")
    if isinstance(data, ParquetData):
        for key, pattern in (("data.pattern", data.pattern), ("data.val_pattern", data.val_pattern)):
            if pattern is not None:
                _check_shards(key, pattern, "data/train-*.parquet")
    if isinstance(data, ArraysData):
        _check_arrays(data)
    if isinstance(data, Cifar10Data | Cifar100Data) and not data.download and not Path(str(data.root)).is_dir():
        name = "CIFAR-10" if isinstance(data, Cifar10Data) else "CIFAR-100"
        raise ConfigError(f"data.root is not a directory: {data.root}; add data.download=true to fetch {name} into it")


def _check_manifest(data: ManifestData) -> None:
    if "://" not in data.path and not Path(data.path).is_file():
        raise ConfigError(f"data.path is not a file: {data.path}; give a CSV, TSV or JSONL manifest")
    if data.root is not None and "://" not in data.root and not Path(data.root).is_dir():
        raise ConfigError(f"data.root is not a directory: {data.root}; use null for the manifest's own")


def _check_arrays(data: ArraysData) -> None:
    for name in _ARRAYS:
        path = getattr(data, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"data.{name} is not a file: {path}; give a .npy file, as numpy.save writes it")


def _check_shards(key: str, pattern: str, example: str) -> None:
    """Check a glob as a whole, and of a brace list the directory: its shards are checked where it is expanded."""
    if "://" in pattern:
        return
    if "{" in pattern:
        directory = Path(pattern.partition("{")[0] + "x").parent
        if not directory.is_dir():
            raise ConfigError(f"{key} is in {directory}, which is not a directory; got {pattern}")
    elif not glob(pattern):
        raise ConfigError(f"{key} matches no file: {pattern}; give a glob such as {example}")
