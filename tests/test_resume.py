"""Interrupted runs, continued: killed, stopped and cut short at any moment, they end as if nothing had happened."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from runs import assert_same_run, command, rows, run, short_run, summary

from pipeline.config import (
    ConfigError,
    FolderData,
    Optim,
    SyntheticData,
    TrainConfig,
    transforms,
)
from pipeline.native import kernel
from pipeline.training import fit as fit_module
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.environment import plain
from pipeline.training.evaluate import evaluate
from pipeline.training.metrics import RunRecord
from pipeline.training.resume import command_to_continue, keep_earlier, refuse_changes
from pipeline.training.run import train
from pipeline.training.stopping import RunError, Stopped, StopSignals

ROOT = Path(__file__).resolve().parents[1]
STEPS_PER_EPOCH = 4


def config(
    images: Path, *, resume: Path | None = None, num_workers: int = 0, prefetch: str = "none", **run: Any
) -> TrainConfig:
    groups = {"loader": {"num_workers": num_workers}, "prefetch": {"device": prefetch}, "logger": {"every_steps": 1}}
    return short_run(images, resume=resume, run=run, **groups)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(config(images), run_dir)
    return run_dir


@pytest.fixture(autouse=True)
def _keep_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Onlooker(io.StringIO):
    """A person who sends a signal on reading something on the terminal."""

    def __init__(self, phrase: str, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self._phrase = phrase
        self._number = number

    def write(self, text: str) -> int:
        if self._phrase in text:
            signal.raise_signal(self._number)
        return super().write(text)


# --- real processes --------------------------------------------------------------------------------------------------


def test_a_run_killed_four_times_ends_as_one_that_was_not(
    images: Path, faults: Path, whole: Path, tmp_path: Path
) -> None:
    # Each part dies as its n-th checkpoint, complete and beside the old one, is about to take its name.
    parts = [
        (1, 0, "the first batch: nothing was saved, so the next part begins"),
        (3, 2, "the middle of the first epoch, after step 2"),
        (2, 3, "the last batch of the same epoch: step 3 is what was saved"),
        (2, 1, "the epoch is trained and evaluated, and has no row yet"),
    ]
    for number, num_workers, when in parts:
        part = command(images, "run.name=cut", "run.save_every_steps=1", "resume=auto")
        fault = f"os.rename|checkpoints/last.pt|{number}|SIGKILL"
        killed = run([*part, f"loader.num_workers={num_workers}"], cwd=tmp_path, faults=faults, fault=fault)
        assert killed.returncode == -signal.SIGKILL, f"{when}: {killed.stderr}"
    run_dir = tmp_path / "outputs/train/cut"
    last = load_checkpoint(run_dir / "checkpoints/last.pt")
    assert (last["step"], last["epoch"], last["unfinished"]["num_batches"]) == (4, 1, 4)
    assert len(list((run_dir / "checkpoints").glob(".*.tmp"))) == 1

    part = command(images, "run.name=cut", "resume=auto", "loader.num_workers=2", "logger.plot=true")
    final = run(part, cwd=tmp_path, faults=faults)
    assert final.returncode == 0, final.stderr
    assert_same_run(run_dir, whole)
    assert summary(run_dir)["resumed"] == 3
    assert (run_dir / "curves.png").exists()
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.pt", "last.pt"]
    kept = sorted(path.name for path in run_dir.glob(".hydra*"))
    assert kept == [".hydra", ".hydra.1", ".hydra.2", ".hydra.3", ".hydra.4"]
    assert "run.save_every_steps=1" in (run_dir / ".hydra.1/overrides.yaml").read_text()
    assert "run.save_every_steps=1" not in (run_dir / ".hydra/overrides.yaml").read_text()
    logged = [(run_dir / name).read_text().count("epoch 1/2") for name in ("train.4.log", "train.log")]
    assert logged == [1, 1]  # evaluated in the part that was killed, and again


@pytest.mark.parametrize(
    ("name", "code", "by"),
    [("SIGTERM", 143, ["run.name=cut"]), ("SIGINT", 130, [])],
    ids=["SIGTERM, by name", "Ctrl-C, by directory"],
)
def test_a_signal_saves_a_checkpoint_and_prints_the_command_that_continues_it(
    name: str, code: int, by: list[str], images: Path, faults: Path, whole: Path, tmp_path: Path
) -> None:
    started = command(images, *by, "loader.num_workers=1")
    fault = f"os.rename|checkpoints/last.pt|2|{name}"
    stopped = run([*started, "run.save_every_steps=3"], cwd=tmp_path, faults=faults, fault=fault)
    assert stopped.returncode == code, stopped.stderr
    assert stopped.stdout == ""
    line = stopped.stderr.splitlines()[-1]
    run_dir = next(path.parent for path in (tmp_path / "outputs/train").rglob("summary.json"))
    assert line.startswith(f"{name}: saved checkpoints/last.pt at step 4; continue with: python {ROOT}/train.py ")
    assert line.endswith("resume=auto" if by else f"resume={run_dir.relative_to(tmp_path)}")
    assert (summary(run_dir)["status"], summary(run_dir)["steps"]) == ("stopped", 4)
    assert summary(run_dir)["stalls"]["overhead_parts_s"]["saving"] > 0

    again = shlex.split(line.partition("continue with: python ")[2])
    finished = run([sys.executable, *again], cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    assert f"continuing {run_dir} after step 4, in epoch 1" in finished.stderr
    assert [path.parent for path in (tmp_path / "outputs/train").rglob("summary.json")] == [run_dir]
    assert_same_run(run_dir, whole)


def test_ctrl_c_ends_a_whole_sweep_and_says_how_to_continue_its_job(images: Path, faults: Path, tmp_path: Path) -> None:
    sweep = [*command(images, "loader.num_workers=0,1", "run.name=s", "run.max_steps=6"), "-m"]
    stopped = run(sweep, cwd=tmp_path, faults=faults, fault="os.rename|checkpoints/last.pt|1|SIGINT")
    assert stopped.returncode == 130, stopped.stderr
    sweep_dir = tmp_path / "outputs/train/multirun/s"
    assert sorted(path.name for path in sweep_dir.iterdir() if path.is_dir()) == ["0"]
    line = stopped.stderr.splitlines()[-1]
    assert "loader.num_workers=0 " in line
    assert line.endswith("resume=outputs/train/multirun/s/0")
    again = shlex.split(line.partition("continue with: python ")[2])
    finished = run([sys.executable, *again], cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    assert summary(sweep_dir / "0")["steps"] == 6
    refused = run(sweep, cwd=tmp_path, faults=faults)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "holds a sweep already" in refused.stderr


def test_a_signal_before_the_first_step_ends_the_run_at_once(images: Path, faults: Path, tmp_path: Path) -> None:
    fault = f"os.scandir|{images}|1|SIGTERM"
    stopped = run(command(images, "run.name=early"), cwd=tmp_path, faults=faults, fault=fault)
    run_dir = tmp_path / "outputs/train/early"
    assert stopped.returncode == 143
    assert stopped.stderr == f"SIGTERM: interrupted; what there is of the run is in {run_dir}\n"
    assert summary(run_dir)["status"] == "stopped"
    assert not (run_dir / "checkpoints").exists()


# --- every step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 2 * STEPS_PER_EPOCH))
def test_a_run_stopped_by_a_signal_at_any_step_goes_on_to_the_same_end(
    step: int, images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch, within = divmod(step - 1, STEPS_PER_EPOCH)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Onlooker(f"epoch {epoch + 1}/2  step {within + 1}/4"))
        with pytest.raises(Stopped) as stopped:
            train(config(images, num_workers=2, prefetch="cpu"), tmp_path)
    assert (stopped.value.step, stopped.value.exit_code) == (step, 143)
    assert (summary(tmp_path)["status"], summary(tmp_path)["steps"]) == ("stopped", step)
    train(config(images, resume=tmp_path), tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("eval_every", [1, 2])
@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1])
def test_a_run_cut_short_by_max_steps_goes_on_with_more_of_them(
    step: int, eval_every: int, images: Path, tmp_path: Path
) -> None:
    train(config(images, eval_every=eval_every), tmp_path / "whole")
    train(config(images, eval_every=eval_every, max_steps=step), tmp_path / "cut")
    assert rows(tmp_path / "cut")[-1]["step"] == str(step)
    assert rows(tmp_path / "cut")[-1]["eval_top1"] != ""
    train(config(images, eval_every=eval_every, resume=tmp_path / "cut"), tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    last = [load_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"] for name in ("cut", "whole")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])


def test_a_signal_in_evaluation_is_evaluated_again_and_no_batch_is_trained_twice(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "evaluate", interrupted)
        with pytest.raises(Stopped) as stopped:
            train(config(images), tmp_path)
    assert stopped.value.step == STEPS_PER_EPOCH
    assert summary(tmp_path)["epochs"] == 0
    train(config(images, resume=tmp_path), tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.fixture
def delivered() -> Iterator[list[int]]:
    """The signals that reach the handler outside of a run."""
    numbers: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        numbers.append(number)

    before = signal.signal(signal.SIGTERM, note)
    yield numbers
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "ends_at"), [(2, STEPS_PER_EPOCH), (4, None)], ids=["first epoch", "last epoch"])
def test_a_signal_while_an_epoch_is_saved_stops_after_it_or_finds_the_run_complete(
    number: int,
    ends_at: int | None,
    images: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delivered: list[int],
) -> None:
    saved = []

    def interrupted(path: Path, state: dict[str, Any]) -> None:
        saved.append(path)
        if len([path for path in saved if path.name == "last.pt"]) == number // 2 and path.name == "last.pt":
            signal.raise_signal(signal.SIGTERM)
        save_checkpoint(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "save_checkpoint", interrupted)
        if ends_at is None:
            train(config(images), tmp_path)
        else:
            with pytest.raises(Stopped) as stopped:
                train(config(images), tmp_path)
            assert stopped.value.step == ends_at
    assert delivered == ([] if ends_at else [signal.SIGTERM])
    if ends_at:
        train(config(images, resume=tmp_path), tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_run_that_failed_goes_on_from_what_it_saved(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(path: Path, state: dict[str, Any]) -> None:
        if state["step"] == 6:
            raise OSError(28, "No space left on device")
        save_checkpoint(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "save_checkpoint", fill_the_disk)
        with pytest.raises(RunError, match=r"last\.pt could not be saved \(No space left on device\)"):
            train(config(images, save_every_steps=1), tmp_path)
    assert summary(tmp_path)["status"] == "failed"
    assert load_checkpoint(tmp_path / "checkpoints/last.pt")["step"] == 5
    train(config(images, resume=tmp_path), tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before_it(
    images: Path, faults: Path, tmp_path: Path
) -> None:
    part = command(images, "run.name=full", "resume=auto", "loader.num_workers=0")
    assert run([*part, "run.max_steps=4"], cwd=tmp_path, faults=faults).returncode == 0
    last = tmp_path / "outputs/train/full/checkpoints/last.pt"
    limited = ["prlimit", f"--fsize={last.stat().st_size // 2}", *part]
    failed = run(limited, cwd=tmp_path, faults=faults)
    assert failed.returncode == 1
    line = failed.stderr.splitlines()[-1]
    assert line.startswith(f"{last} could not be saved (File too large)") or "best.pt could not be saved" in line
    assert "Traceback" not in failed.stderr
    assert load_checkpoint(last)["step"] == 4
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]
    assert summary(last.parents[1])["status"] == "failed"
    assert run(part, cwd=tmp_path, faults=faults).returncode == 0


def test_a_disk_that_is_full_at_the_first_checkpoint_promises_no_continuation(
    images: Path, faults: Path, tmp_path: Path
) -> None:
    part = ["prlimit", "--fsize=20000", *command(images, "run.name=full", "loader.num_workers=0")]
    failed = run(part, cwd=tmp_path, faults=faults)
    assert failed.returncode == 1
    best = tmp_path / "outputs/train/full/checkpoints/best.pt"
    said = "there is no checkpoint to continue from yet: make room, and begin the run again"
    assert failed.stderr.splitlines()[-1] == f"{best} could not be saved (File too large); {said}"


def test_ctrl_c_while_a_checkpoint_is_written_is_no_error_of_torchs(tmp_path: Path) -> None:
    class Interrupted(io.BytesIO):
        def write(self, _: Any) -> int:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.checkpoint.replacing", lambda _: Interrupted())
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "last.pt", {"weights": torch.zeros(100)})


@pytest.mark.parametrize("bytes_left", [50, 2500], ids=["before the task", "in the task"])
def test_a_disk_that_is_full_when_a_run_begins_is_one_line(
    bytes_left: int, images: Path, faults: Path, tmp_path: Path
) -> None:
    part = ["prlimit", f"--fsize={bytes_left}", *command(images, "run.name=full", "loader.num_workers=0")]
    failed = run(part, cwd=tmp_path, faults=faults)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "File too large); make room, or give another directory: hydra.run.dir=DIR" in failed.stderr


def test_a_run_killed_between_its_two_checkpoints_saves_the_best_one_again(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best_epoch = load_checkpoint(whole / "checkpoints/best.pt")["epoch"]
    saved: list[Path] = []

    def killed(path: Path, state: dict[str, Any]) -> None:
        if state["unfinished"] is None and state["epoch"] == best_epoch:
            saved.append(path)
        if len(saved) == 2:
            raise SystemExit
        save_checkpoint(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "save_checkpoint", killed)
        with pytest.raises(SystemExit):
            train(config(images, save_every_steps=1), tmp_path)
    train(config(images, resume=tmp_path), tmp_path)
    assert_same_run(tmp_path, whole)


# --- what is refused, and what has nothing left to do ----------------------------------------------------------------


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def half(images: Path, tmp_path: Path) -> Path:
    """A run of two epochs, cut short after five of its eight steps."""
    train(config(images, max_steps=5), tmp_path / "half")
    return tmp_path / "half"


def test_a_run_that_is_complete_says_so_changes_nothing_and_gives_its_top1(
    images: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    before = files(run_dir)
    top1 = train(config(images, resume=run_dir, max_steps=3), run_dir)
    assert top1 == summary(whole)["eval_top1"]
    assert capsys.readouterr().err == (
        f"nothing is left to do in {run_dir}: completed at step 8, top-1 {100 * top1:.1f} %\n"
    )
    assert files(run_dir) == before


def test_a_run_that_reached_max_steps_has_nothing_left_to_do_until_there_are_more(images: Path, half: Path) -> None:
    before = files(half)
    top1 = train(config(images, resume=half, max_steps=5), half)
    assert top1 == summary(half)["eval_top1"]
    assert files(half) == before
    with pytest.raises(ConfigError, match=r"run\.max_steps=4 is not more than the 5 steps of .*half; raise it"):
        train(config(images, resume=half, max_steps=4), half)
    train(config(images, resume=half, max_steps=6), half)
    assert summary(half)["steps"] == 6


@pytest.mark.parametrize("lost", ["nothing else", "summary.json"])
def test_a_run_killed_before_its_summary_writes_it_when_continued(
    lost: str, images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Onlooker("epoch 2/2  step 4/4"))
        with pytest.raises(Stopped):
            train(config(images), tmp_path)
    # What a kill right after the last checkpoint leaves: the summary, if any, of the part before.
    earlier = (tmp_path / "summary.json").read_bytes()
    train(config(images, resume=tmp_path), tmp_path)
    (tmp_path / "summary.json").write_bytes(earlier)
    if lost == "summary.json":
        (tmp_path / lost).unlink()
    train(config(images, resume=tmp_path), tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_new_run_does_not_overwrite_an_earlier_one(images: Path, half: Path) -> None:
    before = files(half)
    with pytest.raises(ConfigError, match=r"holds a run already; add resume=.*half to continue it, or change"):
        train(config(images), half)
    with pytest.raises(ConfigError, match=r"half holds a run already; add resume=auto to continue it"):
        train(config(images, name="half"), half)
    assert files(half) == before


@pytest.mark.parametrize(
    ("resume", "message"),
    [("elsewhere", r"elsewhere is not this run's directory, .*here"), ("here", r"holds no checkpoints/last\.pt; give")],
)
def test_a_directory_without_a_checkpoint_or_other_than_the_runs_is_refused(
    resume: str, message: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config(images, resume=tmp_path / resume), tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_configuration_is_refused_with_a_line_a_key_before_anything_is_written(
    images: Path, half: Path
) -> None:
    before = files(half)
    changed = replace(config(images, resume=half), optim=Optim(lr=0.2, grad_clip=1.0), seed=7)
    with pytest.raises(ConfigError) as caught:
        train(changed, half)
    assert str(caught.value).splitlines() == [
        f"{half} cannot be continued with another configuration:",
        "  seed: was 0, is 7",
        "  optim.lr: was 0.4, is 0.2",
        "  optim.grad_clip: was null, is 1.0",
        "resume with the old values, or begin another run under another run.name",
    ]
    assert files(half) == before


@pytest.mark.skipif(kernel is None, reason="the native kernel is not built")
def test_where_auto_is_another_resize_a_run_is_not_continued(
    images: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "kernel", None)
    with pytest.raises(ConfigError, match=r"\n  transforms\.resize: was fused, is fast\n"):
        train(config(images, resume=half), half)


def test_of_another_kind_of_data_only_what_somebody_set_is_listed(images: Path) -> None:
    was = plain(replace(config(images), data=SyntheticData(num_images=100, seed=3)))
    now = plain(replace(config(images), data=FolderData(root="images", val_fraction=0.1, remote_tries=2)))
    with pytest.raises(ConfigError) as caught:
        refuse_changes(was, now, run_dir=Path("run"))
    listed = {line.partition(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]}
    assert listed == {"data.num_images", "data.seed", "data.remote_tries"}


def test_of_many_changes_ten_are_listed_and_the_others_counted() -> None:
    was = {f"key{number}": number for number in range(13)}
    with pytest.raises(ConfigError) as caught:
        refuse_changes(was, {"key0": [1, 2], "new": "text"}, run_dir=Path("run"))
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  key0: was 0, is [1, 2]", "  key1: was 1, is not there"]
    assert lines[-2] == "  ... and 4 more"
    assert len(lines) == 1 + 10 + 1 + 1


def test_scheduling_may_change_and_everything_else_may_not(images: Path) -> None:
    before = plain(config(images))
    scheduling = {
        "cache", "preload", "logger", "report", "dist", "resume", "init_from", "tune",
        "run.name", "run.num_threads", "run.save_every_steps", "run.max_steps", "run.keep_top",
        "loader.backend", "loader.num_workers", "loader.worker_scale", "loader.prefetch_factor",
        "loader.threads_per_worker", "loader.max_restarts", "loader.stall_timeout_s",
        "prefetch.device", "prefetch.num_batches", "data.root", "data.on_error", "data.max_bad_fraction",
    }  # fmt: skip
    for group, values in before.items():
        for key in values if isinstance(values, dict) else [None]:
            name = group if key is None else f"{group}.{key}"
            after = json.loads(json.dumps(before))
            if key is None:
                after[group] = "changed"
            else:
                after[group][key] = "changed"
            if name in scheduling or group in scheduling:
                refuse_changes(before, after, run_dir=Path("run"))
            else:
                with pytest.raises(ConfigError, match=f"  {name}: was .*, is changed"):
                    refuse_changes(before, after, run_dir=Path("run"))


def test_moved_data_goes_on_and_other_data_is_refused(images: Path, half: Path, whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    shutil.copytree(half, tmp_path / "again")
    victim = min((moved / "cats").iterdir())
    for path in moved.rglob("*.jpg"):
        path.touch()
    train(config(moved, resume=half), half)
    assert rows(half) == rows(whole)
    victim.rename(victim.with_name("renamed.jpg"))
    with pytest.raises(ConfigError, match="this data is not what the run was trained on: this state has order="):
        train(config(moved, resume=tmp_path / "again"), tmp_path / "again")
    assert load_checkpoint(tmp_path / "again/checkpoints/last.pt")["step"] == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged, or no checkpoint"),
        (lambda path: path.write_bytes(b""), "is damaged, or no checkpoint"),
        (lambda path: torch.save({"model": {}}, path), "is not one that this version continues"),
        (lambda path: torch.save([1, 2], path), "is not one that this version continues"),
    ],
    ids=["cut", "empty", "of another version", "something else"],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_line(
    make: Callable[[Path], Any], message: str, images: Path, half: Path
) -> None:
    make(half / "checkpoints/last.pt")
    with pytest.raises(ConfigError, match=message) as caught:
        train(config(images, resume=half), half)
    assert "\n" not in str(caught.value)
    assert "another run.name" in str(caught.value)


def test_torchs_generator_goes_on_from_where_it_was(images: Path, half: Path) -> None:
    state = load_checkpoint(half / "checkpoints/last.pt")
    state["rng"][0]["cpu"] = torch.Generator().manual_seed(5).get_state()
    save_checkpoint(half / "checkpoints/last.pt", state)
    train(config(images, resume=half), half)
    after = load_checkpoint(half / "checkpoints/last.pt")["rng"][0]["cpu"]
    assert torch.equal(after, state["rng"][0]["cpu"])  # a ResNet draws nothing after its first weights


def test_the_record_of_a_continued_run_adds_up_its_parts(images: Path, half: Path) -> None:
    first = load_checkpoint(half / "checkpoints/last.pt")
    train(config(images, resume=half), half)
    last = load_checkpoint(half / "checkpoints/last.pt")
    report = summary(half)
    assert report["resumed"] == 1
    assert report["wall_s"] > last["record"]["wall_s"] > first["record"]["wall_s"] > 0
    epoch = last["record"]["trained"][1]
    assert epoch["wall_s"] > first["unfinished"]["wall_s"]
    assert epoch["first_batch_s"] == first["unfinished"]["first_batch_s"]
    assert epoch["num_samples"] == 4 * STEPS_PER_EPOCH


# --- the parts -------------------------------------------------------------------------------------------------------


def test_earlier_files_get_the_first_number_that_is_free_for_all(tmp_path: Path) -> None:
    for name in (".hydra/overrides.yaml", ".hydra.1/overrides.yaml", "train.log", "train.2.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    keep_earlier(tmp_path, [".hydra", "train.log"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydra.1", ".hydra.3", "train.2.log", "train.3.log"]
    assert (tmp_path / "train.3.log").read_text() == "train.log"
    keep_earlier(tmp_path / "not there", [".hydra", "train.log"])


@pytest.mark.parametrize("name", ["run", "lr=0.1,wd=0", "it's {a} [b]", "2026-01-01/12-00-00"])
def test_the_command_that_continues_a_run_is_read_back_by_hydra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = command_to_continue(["train.py", "data=medium", "+resume=old"], tmp_path / name, by_name=False)
    words = shlex.split(line)
    assert words[:3] == ["python", "train.py", "data=medium"]
    override = OverridesParser.create().parse_override(words[3])
    assert (override.key_or_group, override.value()) == ("resume", name)
    by_name = command_to_continue(["/bin/headrace-train", "run.name=a"], tmp_path / name, by_name=True)
    assert by_name == "/bin/headrace-train run.name=a resume=auto"


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_waits_with_the_first(
    delivered: list[int],
) -> None:
    with StopSignals() as stop:
        stop.defer()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_asked
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(caught.value, Stopped)
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.check()
    assert delivered == [signal.SIGTERM]


def test_handlers_are_put_back_an_ignored_signal_stays_ignored_and_other_threads_have_none(
    delivered: list[int],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            stop.defer()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) is before

    def in_a_thread() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[Any] = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_stop_by_signal_is_called_stopped_and_names_the_signal(tmp_path: Path) -> None:
    with pytest.raises(Stopped), RunRecord(tmp_path, config={}):
        raise Stopped(signal.SIGTERM)
    assert (summary(tmp_path)["status"], summary(tmp_path)["error"]) == ("stopped", "Stopped: SIGTERM")


@pytest.mark.parametrize("loader", ["loader.num_workers=2", "loader.num_workers=1 loader.backend=processes"])
def test_a_dataset_that_is_taken_away_ends_the_run_in_two_lines_and_it_goes_on_when_it_is_back(
    images: Path, tmp_path: Path, faults: Path, loader: str
) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(images, data)
    endless = command(data, *loader.split(), "schedule.epochs=10000", "run.save_every_steps=1", "run.name=robbed")
    with subprocess.Popen(endless, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "epoch     1/10000" not in process.stderr.readline():
            assert process.poll() is None
        data.rename(away)
        told = process.stderr.read()
    assert process.returncode == 1
    error, note = told.strip().splitlines()
    assert error.startswith("FileNotFoundError")
    assert str(data) in error
    assert "stage read, sample id" in note
    run_dir = tmp_path / "outputs/train/robbed"
    assert summary(run_dir)["status"] == "failed"
    step = load_checkpoint(run_dir / "checkpoints/last.pt")["step"]
    away.rename(data)
    later = run([*endless, f"run.max_steps={step + 2}", "resume=auto"], cwd=tmp_path, faults=faults)
    assert later.returncode == 0, later.stderr
    assert summary(run_dir)["steps"] == step + 2
