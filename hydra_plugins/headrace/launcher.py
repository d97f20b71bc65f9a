"""`hydra/launcher: headrace`, the default of conf/bench.yaml: a sweep's trials in rounds of fresh processes."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RoundsLauncher(Launcher):
    """Gives all jobs of a sweep to `pipeline.bench.sweep` at once, which measures them in alternation.

    The task function is not called: a trial runs in a process of its own, from the job's checked configuration.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        del task_function
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Measure the trials and return each one's objective, NaN for one that failed."""
        from pipeline.bench.sweep import launch  # not above: Hydra imports every plugin at every start

        returns: list[Any] = launch(self._context, self._config, job_overrides, initial_job_idx)
        return returns


ConfigStore.instance().store(
    group="hydra/launcher",
    name="headrace",
    node={"_target_": "hydra_plugins.headrace.launcher.RoundsLauncher"},
    provider="headrace",
)
