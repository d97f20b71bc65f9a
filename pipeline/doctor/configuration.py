"""The configuration that `train.py` would run with these overrides. Needs no torch and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pipeline._compat import HYDRA_DEFAULTS
from pipeline.cli_lines import conf_dir
from pipeline.config import ConfigError, TrainConfig
from pipeline.config.compose import to_config
from pipeline.config.messages import one_line
from pipeline.doctor.finding import Finding, ok
from pipeline.training.resume import checkpoint_to_continue
from pipeline.training.sizes import training_sizes


def compose_run(overrides: Sequence[str], *, cwd: Path, config_dir: str | None = None) -> tuple[TrainConfig, Finding]:
    """What `python train.py OVERRIDES` would run from `cwd`, and that in words.

    `config_dir` is a directory of further YAML files, as `--config-dir` names it. Raises ConfigError, in one line, for
    whatever that command would refuse before it starts.
    """
    found_there = [] if config_dir is None else [f"hydra.searchpath=['file://{Path(cwd, config_dir).resolve()}']"]
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), job_name="train", **HYDRA_DEFAULTS):
            composed = compose("train", [*overrides, *found_there], return_hydra_config=True)
            run_dir = cwd / composed.hydra.run.dir
            cfg = to_config(composed, cwd=str(cwd))
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as raised:
        raise ConfigError(one_line(raised)) from raised
    last = checkpoint_to_continue(cfg, run_dir)
    sizes = ", ".join(map(str, training_sizes(cfg)))
    what = f"{cfg.schedule.epochs} epochs of {cfg.model.name} at {sizes} pixels"
    goes_on = "" if last is None else f"; continues {run_dir}"
    return cfg, ok("configuration", f"{what}, batches of {cfg.loader.batch_size}{goes_on}")
