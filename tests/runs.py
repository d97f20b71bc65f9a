"""Real training runs in processes of their own: how they are started, struck down, and compared with each other."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.config import (
    FolderData,
    Loader,
    Logger,
    Model,
    Optim,
    Prefetch,
    Run,
    Schedule,
    TrainConfig,
    Transforms,
)
from pipeline.training.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TIMINGS = {"train_samples_per_sec", "data_wait_pct", "train_s", "eval_s"}

FAULT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
if "FAULT" in os.environ:
    event, what, left, name, *where = os.environ["FAULT"].split("|")
    left = int(left)
    rank, whom = [*where, "", ""][:2]

    def strike(happens, arguments):
        global left
        if os.environ.get("RANK", "") != rank or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            return
        if happens == event and any(str(argument).endswith(what) for argument in arguments):
            left -= 1
            if left == 0:
                os.kill(os.getppid() if whom == "parent" else os.getpid(), getattr(signal, name))

    sys.addaudithook(strike)
"""
"""Runs before the program, as sitecustomize: a signal as it is about to do a thing (an audit event) for the n-th time.

`FAULT` is `event|end of an argument|n|signal`, for a rank `...|its number`, and with `|parent` the signal is sent to
the process that started it.
"""


def command(images: Path, *overrides: str) -> list[str]:
    """train.py on `images` for two short epochs."""
    return [sys.executable, str(ROOT / "train.py"), *overrides_for(images), *overrides]


def overrides_for(images: Path) -> list[str]:
    """The overrides of `command`."""
    fixed = [f"data.root={images}", "data=folder", "data.val_fraction=0.3", "transforms.size=16", "loader.batch_size=4"]
    fixed += ["loader.drop_last=true", "model.width=8", "schedule.epochs=2", "run.num_threads=1", "optim.lr=0.4"]
    return [*fixed, "schedule.warmup_epochs=0.5", "logger.plot=false"]


def short_run(
    images: Path, *, init_from: Path | None = None, resume: Path | None = None, size: int = 16, **groups: Any
) -> TrainConfig:
    """The configuration of `command`, for this process; `groups` are keys by group, and `model` a whole one."""

    def keys(group: str, **usual: Any) -> dict[str, Any]:
        return usual | groups.get(group, {})

    return TrainConfig(
        data=FolderData(root=str(images), val_fraction=0.3),
        transforms=Transforms.named("standard", size=size, scale=[0.5, 1.0]),
        loader=Loader(**keys("loader", batch_size=4, num_workers=0, drop_last=True)),
        prefetch=Prefetch(**keys("prefetch", device="none")),
        model=groups.get("model", Model(width=8)),
        optim=Optim(**keys("optim", lr=0.4)),
        schedule=Schedule(**keys("schedule", epochs=2, warmup_epochs=0.5)),
        logger=Logger(**keys("logger", plot=False)),
        run=Run(**keys("run", device="cpu", num_threads=1)),
        init_from=None if init_from is None else str(init_from),
        resume=None if resume is None else str(resume),
    )


def run(
    arguments: list[str], *, cwd: Path, faults: Path, fault: str = "", limit_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Runs a command line to its end, with `fault` as `FAULT` says."""
    paths = [str(faults), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} | ({"FAULT": fault} if fault else {})
    return subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )


def rows(run_dir: Path) -> list[dict[str, str]]:
    """`metrics.csv` without what a clock measured."""
    with (run_dir / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMINGS} for row in csv.DictReader(file)]


def summary(run_dir: Path) -> dict[str, Any]:
    """`summary.json`."""
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def assert_same_run(run_dir: Path, whole: Path) -> None:
    """Same weights to the bit, same optimizer, generators, place in the data and metrics; times aside."""
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(folder / "checkpoints" / name) for folder in (run_dir, whole))
        for key in ("model", "optimizer", "scheduler", "scaler", "average", "loader", "rng", "epoch", "step", "top1"):
            for (path, value), (_, other) in zip(_flat(ours[key]), _flat(theirs[key]), strict=True):
                same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
                assert same, f"{name} {key}{path}"
    assert rows(run_dir) == rows(whole)
    for key in ("status", "steps", "epochs", "eval_top1", "best_top1", "eval_loss"):
        assert summary(run_dir)[key] == summary(whole)[key], key


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{name}.{key}")
    else:
        yield name, value
