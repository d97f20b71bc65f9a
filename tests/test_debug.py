"""`debug=fast` and `debug=overfit` as a user runs them, and what they leave behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from runs import ROOT, rows, short_run, summary

from pipeline._compat import HYDRA_DEFAULTS
from pipeline.cli import conf_dir
from pipeline.config import BenchConfig, ConfigError, Debug, SyntheticData, TrainConfig
from pipeline.config.compose import to_config
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.run import train

SMALL = ["data=folder", "data.val_fraction=0.3", "transforms.size=16", "model.width=8", "run.num_threads=1"]


def debug(kind: str, images: Path, cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), f"debug={kind}", f"data.root={images}", *SMALL, *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def composed(*overrides: str) -> TrainConfig:
    with initialize_config_dir(config_dir=str(conf_dir()), **HYDRA_DEFAULTS):
        return to_config(compose("train", list(overrides)), cwd="/")


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 images that anything that learns tells apart: dark and light noise."""
    root = tmp_path_factory.mktemp("easy")
    rng = np.random.default_rng(0)
    for name, least in (("dark", 0), ("light", 160)):
        (root / name).mkdir()
        for number in range(12):
            pixels = rng.integers(least, least + 90, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_fast_takes_five_steps_and_a_small_evaluation_and_leaves_all_that_a_run_leaves(
    images: Path, tmp_path: Path
) -> None:
    finished = debug("fast", images, tmp_path, "loader.batch_size=3", "run.name=try")
    assert finished.returncode == 0, finished.stderr
    assert "15 training and 6 validation images" in finished.stderr  # of 17 and 7
    run_dir = tmp_path / "outputs/debug/try"
    found = summary(run_dir)
    assert (found["debug"], found["status"], found["steps"], found["epochs"]) == ("fast", "completed", 5, 1)
    assert found["eval_num_samples"] == 6
    assert finished.stdout.splitlines()[-1].startswith("debug=fast: 5 steps, an evaluation and the report ran through")
    wanted = {"checkpoints", "curves.png", "metrics.csv", "summary.json", "debug.log"}
    assert wanted <= {path.name for path in run_dir.iterdir()}
    assert load_checkpoint(run_dir / "checkpoints/last.pt")["step"] == 5
    assert not (tmp_path / "outputs/train").exists()


def test_overfit_learns_one_batch_by_heart_and_says_yes(easy: Path, tmp_path: Path) -> None:
    finished = debug("overfit", easy, tmp_path, "loader.batch_size=8", "schedule.epochs=30", "run.name=try")
    assert finished.returncode == 0, finished.stderr
    beaten = "debug=overfit has values of its own for what your command line sets: schedule.epochs=30"
    assert finished.stderr.splitlines()[0] == beaten
    last_line = finished.stdout.splitlines()[-1]
    assert last_line.startswith("debug=overfit: yes, the loss fell from ")
    assert last_line.endswith("in 30 steps: model, labels and loss fit together")
    run_dir = tmp_path / "outputs/debug/try"
    found = summary(run_dir)
    assert (found["debug"], found["did_overfit"], found["steps"], found["epochs"]) == ("overfit", True, 30, 30)
    losses = [float(row["train_loss"]) for row in rows(run_dir)]
    assert losses[-1] < 0.1 < losses[0]
    assert [row["eval_top1"] != "" for row in rows(run_dir)] == [False] * 29 + [True]


def test_overfit_says_no_where_the_labels_cannot_be_told_from_the_images(images: Path, tmp_path: Path) -> None:
    # Each picture is there twice, once for a cat and once for a dog.
    finished = debug("overfit", images, tmp_path, "loader.batch_size=16", "schedule.epochs=5", "run.name=try")
    assert finished.returncode == 1, finished.stderr
    assert finished.stdout.splitlines()[-2].startswith("debug=overfit: no, the loss went from ")
    assert "optim.lr" in finished.stdout.splitlines()[-2]
    assert max(map(len, finished.stdout.splitlines())) <= 120
    assert summary(tmp_path / "outputs/debug/try")["did_overfit"] is False


def test_overfit_trains_on_the_same_pixels_at_every_step(easy: Path, tmp_path: Path) -> None:
    # With a rate of nearly nothing the loss can only change by what is trained on.
    finished = debug(
        "overfit", easy, tmp_path, "loader.batch_size=8", "schedule.epochs=10", "run.name=a", "optim.lr=1e-12"
    )
    assert finished.returncode == 1, finished.stderr
    losses = {row["train_loss"] for row in rows(tmp_path / "outputs/debug/a")}
    assert len({round(float(loss), 6) for loss in losses}) == 1


def test_an_interrupted_debug_run_goes_on_in_its_directory_and_no_other_run_takes_it_for_its_own(
    images: Path, tmp_path: Path
) -> None:
    cut = debug("fast", images, tmp_path, "loader.batch_size=3", "run.name=try", "run.max_steps=2")
    assert cut.returncode == 0, cut.stderr
    assert summary(tmp_path / "outputs/debug/try")["status"] == "stopped"
    again = debug("fast", images, tmp_path, "loader.batch_size=3", "run.name=try", "resume=auto")
    assert again.returncode == 0, again.stderr
    found = summary(tmp_path / "outputs/debug/try")
    assert (found["status"], found["steps"], found["resumed"], found["debug"]) == ("completed", 5, 1, "fast")

    twice = debug("fast", images, tmp_path, "loader.batch_size=3", "run.name=try")
    assert twice.returncode == 2
    assert twice.stderr.endswith("a debug run already; leave out run.name, for a directory of its own, or change it\n")
    other = debug("fast", images, tmp_path, "run.name=try", "resume=auto", "loader.batch_size=3", "data.max_samples=12")
    assert other.returncode == 2
    assert "  data.max_samples: was 15, is 12" in other.stderr.splitlines()


@pytest.mark.usefixtures("torch_as_before")
def test_a_run_without_debug_does_not_speak_of_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(short_run(images, run={"max_steps": 1}), tmp_path)
    assert "debug=" not in capsys.readouterr().out
    assert "debug" not in summary(tmp_path)


def test_fast_counts_its_steps_in_batches_of_all_ranks_and_fits_any_schedule() -> None:
    fast = composed("debug=fast", "loader.batch_size=7", "dist.nproc=2", "schedule=one_cycle")
    assert (fast.data.max_samples, fast.data.max_val_samples) == (5 * 14, 2 * 14)
    assert (fast.debug, fast.schedule.epochs) == ("fast", 1)


def test_debug_beats_an_experiment_and_the_command_line_beats_debug() -> None:
    cfg = composed("experiment=cifar10", "data.download=true", "debug=overfit", "data.max_samples=256")
    assert (cfg.transforms.augment, cfg.loader.sampler, cfg.schedule.epochs) == ("none", "sequential", 100)
    assert (cfg.data.max_samples, cfg.data.max_val_samples) == (256, 128)
    assert composed("debug=overfit", "schedule.epochs=5").schedule.warmup_epochs == 0.5
    assert cfg.loader.batch_size == 128, "of the experiment, and debug says nothing of it"


def test_what_debug_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="debug has no choice 'slow'"):
        TrainConfig(data=SyntheticData(num_images=100), debug="slow")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"debug=fast is for train\.py"):
        BenchConfig(data=SyntheticData(num_images=100), debug=Debug.fast)


def test_two_ranks_overfit_their_halves_of_one_batch_and_one_of_them_says_so(easy: Path, tmp_path: Path) -> None:
    finished = debug(
        "overfit", easy, tmp_path, "loader.batch_size=4", "schedule.epochs=30", "run.name=two", "dist.nproc=2"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("debug=overfit: yes") == 1
    found = summary(tmp_path / "outputs/debug/two")
    assert (found["steps"], found["did_overfit"]) == (30, True)
