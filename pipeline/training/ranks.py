"""A run over several ranks: what each of them does of it, and whether they are about to do the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pipeline.config import ConfigError, TrainConfig
from pipeline.config.leaves import first_of, leaves
from pipeline.dist import World
from pipeline.training.environment import plain


def part_of(cfg: TrainConfig, world: World, earlier: dict[str, Any] | None) -> TrainConfig:
    """`cfg` with the batch size of one rank that keeps the global batch of the run that left the state `earlier`.

    `loader.batch_size` is that of one rank where a run begins. ConfigError where the ranks cannot share the batch.
    """
    if earlier is None:
        return cfg
    global_batch_size = int(earlier["loader"]["global_batch_size"])
    batch_size, rest = divmod(global_batch_size, world.size)
    if rest:
        raise ConfigError(
            f"the run's global batch of {global_batch_size}, which is kept, cannot be shared by {world.size} ranks; "
            f"continue it with a number that divides it, such as {_nearest_divisor(global_batch_size, world.size)}"
        )
    return replace(cfg, loader=replace(cfg.loader, batch_size=batch_size))


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((divisor for divisor in range(1, number + 1) if number % divisor == 0), key=lambda d: abs(d - wanted))


def check_agreement(world: World, cfg: TrainConfig, run_dir: Path, *, step: int | None) -> None:
    """Refuses ranks that were started with different configurations, or that go on from different steps.

    Raises:
        ConfigError: at every rank, with a line for each key.
    """
    mine = dict(leaves(plain(cfg))) | {"(the run's directory)": str(run_dir), "(its last checkpoint's step)": step}
    text = json.dumps(mine, sort_keys=True, default=str)
    if len(set(world.gather_values(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    first, *others = world.gather_values(mine)
    differences = [
        f"  {key}: rank 0 has {first.get(key)}, rank {rank} has {other.get(key)}"
        for rank, other in enumerate(others, start=1)
        for key in dict.fromkeys((*first, *other))
        if first.get(key) != other.get(key)
    ]
    lines = [
        "the ranks were started with different configurations:",
        *first_of(differences),
        "start all of them with one command, and give them one directory that all can read",
    ]
    raise ConfigError("\n".join(lines))


def logging_of_run() -> dict[str, Any] | None:
    """How the program that Hydra runs logs, as logging's dictConfig takes it; None where Hydra runs none."""
    if not HydraConfig.initialized():
        return None
    logging_config = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    assert isinstance(logging_config, dict)
    return {str(key): value for key, value in logging_config.items()}
