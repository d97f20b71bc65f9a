"""Rounds of real processes whose measuring is replaced: what they return, how they die, and when no more are run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.bench import rounds
from pipeline.bench.rounds import Trial, measure_in_rounds
from pipeline.config import Bench, BenchConfig, FolderData

# Python runs a sitecustomize before anything else. `measure` of a trial is then what {measure} says, without torch.
SITE = """
import os, sys, types

arguments = sys.orig_argv
if "pipeline.bench.child" in arguments:
    trial, round = (int(arguments[arguments.index(name) + 1]) for name in ("--trial", "--round"))
    with open({log!r}, "a") as log:
        print(trial, round, file=log)

    def measure(config, *, repeats, references, wait_turn):
        {measure}
        told = {{"round": 0, "sitting": None, "samples_per_sec": float(rate)}}
        return {{"status": "completed", "references": references, "repeats": [told]}}

    module = sys.modules["pipeline.bench.trial"] = types.ModuleType("pipeline.bench.trial")
    module.measure = measure
"""

Run = Callable[..., list[tuple[int, int]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Measures trials and returns the (trial, round) of the processes, in order."""
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def measure(trials: list[Trial], how: str) -> list[tuple[int, int]]:
        log = tmp_path / "processes"
        log.touch()
        (tmp_path / "sitecustomize.py").write_text(SITE.format(log=str(log), measure=how))
        lines: list[str] = []
        measure_in_rounds(trials, sitting="s", seed=0, baseline=trials[0], show=lines.append)
        ran = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
        assert len(lines) == len(ran) + sum(trial.result["status"] == "skipped" for trial in trials)
        return [(trial, round) for trial, round in ran]

    return measure


def trials(count: int, directory: Path, **bench: Any) -> list[Trial]:
    config = BenchConfig(data=FolderData(root=str(directory)), bench=Bench(**bench))
    return [
        Trial(number=n, label=str(n), config=config, composed={}, directory=directory / "sweep" / str(n))
        for n in range(count)
    ]


def test_every_round_runs_each_trial_once_in_an_order_of_its_own_and_leaves_its_result(
    tmp_path: Path, run: Run
) -> None:
    three = trials(3, tmp_path, repeats=4)
    ran = run(three, "rate = 100 * (trial + 1) + round")
    by_round = [[trial for trial, number in ran if number == wanted] for wanted in range(4)]
    assert [number for _, number in ran] == [number for number in range(4) for _ in range(3)]
    assert all(sorted(order) == [0, 1, 2] for order in by_round)
    assert len({tuple(order) for order in by_round}) > 1
    for trial in three:
        result = json.loads((trial.directory / "result.json").read_text())
        assert [repeat["round"] for repeat in result["repeats"]] == [0, 1, 2, 3]
        assert {repeat["sitting"] for repeat in result["repeats"]} == {"s"}
        assert result["samples_per_sec"] == 100 * (trial.number + 1) + 1.5
        kept = [json.loads((trial.directory / f"rounds/{n}.json").read_text())["references"] for n in range(4)]
        assert kept == [True, False, False, False]


