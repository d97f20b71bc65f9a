"""Who is told how a run goes, with real runs on small real images: this package's loggers and a user's own."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TIMINGS, assert_same_run, command, rows, run, summary

from pipeline.config import (
    ConfigError,
    FolderData,
    Loader,
    Logger,
    Model,
    Optim,
    Run,
    Schedule,
    TrainConfig,
    Transforms,
)
from pipeline.training.loggers import Loggers, choose_loggers
from pipeline.training.run import train

ROOT = Path(__file__).resolve().parents[1]

OWN = """
import json, os
from dataclasses import asdict


class Ledger:
    '''Writes down what it hears, a line each, as a logger that can be continued.'''

    def start(self, run):
        self.path = run.run_dir / "ledger.jsonl"
        lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        kept = [line for line in lines if line[1] < run.first_step]
        self.path.write_text("".join(json.dumps(line) + "\\n" for line in kept))
        self.write("start", run.first_step - 1, {"rows": len(run.rows), "rank": os.environ.get("RANK")})

    def step(self, step, totals):
        self.write("step", step, {"loss": totals.loss, "samples": totals.num_samples})

    def epoch(self, row):
        self.write("epoch", row.step, asdict(row))

    def close(self, summary):
        self.write("close", summary["steps"], {"status": summary["status"], "error": summary["error"]})

    def write(self, what, step, values):
        with self.path.open("a") as file:
            file.write(json.dumps([what, step, values]) + "\\n")


class FailsAtStep2(Ledger):
    def step(self, step, totals):
        super().step(step, totals)
        if step == 2:
            raise ConnectionError("the server is gone")


class FailsToClose(Ledger):
    def close(self, summary):
        raise ConnectionError("the server is gone")


class FailsToStart(Ledger):
    def start(self, run):
        super().start(run)
        raise PermissionError("no such key")


class TakesThePlaceOfTheCsv(Ledger):
    def start(self, run):
        super().start(run)
        (run.run_dir / "metrics.csv").mkdir()


class HasNoClose:
    def start(self, run): ...
    def step(self, step, totals): ...
    def epoch(self, row): ...


def raises():
    raise KeyError("TOKEN")
