"""The bad samples of a run: each rank's own file, and one for all of them at an epoch's end."""

from __future__ import annotations

from pathlib import Path

from pipeline.build import Pipeline
from pipeline.config import OnError, TrainConfig
from pipeline.dist import World
from pipeline.quarantine import FILE, Quarantine


def open_quarantine(cfg: TrainConfig, run_dir: Path, world: World) -> Quarantine | None:
    """This rank's; None where the first bad sample ends the run."""
    if cfg.data.on_error is OnError["raise"]:
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    return Quarantine(run_dir / (FILE if world.is_first else f"quarantine-{world.rank}.csv"))


def agree_on_bad(pipeline: Pipeline, world: World) -> None:
    """Have every rank know all bad samples, the first one write them down, and all stop where they are too many.

    For all ranks, when an epoch has ended.

    Raises:
        TooManyBadError: more than `data.max_bad_fraction` of the split.
    """
    if pipeline.bad is None:
        return
    for causes in world.gather_values(dict(pipeline.bad.causes)):
        pipeline.bad.learn(causes, writes=world.is_first)
    world.wait()  # until the first one has written
    if not world.is_first:
        pipeline.bad.forget_file()
    pipeline.bad.check()