def test_processes_of_a_round_take_turns_and_never_work_at_the_same_time(tmp_path: Path, run: Run) -> None:
    three = trials(3, tmp_path, repeats=2, turns=4)
    work = tmp_path / "work"
    how = (
        f"log = open({str(work)!r}, 'a', buffering=1); "
        "[(wait_turn(), print('begin', trial, round, part, file=log), print('end', trial, round, part, file=log)) "
        "for part in range(config.bench.turns + 1)]; rate = 1"
    )
    run(three, how)
    lines = [line.split() for line in work.read_text().splitlines()]
    begun, ended = lines[::2], lines[1::2]
    assert [line[0] for line in lines] == ["begin", "end"] * (len(lines) // 2)
    assert [line[1:] for line in begun] == [line[1:] for line in ended]
    order = [(round, part) for _, _, round, part in begun]
    assert order == sorted(order)
    assert [order.count(place) for place in dict.fromkeys(order)] == [3] * 2 * 5
    by_turn = ["".join(line[1] for line in begun[first : first + 3]) for first in range(0, len(begun), 3)]
    assert len(set(by_turn)) > 1
    assert all(trial.result["status"] == "completed" for trial in three)


def test_a_process_that_dies_at_its_turn_leaves_the_others_theirs(tmp_path: Path, run: Run) -> None:
    three = trials(3, tmp_path, repeats=1, turns=2)
    run(three, "wait_turn(); trial == 1 and os._exit(7); wait_turn(); rate = 5")
    assert [trial.result["status"] for trial in three] == ["completed", "failed", "completed"]
    assert "exit code 7" in three[1].result["error"]


def test_a_trial_that_failed_has_no_further_rounds(tmp_path: Path, run: Run) -> None:
    three = trials(3, tmp_path, repeats=3)
    ran = run(three, "rate = 100 if trial != 1 or round == 0 else 1 / 0")
    assert [number for trial, number in ran if trial == 1] == [0, 1]
    assert [len([0 for trial, _ in ran if trial == wanted]) for wanted in (0, 2)] == [3, 3]
    assert (three[1].result["status"], three[1].result["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert [repeat["samples_per_sec"] for repeat in three[1].result["repeats"]] == [100]
    assert "ZeroDivisionError" in (three[1].directory / "trial.log").read_text()


def test_a_process_that_dies_says_how(tmp_path: Path, run: Run) -> None:
    killed, left = two = trials(2, tmp_path, repeats=1)
    run(two, "import signal; os.kill(os.getpid(), signal.SIGSEGV) if trial == 0 else os._exit(3)")
    assert killed.result["error"] == "killed by SIGSEGV"
    assert left.result["error"] == f"its process ended with exit code 3; see {left.directory / 'trial.log'}"


def test_a_process_that_hangs_is_killed_with_all_it_started(tmp_path: Path, run: Run) -> None:
    (hanging,) = trials(1, tmp_path, repeats=1, timeout_s=5.0)
    started = tmp_path / "started"
    sleeper = "import threading; threading.Event().wait()"
    run(
        [hanging],
        "import subprocess, threading; "
        f"process = subprocess.Popen([sys.executable, '-S', '-c', {sleeper!r}], start_new_session=True); "
        f"open({str(started)!r}, 'w').write(str(process.pid)); threading.Event().wait()",
    )
    assert hanging.result["error"] == "still running after bench.timeout_s=5, killed"
    left = [process for process in psutil.process_iter() if process.pid == int(started.read_text())]
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_loader_that_is_not_installed_is_skipped_and_the_others_go_on(tmp_path: Path, run: Run) -> None:
    ours, other = two = trials(2, tmp_path, repeats=1)
    other.config = BenchConfig(data=ours.config.data, bench=Bench(contender="dali", repeats=1))
    assert run(two, "rate = 1") == [(0, 0)]
    assert (ours.result["status"], other.result["status"]) == ("completed", "skipped")
    assert "make peers" in other.result["error"]


def test_automatic_rounds_end_as_soon_as_the_difference_that_matters_would_be_seen(tmp_path: Path, run: Run) -> None:
    ran = run(trials(2, tmp_path, repeats="auto"), "rate = 1000 + 10 * (round % 2) + trial")
    assert len(ran) == 2 * rounds.MIN_ROUNDS


def test_automatic_rounds_end_when_their_time_is_spent(tmp_path: Path, run: Run) -> None:
    noisy = "rate = 1000 * (1 + (hash((trial, round)) % 97) / 20)"
    ran = run(trials(2, tmp_path, repeats="auto", budget_s=0.001), noisy)
    assert len(ran) == 2 * rounds.MIN_ROUNDS


def test_a_lone_trials_automatic_rounds_end_when_its_own_rate_is_known(tmp_path: Path, run: Run) -> None:
    assert len(run(trials(1, tmp_path, repeats="auto"), "rate = 1000 + round % 2")) == rounds.MIN_ROUNDS
