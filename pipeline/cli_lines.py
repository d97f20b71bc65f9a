"""What the command line says of a run that ended early, or that it will not begin. Imports no torch."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.config import ConfigError, Debug
from pipeline.config.checks import nearest
from pipeline.config.leaves import leaves
from pipeline.launched import is_launched
from pipeline.training.resume import LAST, command_to_continue
from pipeline.training.stopping import Stopped

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that takes no more."""


def conf_dir() -> Path:
    """Where the YAML groups are: in the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def left_behind(stopped: Stopped, composed: DictConfig, run_dir: Path) -> str:
    """Of a run that a signal stopped: what it saved, and the command that continues it."""
    if stopped.step is None:
        return f"interrupted; what there is of the run is in {run_dir}"
    if is_launched():
        return f"saved {LAST} at step {stopped.step}; start the ranks again by the same command to continue"
    return f"saved {LAST} at step {stopped.step}; continue with: {_command_to_continue(composed, run_dir)}"


def left_by_kill(composed: DictConfig, run_dir: Path) -> str:
    """The same of a run that had no time to save."""
    if not (run_dir / LAST).exists() or is_launched():
        return f"what there is of the run is in {run_dir}"
    return f"its last checkpoint is from before; continue with: {_command_to_continue(composed, run_dir)}"


def _command_to_continue(composed: DictConfig, run_dir: Path) -> str:
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    # A sweep's job is continued on its own: by its directory, which its name does not lead to.
    of_job = [word for word in hydra_config.overrides.task if not word.startswith("run.name=")]
    arguments = [sys.argv[0], *of_job] if in_sweep else sys.argv
    by_name = composed.run.name is not None and not in_sweep
    return command_to_continue(arguments, run_dir, by_name=by_name)


def no_room(error: OSError) -> str:
    """Of a disk that took no more, an error of `NO_ROOM`."""
    where = "" if error.filename is None else f" {error.filename}"
    return f"the run could not write{where} ({error.strerror}); make room, or give another directory: hydra.run.dir=DIR"


def wrong_option(error: Exception) -> ConfigError | None:
    """What Hydra says of GROUP=true or GROUP=3 with the group and its options; None for other errors."""
    if not str(error).startswith("Config group override must be"):
        return None
    for word in sys.argv[1:]:
        group, _, given = word.lstrip("+").partition("=")
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        if options and given not in options:
            return ConfigError(f"{group} has no option {given!r}; {nearest(given, options)}")
    return None


def beaten_debug_keys(debug: Debug, overrides: Sequence[str]) -> str:
    """The overrides of keys that the file of `debug` sets too, one after another; empty where there are none."""
    own = OmegaConf.to_container(OmegaConf.load(conf_dir() / "debug" / f"{debug}.yaml"))
    assert isinstance(own, dict)
    keys = {key for key, _ in leaves({str(name): value for name, value in own.items()})} - {"debug"}
    return ", ".join(word for word in overrides if word.lstrip("+").partition("=")[0] in keys)
