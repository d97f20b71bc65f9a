"""Whether two settings train alike: the test, how many seeds it asks for, and runs that go on after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, overrides_for

from pipeline.config import ConfigError
from pipeline.equivalence.__main__ import in_words, main
from pipeline.equivalence.runs import Question
from pipeline.equivalence.tost import judge, student_t


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.95, 1, 6.3138), (0.95, 2, 2.9200), (0.95, 4, 2.1318), (0.95, 9, 1.8331), (0.975, 29, 2.0452), (0.5, 3, 0.0)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, expected: float) -> None:
    assert student_t(probability, freedom) == pytest.approx(expected, abs=1e-4)


def test_small_differences_of_little_spread_are_shown_to_be_small() -> None:
    found = judge([0.1, -0.1, 0.05, -0.05, 0.0], num_first=5, margin=1.0)
    assert found.is_shown
    assert found.mean == pytest.approx(0)
    reach = student_t(0.95, 4) * statistics.stdev([0.1, -0.1, 0.05, -0.05, 0.0]) / 5**0.5
    assert (found.low, found.high) == (pytest.approx(-reach), pytest.approx(reach))


def test_few_seeds_of_much_spread_show_nothing_and_more_are_asked_for() -> None:
    found = judge([2.0, -2.0, 1.0, -1.0, 0.0], num_first=5, margin=1.0)
    assert not found.is_shown
    assert found.num_needed == 46
    assert "not shown neutral\nby the spread of the first seeds 46 are needed" in in_words(
        Question("transforms.resize", "exact", "fast", ()), found
    )


def test_a_difference_as_large_as_the_margin_is_not_shown_to_be_small() -> None:
    assert not judge([1.0, 1.01, 0.99, 1.0, 1.0], num_first=5, margin=1.0).is_shown


def test_later_seeds_do_not_change_how_many_are_needed() -> None:
    first = [0.3, -0.2, 0.1]
    few, many = judge(first, num_first=3, margin=1.0), judge([*first, 9.0, -9.0], num_first=3, margin=1.0)
    assert few.num_needed == many.num_needed


def test_a_true_difference_at_the_margin_is_called_neutral_in_one_of_twenty_cases() -> None:
    """The level holds although the first results decide how many there are; and so does the power."""
    choose, num, margin = random.Random(0), 2000, 1.0
    for truth, least, most in ((margin, 0.02, 0.065), (0.0, 0.87, 1.0)):
        shown = 0
        for _ in range(num):
            first = [choose.gauss(truth, 0.6) for _ in range(5)]
            needed = judge(first, num_first=5, margin=margin).num_needed
            others = [choose.gauss(truth, 0.6) for _ in range(needed - 5)]
            shown += judge([*first, *others], num_first=5, margin=margin).is_shown
        assert least < shown / num < most


@pytest.mark.parametrize(
    "overrides",
    [[], ["a=1,2", "b=1,2"], ["a=1,2,3"], ["a=1"], ["a=1,1"]],
    ids=["none", "two keys", "three values", "one value", "equal values"],
)
def test_what_is_no_question_is_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="give two different values of one key, such as"):
        Question.parse(overrides)


def test_lists_are_values_of_other_keys() -> None:
    others = ("transforms.scale=[0.1,1.0]", "data.pattern='s-{0,1}.tar'", "+a={b:1,c:2}")
    asked = Question.parse([others[0], "transforms.resize=exact,fast", *others[1:]], margin=0.5)
    assert asked == Question("transforms.resize", "exact", "fast", others, margin=0.5)
    asked = Question.parse(["transforms.scale=[0.1,1.0],[0.5,1.0]"])
    assert (asked.first, asked.second) == ("[0.1,1.0]", "[0.5,1.0]")


@pytest.mark.parametrize("override", ["transforms.resize=exact,", "a={1,2"])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"^(not an override|give two)"):
        Question.parse([override])


@pytest.mark.parametrize("option", [["--first", "1"], ["--margin", "0"], ["--first", "9", "--most", "3"]])
def test_numbers_that_show_nothing_are_refused_before_anything_runs(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transforms.resize=exact,fast", "--dir", str(tmp_path / "runs"), *option]) == 2
    assert capsys.readouterr().err.startswith(f"error: {option[0]}")
    assert not (tmp_path / "runs").exists()


def test_runs_that_were_killed_go_on_and_finished_ones_are_not_run_again(images: Path, tmp_path: Path) -> None:
    directory = tmp_path / "runs"
    short = [*overrides_for(images), "schedule.epochs=1", "transforms.resize=exact,fast"]
    command = [sys.executable, "-m", "pipeline.equivalence", *short, "--dir", str(directory), "--first", "2"]
    command += ["--most", "2", "--margin", "100"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline().startswith("seed 0: exact ")
        killed.send_signal(signal.SIGINT)
        assert killed.wait() == 130
    finished = [directory / f"{run}-0" / "summary.json" for run in ("0-exact", "1-fast")]
    before = [path.stat() for path in finished]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert [path.stat() for path in finished] == before
    told = json.loads((directory / "equivalence.json").read_text())
    assert [pair["seed"] for pair in told["pairs"]] == [0, 1]
    assert told["mean"] == pytest.approx(
        statistics.fmean(pair["second_pct"] - pair["first_pct"] for pair in told["pairs"])
    )
    assert done.returncode == (0 if told["is_shown"] else 1)
    asked = [*short, "--dir", str(directory), "--first", "2", "--most", "3"]
    for change in (["--margin", "99"], ["--margin", "100", "--first", "3"], ["--margin", "100", "schedule.epochs=2"]):
        assert main([*asked, *change]) == 2, "another question"


def test_a_wrong_value_is_told_before_the_other_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "runs"
    assert main(["transforms.resize=exact,fasst", "data=tiny", "--dir", str(directory)]) == 2
    assert "did you mean fast?" in capsys.readouterr().err
    assert not directory.exists()


def test_a_run_that_fails_is_told_with_its_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    folder = ["data=folder", f"data.root={tmp_path / 'data'}"]
    assert main(["transforms.resize=exact,fast", *folder, "--dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert "0-exact-0 ended with code" in error
    assert "has no class directories" in error