"""


@pytest.fixture(autouse=True)
def _as_before(torch_as_before: None) -> None:
    """Training sets torch's threads and seed."""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from, with a user's module of loggers in it."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_loggers.py").write_text(OWN)
    (folder / "needs_more.py").write_text("import a_package_nobody_has\n")
    (folder / "is_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("own_loggers", "needs_more", "is_broken"):
        sys.modules.pop(name, None)


def config(images: Path, *, resume: Path | None = None, max_steps: int | None = None, **logger: Any) -> TrainConfig:
    """Two epochs of six steps."""
    return TrainConfig(
        data=FolderData(root=str(images)),
        transforms=Transforms.named("standard", size=16, scale=[0.5, 1.0]),
        loader=Loader(batch_size=4, num_workers=0),
        model=Model(width=8),
        optim=Optim(lr=0.4),
        schedule=Schedule(epochs=2, warmup_epochs=0.5),
        logger=Logger(**({"plot": False, "every_steps": 1} | logger)),
        run=Run(device="cpu", num_threads=1, max_steps=max_steps),
        resume=None if resume is None else str(resume),
    )


def _may_import_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes that the test starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


def ledger(run_dir: Path) -> list[Any]:
    """What a `Ledger` heard, times aside."""
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    return [
        (what, step, {key: value for key, value in values.items() if key not in TIMINGS})
        for what, step, values in lines
    ]


# --- a user's own loggers --------------------------------------------------------------------------------------------


def test_a_logger_of_ones_own_hears_the_start_the_steps_the_epochs_and_the_summary(
    trial_folder: Path, own: Path, tmp_path: Path
) -> None:
    train(config(trial_folder, extra=["own_loggers:Ledger"], every_steps=3), tmp_path)
    heard = ledger(tmp_path)
    assert [(what, step) for what, step, _ in heard] == [
        ("start", 0), ("step", 3), ("step", 6), ("epoch", 6), ("step", 9), ("step", 12), ("epoch", 12), ("close", 12),
    ]  # fmt: skip
    assert [values["samples"] for what, _, values in heard if what == "step"] == [12, 24, 12, 24]
    in_csv = rows(tmp_path)
    in_ledger = [values for what, _, values in heard if what == "epoch"]
    assert [float(row["train_loss"]) for row in in_csv] == [values["train_loss"] for values in in_ledger]
    assert heard[-1][2] == {"status": "completed", "error": None}
    assert summary(tmp_path)["dropped_loggers"] == []


@pytest.mark.parametrize("max_steps", [3, 6, 8], ids=["in an epoch", "at its end", "in the second"])
def test_a_logger_that_drops_what_comes_again_ends_as_if_nothing_had_happened(
    max_steps: int, trial_folder: Path, own: Path, tmp_path: Path
) -> None:
    extra = ["own_loggers:Ledger"]
    train(config(trial_folder, extra=extra), tmp_path / "whole")
    train(config(trial_folder, extra=extra, max_steps=max_steps), tmp_path / "cut")
    train(config(trial_folder, extra=extra, resume=tmp_path / "cut"), tmp_path / "cut")
    told = {
        name: [line for line in ledger(tmp_path / name) if line[0] in ("step", "epoch")] for name in ("whole", "cut")
    }
    assert told["cut"] == told["whole"]


def test_a_logger_that_fails_is_reported_once_and_dropped_and_the_run_is_the_same(
    trial_folder: Path, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(trial_folder, extra=["own_loggers:FailsAtStep2", "own_loggers:Ledger"]), tmp_path / "with")
    train(config(trial_folder), tmp_path / "without")
    assert_same_run(tmp_path / "with", tmp_path / "without")
    line = "own_loggers:FailsAtStep2 failed at step 2: ConnectionError: the server is gone"
    assert summary(tmp_path / "with")["dropped_loggers"] == [line]
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line in record.getMessage()
    assert record.exc_info is not None
    heard = [step for what, step, _ in ledger(tmp_path / "with") if what == "step"]
    assert sorted(heard) == sorted([1, 2, *range(1, 13)])  # of both: one until it failed, the other to the end


def test_a_logger_that_fails_to_close_does_not_fail_the_run(
    trial_folder: Path, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(trial_folder, extra=["own_loggers:FailsToClose"]), tmp_path)
    assert summary(tmp_path)["status"] == "completed"
    assert "FailsToClose failed when it was closed: ConnectionError" in caplog.text


def test_a_logger_that_cannot_start_ends_the_run_before_the_first_step_and_the_others_hear_of_it(
    trial_folder: Path, own: Path, tmp_path: Path
) -> None:
    extra = ["own_loggers:FailsToStart"]
    with pytest.raises(PermissionError, match="no such key") as caught:
        train(config(trial_folder, extra=extra), tmp_path)
    assert "while the logger own_loggers:FailsToStart was started" in caught.value.__notes__
    assert [what for what, _, _ in ledger(tmp_path)] == ["start", "close"]
    assert (summary(tmp_path)["status"], summary(tmp_path)["steps"]) == ("failed", 0)
    assert not (tmp_path / "checkpoints").exists()


def test_a_metrics_csv_that_cannot_be_written_ends_the_run(trial_folder: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"metrics\.csv"):
        train(config(trial_folder, extra=["own_loggers:TakesThePlaceOfTheCsv"]), tmp_path)
    assert summary(tmp_path)["status"] == "failed"
    assert ledger(tmp_path)[-1][0] == "close"


def test_a_run_that_begins_anew_keeps_no_row_of_one_that_saved_nothing(
    trial_folder: Path, own: Path, tmp_path: Path
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch\n7\n")
    with pytest.raises(PermissionError):
        train(config(trial_folder, extra=["own_loggers:FailsToStart"]), tmp_path)
    assert rows(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:Own", r"cannot be imported: No module named .*; add its directory to PYTHONPATH"),
        ("needs_more:Own", "cannot be imported: No module named 'a_package_nobody_has'; install"),
        ("is_broken:Own", "cannot be imported: ZeroDivisionError"),
        ("own_loggers:Legder", "own_loggers has no Legder; define it there, or correct the name"),
        ("own_loggers:raises", "gave no logger when it was called: KeyError: 'TOKEN'"),
        ("own_loggers:HasNoClose", "gave HasNoClose, which has no close; a logger has start, step, epoch, close"),
    ],
    ids=["no module", "a module's need", "a broken module", "no such name", "a factory that raises", "no logger"],
)
def test_a_logger_that_cannot_be_had_is_one_line(name: str, message: str, own: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^logger\.extra={re.escape(name)}:? {message}") as caught:
        choose_loggers(Logger(extra=[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extra", [["own"], ["own:"], [":Own"], ["own.py:Own()"], ["a b:Own"]], ids=lambda extra: extra[0]
)
def test_a_name_that_is_no_module_and_factory_is_refused_where_it_is_given(extra: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^logger\.extra must be package\.module:factory, got "):
        Logger(extra=extra)


def test_a_logger_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^logger\.extra names one logger twice"):
        Logger(extra=["own:Own", "own:Own"])


def test_only_the_first_rank_tells_a_logger(
    trial_folder: Path, own: Path, faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _may_import_from(own, monkeypatch)
    ranks = ["dist.nproc=2", "loader.batch_size=2", "run.max_steps=2", "run.name=two", "logger.every_steps=1"]
    part = command(trial_folder, *ranks, "logger.extra=[own_loggers:Ledger]")
    finished = run(part, cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    heard = ledger(tmp_path / "outputs/train/two")
    assert [(what, step) for what, step, _ in heard] == [
        ("start", 0), ("step", 1), ("step", 2), ("epoch", 2), ("close", 2),
    ]  # fmt: skip
    assert heard[0][2]["rank"] == "0"
    assert heard[2][2]["samples"] == 8  # of both ranks together


def test_without_a_logger_nothing_is_told() -> None:
    loggers = Loggers(choose_loggers(Logger(csv=False)))
    loggers.close({})
    assert loggers.dropped == []


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_that_is_not_installed_is_one_line_before_anything_is_trained(
    trial_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ConfigError, match=r"^logger\.tensorboard=true needs .*; pip install 'headrace\[tensorboard\]'$"
    ):
        train(config(trial_folder, tensorboard=True), tmp_path)
    assert list(tmp_path.iterdir()) == []


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: the steps and values of each tag, times aside."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if not tag.endswith(("_per_sec", "_wait_pct", "_s"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in names}


def test_tensorboard_has_the_numbers_of_the_csv_and_those_of_the_steps(trial_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(config(trial_folder, tensorboard=True, every_steps=4), tmp_path)
    shown = scalars(tmp_path)
    for name in ("train_loss", "train_top1", "eval_loss", "eval_top1", "lr"):
        expected = [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows(tmp_path)]
        assert shown[f"epoch/{name}"] == expected, name
    assert [step for step, _ in shown["steps/loss"]] == [4, 8, 12]
    assert [step for step, _ in shown["steps/top1"]] == [4, 8, 12]
    assert "epoch/step" not in shown


@pytest.mark.parametrize("max_steps", [3, 6, 8], ids=["in an epoch", "at its end", "in the second"])
def test_tensorboard_shows_a_run_that_was_cut_short_and_continued_as_one(
    max_steps: int, trial_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    train(config(trial_folder, tensorboard=True), tmp_path / "whole")
    train(config(trial_folder, tensorboard=True, max_steps=max_steps), tmp_path / "cut")
    train(config(trial_folder, tensorboard=True, resume=tmp_path / "cut"), tmp_path / "cut")
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")


def test_tensorboard_shows_a_run_that_was_killed_twice_and_continued_as_one(
    trial_folder: Path, faults: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    options = ["data.val_fraction=0.1", "loader.drop_last=false", "logger=tensorboard", "logger.every_steps=1"]
    whole = run(command(trial_folder, *options, "run.name=whole"), cwd=tmp_path, faults=faults)
    assert whole.returncode == 0, whole.stderr
    part = command(trial_folder, *options, "run.name=cut", "run.save_every_steps=2", "resume=auto")
    for number in (1, 2):  # nothing was saved of steps 1 and 2; step 2 was, and 3 and 4 were only told
        killed = run(part, cwd=tmp_path, faults=faults, fault=f"os.rename|checkpoints/last.pt|{number}|SIGKILL")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    final = run(part, cwd=tmp_path, faults=faults)
    assert final.returncode == 0, final.stderr
    assert scalars(tmp_path / "outputs/train/cut") == scalars(tmp_path / "outputs/train/whole")


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_adapter_in_the_documentation_logs_offline(
    trial_folder: Path, own: Path, faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [text] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/loggers.md").read_text(), re.DOTALL)
    compile(text, "wandb_logger.py", "exec")
    pytest.importorskip("wandb")
    (own / "wandb_logger.py").write_text(text)
    _may_import_from(own, monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    part = command(trial_folder, "logger.extra=[wandb_logger:WandbLogger]", "run.max_steps=2", "run.name=one")
    # In a process of its own: wandb keeps its service, and the sockets to it, until the interpreter ends.
    finished = run(part, cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    run_dir = tmp_path / "outputs/train/one"
    assert summary(run_dir)["dropped_loggers"] == []
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))
