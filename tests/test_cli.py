"""The door: what `train.py` says and does with right and wrong command lines."""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra._internal.utils import get_args_parser

from pipeline._compat import lazy_help_allowed
from pipeline.cli import conf_dir, hydra_main
from pipeline.training.sweep_table import format_table, print_sweep, sweep_rows

ROOT = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    tasks: list[tuple[Any, Path]]  # the configuration and directory of each task that ran


Program = Callable[..., Outcome]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Program]:
    """Runs a command line in this process, in an empty directory, with a task that only notes that it ran."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(*overrides: str, name: str = "train", error: BaseException | None = None) -> Outcome:
        tasks: list[tuple[Any, Path]] = []

        @hydra_main(name)
        def main(cfg: Any, run_dir: Path) -> float:
            tasks.append((cfg, run_dir))
            if isinstance(error, KeyboardInterrupt) and cfg.run.save_every_steps is not None:
                (run_dir / "checkpoints").mkdir()
                (run_dir / "checkpoints/last.pt").touch()
            if error is not None and cfg.loader.num_workers == 1:
                raise error
            summary = {"status": "completed", "eval_top1": 0.5, "train_samples_per_sec": 1234.5, "data_wait_pct": 3}
            (run_dir / "summary.json").write_text(json.dumps(summary))
            return 0.5

        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err, tasks)

    yield run
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level
    epochs = logging.getLogger("pipeline.training.progress")  # conf/train.yaml gave it the file of a run that is over
    epochs.handlers.clear()
    epochs.propagate = True


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("data=huge", "data has no option 'huge'; choices: arrays, cifar10, cifar100, folder, large"),
        ("loader.num_worker=3", "loader.num_worker is not a key; did you mean num_workers?"),
        (
            "loader.num_workers=-1",
            "loader.num_workers must be auto or a whole number >= 0, got -1; 0 is none",
        ),
        ("loader=3", "loader has no option '3'; choices: default, doubled"),
        ("debug=true", "debug has no option 'true'; choices: fast, overfit"),
        ("debug.fast=true", "debug has no keys below it; write debug=VALUE, "),
        ("tune=3", "tune must be true or false, got 3"),
        ("resume=true", "resume must be auto or a run's directory, got 'True'; resume=auto continues run.name"),
        ("data.root=", "data.root is empty; give data.root=PATH, or leave it out"),
        ("data=tar data.pattern=", "data.pattern is empty; give data.pattern=PATH"),
        ("loader.num_workers=1.5", "loader.num_workers must be auto or a whole number, got 1.5"),
        ("+typo=1", "typo is not a key; choices: data"),
        ("data=folder data.root=no", "data.root is not a directory: "),
        ("-m loader.num_worker=0,1", "loader.num_worker is not a key; did you mean num_workers?"),
        ("resume=auto", "resume=auto needs to know which run: add run.name=NAME, or use resume=DIR"),
        ("resume=no", "/no holds no checkpoints/last.pt; give the directory of a run that saved one"),
        ("resume=no run.name=a", "/no is not this run's directory, "),
        ("-m resume=auto run.name=a", "resume=auto continues one run, not a sweep; leave out -m, or resume"),
        ("run.save_every_steps=0", "run.save_every_steps must be >= 1, got 0; null saves at each epoch's end"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line_and_exit_code_2(program: Program, command: str, line: str) -> None:
    outcome = program(*command.split(" "))
    assert outcome.err.count("\n") == 1
    assert line in outcome.err
    assert (outcome.code, outcome.out, outcome.tasks) == (2, "", [])


def test_a_wrong_value_leaves_an_earlier_run_of_that_name_as_it_is(program: Program, tmp_path: Path) -> None:
    assert program("run.name=good").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    assert program("run.name=good", "loader.num_workers=-1").code == 2
    assert {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()} == before


def test_a_benchmark_is_not_resumed(program: Program) -> None:
    outcome = program("resume=auto", "run.name=a", name="bench")
    assert outcome.err == "resume=auto is for train.py: a benchmark is not continued; leave it out\n"
    assert (outcome.code, outcome.tasks) == (2, [])


def test_a_name_that_has_a_checkpoint_is_not_used_again(program: Program, tmp_path: Path) -> None:
    assert program("run.name=first").code == 0
    for run_dir in (tmp_path / "outputs/train/first", tmp_path / "outputs/train/multirun/s/0"):
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints/last.pt").touch()
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    outcome = program("run.name=first")
    assert outcome.err == (
        f"{tmp_path}/outputs/train/first holds a run already; add resume=auto to continue it, or change run.name\n"
    )
    assert (outcome.code, outcome.tasks) == (2, [])
    sweep = program("-m", "run.name=s", "loader.num_workers=0,1")
    assert sweep.err == (
        "outputs/train/multirun/s holds a sweep already, with outputs/train/multirun/s/0/checkpoints/last.pt; "
        "change run.name\n"
    )
    assert (sweep.code, sweep.tasks) == (2, [])
    assert {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()} == before


def test_a_resumed_run_that_saved_nothing_begins_and_keeps_what_an_earlier_part_wrote(
    program: Program, tmp_path: Path
) -> None:
    for number in range(3):
        outcome = program("run.name=first", "resume=auto", f"seed={number}")
        assert (outcome.code, outcome.tasks[0][0].resume) == (0, "auto")
    run_dir = tmp_path / "outputs/train/first"
    seeds = [(run_dir / name / "overrides.yaml").read_text() for name in (".hydra.1", ".hydra.2", ".hydra")]
    assert [text.splitlines()[-1] for text in seeds] == ["- seed=0", "- seed=1", "- seed=2"]
    assert sorted(path.name for path in run_dir.glob("train*.log")) == ["train.1.log", "train.2.log", "train.log"]


def test_files_that_cannot_be_kept_end_the_run_before_they_are_overwritten(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program("run.name=first").code == 0

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    outcome = program("run.name=first", "resume=auto")
    assert (outcome.code, outcome.err.count("\n"), outcome.tasks) == (2, 1, [])
    assert "Permission denied" in outcome.err


def test_run_name_fixes_the_directory_and_otherwise_it_is_date_and_time(program: Program, tmp_path: Path) -> None:
    assert program("run.name=first").tasks[0][1] == tmp_path / "outputs/train/first"
    assert program("run.name=first", name="bench").tasks[0][1] == tmp_path / "outputs/bench/first"
    directory = program().tasks[0][1]
    assert directory.relative_to(tmp_path / "outputs/train").match("????-??-??/??-??-??")
    assert (directory / ".hydra/overrides.yaml").exists()


@pytest.mark.parametrize("chdir", ["true", "false"])
def test_relative_paths_mean_the_same_with_and_without_chdir(program: Program, tmp_path: Path, chdir: str) -> None:
    (tmp_path / "images").mkdir()
    outcome = program("data=folder", "data.root=images", f"hydra.job.chdir={chdir}")
    assert outcome.tasks[0][0].data.root == str(tmp_path / "images")
    assert Path.cwd() == tmp_path


def test_a_task_that_raises_comes_through_and_is_recorded(program: Program, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="disk on fire"):
        program("run.name=bad", "loader.num_workers=1", error=RuntimeError("disk on fire"))
    summary = json.loads((tmp_path / "outputs/train/bad/summary.json").read_text())
    assert summary == {"status": "failed", "error": "RuntimeError: disk on fire"}


def test_a_run_that_two_ctrl_c_end_at_once_goes_on_from_the_checkpoint_before(program: Program) -> None:
    outcome = program("run.name=a", "loader.num_workers=1", "run.save_every_steps=2", error=KeyboardInterrupt())
    told = "continue with: python train.py run.name=a loader.num_workers=1 run.save_every_steps=2 resume=auto"
    assert outcome.err == f"interrupted at once: its last checkpoint is from before; {told}\n"
    assert outcome.code == 130
    outcome = program("run.name=b", "loader.num_workers=1", error=KeyboardInterrupt())
    assert outcome.err.startswith("interrupted at once: what there is of the run is in ")


def test_a_sweep_records_its_failing_job_runs_the_rest_and_ends_with_a_table(program: Program) -> None:
    outcome = program("-m", "loader.num_workers=0,1,2", "run.name=s", error=RuntimeError("disk on fire"))
    assert [cfg.loader.num_workers for cfg, _ in outcome.tasks] == [0, 1, 2]
    assert outcome.code == 1
    table = outcome.out[outcome.out.index("job ") :].splitlines()
    assert table == [
        "job  num_workers  eval_top1  train_samples_per_sec  data_wait_pct  status",
        "0    0            0.5        1234                   3              completed",
        "1    1            -          -                      -              failed",
        "2    2            0.5        1234                   3              completed",
        "1: RuntimeError: disk on fire",
        "sweep: outputs/train/multirun/s",
    ]


def test_a_sweep_of_conf_runs_with_m_and_ends_with_code_0(program: Program) -> None:
    outcome = program("-m", "sweep=workers", "run.name=s")
    assert outcome.code == 0
    assert [run_dir.name for _, run_dir in outcome.tasks] == ["0", "1", "2"]


def test_a_sweeps_wrong_job_is_one_row_of_its_table(program: Program) -> None:
    outcome = program("-m", "loader.num_workers=-1,2", "run.name=s")
    assert outcome.code == 1
    assert "0: ConfigError: loader.num_workers must be auto or a whole number >= 0, got -1; 0 is none" in outcome.out
    assert len(outcome.tasks) == 1


def test_the_table_fits_100_columns_and_keeps_keys_apart() -> None:
    overrides = [{"data.seed": str(i), "transforms.mean": f"[{i}.4914,0.4822,0.4465]" * 2, "seed": "1"} for i in (1, 2)]
    metrics = ("eval_top1", "train_samples_per_sec", "data_wait_pct")
    summaries = [{"status": "completed", "eval_top1": 0.123456}, {"status": "failed"}]
    rows = sweep_rows(summaries, overrides, metrics)
    assert rows[0] == ["job", "seed", "mean", *metrics, "status"]
    assert rows[1][3:] == ["0.1235", "-", "-", "completed"]
    assert all(len(line) <= 100 for line in format_table(rows, width=100))
    both = [{"data.seed": "1", "seed": "1"}, {"data.seed": "2", "seed": "2"}]
    assert sweep_rows(summaries, both, ())[0] == ["job", "data.seed", "seed", "status"]


def test_a_job_without_a_summary_counts_as_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0").mkdir()
    assert print_sweep(tmp_path) == 1
    assert f"0: no summary.json in {tmp_path / '0'}" in capsys.readouterr().out


def test_help_lists_every_group_and_runs_nothing(program: Program) -> None:
    outcome = program("--help")
    assert (outcome.code, outcome.tasks) == (0, [])
    for group in (path.name for path in conf_dir().iterdir() if path.is_dir()):
        assert f"\n{group}: " in outcome.out
    for line in outcome.out.splitlines():
        if line.startswith("python train.py -m"):
            assert "loader.num_workers=0,2,4" in line
    assert "??" not in outcome.out


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["train.py", "bench.py"])
def test_a_program_shows_its_configuration_without_torch(script: str, tmp_path: Path) -> None:
    show = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    check = f"try:\n    exec({show!r})\nfinally:\n    assert 'torch' not in sys.modules"
    done = _python("-c", f"import sys\n{check}", str(ROOT / script), "data=medium", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_images: 10000" in done.stdout
    wrong = _python("-c", f"import sys\n{check}", str(ROOT / script), "+typo=1", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    refused = _python("-c", f"import sys\n{check}", str(ROOT / script), "resume=auto", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_hydra_full_error_shows_where_a_wrong_value_was_refused(tmp_path: Path) -> None:
    code = "import os; os.environ['HYDRA_FULL_ERROR'] = '1'; from pipeline.cli import train; train()"
    done = _python("-c", code, "loader.num_workers=-1", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "in __post_init__" in done.stderr


@pytest.mark.parametrize("script", ["train.py", "bench.py"])
def test_tab_completion_finds_its_words_in_the_programs(script: str) -> None:
    assert "@hydra.main" in (ROOT / script).read_text()


def test_hydras_lazy_help_passes_python_314s_argparse(monkeypatch: pytest.MonkeyPatch) -> None:
    add_argument = argparse.ArgumentParser.add_argument

    def check_help(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if (action.help is not None and not isinstance(action.help, str)) or "%q" in str(action.help):
            raise ValueError("badly formed help string")

    def add_checked(parser: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        action = add_argument(parser, *names, **options)
        parser._check_help(action)  # type: ignore[attr-defined]
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check_help, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_checked)
    with lazy_help_allowed():
        get_args_parser()
        with pytest.raises(ValueError, match="badly formed"):
            argparse.ArgumentParser().add_argument("--text", help="%q")
    assert argparse.ArgumentParser._check_help is check_help  # type: ignore[attr-defined]
