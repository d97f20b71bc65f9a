"""From Hydra's composed configuration to the dataclasses. Importing this file makes the schemas known to Hydra."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline._compat import register_resolver
from pipeline.config.checks import ConfigError, nearest
from pipeline.config.data import (
    ArraysData,
    Cifar10Data,
    Cifar100Data,
    Data,
    FolderData,
    ManifestData,
    OwnData,
    ParquetData,
    SyntheticData,
    TarData,
)
from pipeline.config.messages import one_line
from pipeline.config.paths import check_paths, make_paths_absolute
from pipeline.config.root import AUTO, BenchConfig, TrainConfig

DATA_KINDS: dict[str, type[Data]] = {
    "synthetic": SyntheticData,
    "folder": FolderData,
    "manifest": ManifestData,
    "tar": TarData,
    "parquet": ParquetData,
    "arrays": ArraysData,
    "cifar10": Cifar10Data,
    "cifar100": Cifar100Data,
    "own": OwnData,
}
"""The schema of each kind of source, by the name of its option."""


def _register() -> None:
    """Store the schemas in a group of their own: beside the options they would be options, and swept by `glob(*)`."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=TrainConfig, package="_global_")
    store.store(group="schema", name="bench", node=BenchConfig, package="_global_")
    for name, schema in DATA_KINDS.items():
        store.store(group="schema/data", name=name, node=schema)
    door = {"door": {"_target_": "pipeline.cli.Door"}}
    store.store(group="hydra/callbacks", name="headrace", node=door)
    register_resolver("first_given", first_given)
    register_resolver("run_dir", run_dir)
    register_resolver("product", product)


def first_given(*values: str | None) -> str | None:
    """The first value that is not null: `${first_given:${run.name},...}` in YAML."""
    return next((value for value in values if value is not None), None)


def product(*factors: float) -> float:
    """All factors multiplied: `${product:5,${loader.batch_size}}` in YAML is the samples of five batches."""
    return math.prod(factors)


def run_dir(parent: str, name: str | None, resume: str | None, moment: str) -> str:
    """The directory of a run: `parent/name`, without a name the one that `resume` names, else `parent/moment`."""
    if name is None and resume not in (None, AUTO):
        return str(Path(str(resume)).expanduser())
    return f"{parent}/{first_given(name, moment)}"


def to_config(composed: DictConfig, *, cwd: str) -> TrainConfig:
    """Return the dataclasses of `composed`, with paths made absolute from `cwd`.

    Raises ConfigError for keys that no schema has, for wrong values, and for inputs that do not exist.
    """
    task = deepcopy(composed)
    with open_dict(task):
        task.pop("hydra", None)  # there before a run's directory is made, gone when its task starts
    for key, choices in _unknown_keys(task):
        raise ConfigError(f"{key} is not a key; {nearest(key.rpartition('.')[2], choices)}")
    try:
        config = cast(TrainConfig, OmegaConf.to_object(task))
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    make_paths_absolute(config, Path(cwd))
    check_paths(config)
    return config


def check_flags(composed: DictConfig) -> None:
    """Raises ConfigError for an override that gives a flag a number: omegaconf takes any but 0 for true."""
    for override in composed.hydra.overrides.task:
        key, _, given = str(override).lstrip("+").partition("=")
        is_number = given.lstrip("-").replace(".", "", 1).isdigit() and given not in ("0", "1")
        if is_number and isinstance(OmegaConf.select(composed, key), bool):
            raise ConfigError(f"{key} must be true or false, got {given}")


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the dotted keys that `+key=value` added to a schema, each with the names its parent has."""
    schema = OmegaConf.get_type(node)
    if schema is None or not is_dataclass(schema):
        return
    names = [field.name for field in fields(schema)]
    for name in map(str, node):
        if name not in names:
            yield f"{prefix}{name}", names
        elif not OmegaConf.is_missing(node, name) and OmegaConf.is_dict(child := node._get_node(name)):
            yield from _unknown_keys(cast(DictConfig, child), f"{prefix}{name}.")


_register()
