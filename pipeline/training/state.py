"""What a checkpoint holds of a run: all that an exact continuation needs, taken, checked and put back."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.build import Pipeline
from pipeline.config import ConfigError, TrainConfig
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.environment import plain
from pipeline.training.learner import Learner
from pipeline.training.loop import Totals
from pipeline.training.metrics import RunRecord
from pipeline.training.resume import has_reported, refuse_changes

VERSION = 3


def take_state(
    cfg: TrainConfig,
    learner: Learner,
    pipeline: Pipeline,
    record: RunRecord,
    *,
    epoch: int,
    unfinished: Totals | None = None,
) -> dict[str, Any]:
    """All that going on from here, or using the model elsewhere, needs.

    `unfinished` are the totals of `epoch` as far as it was trained while `record` has no row of it; None: it has one.
    The tensors are the model's own: a state is for saving before the next step. Its `top1` is for the caller to set,
    where this very state was evaluated. All ranks take it together; the first one's is the one to save.
    """
    on_cuda = learner.compute.device.type == "cuda"
    own_rng = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(learner.compute.device) if on_cuda else None,
    }
    return {
        "version": VERSION,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "scaler": None if learner.scaler is None else learner.scaler.state_dict(),
        "average": None if learner.average is None else learner.average.state_dict(),
        "loader": pipeline.state_dict(),
        "epoch": epoch,
        "step": learner.num_steps,
        "unfinished": None if unfinished is None else asdict(unfinished),
        "top1": None,
        "record": record.state_dict(),
        "rng": learner.world.gather_values(own_rng),
        "num_threads": torch.get_num_threads(),
        "preprocessing": plain(cfg.transforms.evaluation()),
        "class_names": list(pipeline.source.class_names),
        "config": plain(cfg),
    }


def read_state(path: Path, cfg: TrainConfig, *, mmap: bool = False) -> dict[str, Any]:
    """The state saved at `path`, `checkpoints/last.pt` of a run's directory; its tensors are on the CPU.

    Raises:
        ConfigError: the file is no such state, or a run of `cfg` is not what it continues.
        OSError: it cannot be read.
    """
    try:
        state = load_checkpoint(path, mmap=mmap)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:  # what torch says to a user would be no cure
        raise ConfigError(f"{path} is damaged, or no checkpoint; begin another run under another run.name") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ConfigError(f"{path} is not one that this version continues; begin another run under another run.name")
    now = replace(cfg, transforms=cfg.transforms.resolved())  # as `train` saved it
    refuse_changes(state["config"], plain(now), run_dir=path.parents[1])
    _check_length(state, cfg, path.parents[1])
    return state


def nothing_left(state: dict[str, Any], cfg: TrainConfig, run_dir: Path) -> str | None:
    """The line that says so, if the run in `run_dir` did and reported all that `cfg` asks for."""
    status = _final_status(state, cfg)
    if status is None or not has_reported(run_dir, status=status, steps=state["step"], eval_top1=state["top1"]):
        return None
    return f"nothing is left to do in {run_dir}: {status} at step {state['step']}, top-1 {100 * state['top1']:.1f} %"


def first_step_after(state: dict[str, Any]) -> int:
    """The first step that the run going on from `state` records: the state's own where its epoch has no row yet."""
    step: int = state["step"]
    return step + 1 if state["unfinished"] is None else step


def restore(state: dict[str, Any], learner: Learner, pipeline: Pipeline) -> None:
    """Puts `state` back into a learner and a pipeline newly made from the same configuration, and into torch.

    Takes the weights and the optimizer's tensors out of `state`.

    Raises:
        ConfigError: the data is not what the run was trained on.
    """
    try:
        pipeline.load_state_dict(state["loader"])
    except ValueError as error:
        raise ConfigError(f"this data is not what the run was trained on: {error}") from error
    # Taken out: nobody else is to keep the memory of a second model for the rest of the run.
    learner.model.load_state_dict(state.pop("model"))
    learner.optimizer.load_state_dict(state.pop("optimizer"))
    learner.scheduler.load_state_dict(state["scheduler"])
    if learner.scaler is not None:
        learner.scaler.load_state_dict(state["scaler"])
    if learner.average is not None:
        learner.average.load_state_dict(state.pop("average"))
    learner.num_steps = state["step"]
    if learner.world.rank < len(state["rng"]):  # a rank that was not there begins with a generator of its own
        rng = state["rng"][learner.world.rank]
        torch.set_rng_state(rng["cpu"])
        # A run that moved between CPU and GPU has no generator to go on with, nor could it be exact.
        if rng["cuda"] is not None and learner.compute.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], learner.compute.device)


def _check_length(state: dict[str, Any], cfg: TrainConfig, run_dir: Path) -> None:
    max_steps, step = cfg.run.max_steps, state["step"]
    if max_steps is None or max_steps > step or _final_status(state, cfg) is not None:
        return
    if max_steps < step or state["unfinished"] is None:
        raise ConfigError(f"run.max_steps={max_steps} is not more than the {step} steps of {run_dir}; raise it")


def _final_status(state: dict[str, Any], cfg: TrainConfig) -> str | None:
    """How a run of `cfg` ended whose last state this is; None: it did not end."""
    if state["unfinished"] is None and state["epoch"] == cfg.schedule.epochs:
        return "completed"
    is_evaluated = state["top1"] is not None
    return "stopped" if state["step"] == cfg.run.max_steps and is_evaluated else None
