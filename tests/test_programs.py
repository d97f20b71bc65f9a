"""train.py and bench.py as a user runs them: two steps, as processes of their own, on real files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import write_jpegs

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["transforms.size=16", "loader.batch_size=4", "loader.num_workers=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 12 images each, divided by the hash of their names."""
    root = tmp_path_factory.mktemp("folder")
    for name in ("cats", "dogs"):
        write_jpegs(root / name, 12)
    return root


def run(program: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / program), *overrides, *SMALL]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_two_steps_of_training_leave_a_whole_report(folder: Path, tmp_path: Path) -> None:
    finished = run(
        "train.py",
        "data=folder",
        f"data.root={folder}",
        "data.val_fraction=0.3",
        "run.max_steps=2",
        "loader.drop_last=true",
        "run.name=two",
        "model.width=8",
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    run_dir = tmp_path / "outputs/train/two"
    assert "outputs/train/two/summary.json" in finished.stdout
    summary = report(run_dir / "summary.json")
    assert (summary["status"], summary["steps"]) == ("stopped", 2)
    assert {"train_samples_per_sec", "eval_top1", "data_wait_pct", "first_batch_s", "versions", "host"} <= set(summary)
    assert summary["config"]["transforms"]["augment"] == "standard"
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 2
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)
    assert checkpoint["class_names"] == ["cats", "dogs"]
    assert checkpoint["loader"]["position"] == 8
    assert checkpoint["preprocessing"]["augment"] == "none"


def test_a_trial_measures_the_pipeline_and_its_references_in_turn(folder: Path, tmp_path: Path) -> None:
    finished = run(
        "bench.py",
        "data=folder",
        f"data.root={folder}",
        "bench.batches=2",
        "bench.repeats=2",
        "bench.warmup=1",
        "run.name=two",
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    result = report(tmp_path / "outputs/bench/two/result.json")
    assert (result["status"], result["contender"], len(result["repeats"])) == ("completed", "headrace", 2)
    rates = {"samples_per_sec", "samples_per_cpu_sec", "decode_ceiling_per_sec", "resident_per_sec"}
    assert all(repeat[rate] > 0 for repeat in result["repeats"] for rate in rates)
    assert result["samples_per_sec_min"] <= result["samples_per_sec"] <= result["samples_per_sec_max"]
    assert result["first_batch_from_start_s"] > result["first_batch_s"] > result["build_s"]
    assert {"epoch_gap_s", "peak_pss_mb", "cache_hit_pct", "dataset", "config", "versions", "host"} <= set(result)
    assert all(len(line) <= 100 for line in finished.stdout.splitlines() if not line.startswith("report"))


def test_an_objective_that_is_no_number_of_a_trial_is_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    finished = run("bench.py", "data=folder", f"data.root={folder}", "bench.objective=speed", cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "bench.objective=speed is no number of result.json" in finished.stderr


def test_a_broken_image_ends_training_with_its_path_and_a_failed_summary(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        write_jpegs(tmp_path / "images" / name, 6)
    for path in (tmp_path / "images" / "cats").iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    finished = run("train.py", "data=folder", "data.root=images", "data.val_fraction=0.2", "run.name=bad", cwd=tmp_path)
    assert finished.returncode == 1
    assert "images/cats/" in finished.stderr
    assert "truncated JPEG" in finished.stderr
    assert "Traceback" not in finished.stderr
    summary = report(tmp_path / "outputs/train/bad/summary.json")
    assert summary["status"] == "failed"
    assert "truncated JPEG" in summary["error"]


def test_ctrl_c_ends_training_with_a_checkpoint_a_line_and_a_report(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "data=folder", f"data.root={folder}", "data.val_fraction=0.3"]
    command += ["schedule.epochs=100000", "model.width=8", "run.name=cut", "loader.drop_last=true", *SMALL]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("epoch"):
                break
        run.send_signal(signal.SIGINT)
        rest = [line for line in run.stderr if not line.startswith("epoch")]
        assert run.wait(60) == 130
    assert len(rest) == 1
    run_dir = tmp_path / "outputs/train/cut"
    summary = report(run_dir / "summary.json")
    assert rest[0].startswith(f"SIGINT: saved checkpoints/last.pt at step {summary['steps']}; continue with: python ")
    assert rest[0].endswith(" resume=auto\n")
    assert summary["status"] == "stopped"
    assert torch.load(run_dir / "checkpoints/last.pt", weights_only=True)["step"] == summary["steps"]
    logged = [line for line in (run_dir / "train.log").read_text().splitlines() if "epoch" in line]
    assert len(logged) == summary["epochs"]


def test_data_that_is_not_there_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    finished = run("train.py", "data=folder", "data.root=empty", cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "data.root=" in finished.stderr
