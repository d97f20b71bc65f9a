"""What a sweep's report says, from directories of real files: pairing, sections, verdicts, lines and tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import (
    COMMIT,
    FAST,
    HOST,
    VERSIONS,
    completed,
    csv_of,
    failed,
    ladder,
    many,
    rates_near,
    report,
    skipped,
    two,
    write_sweep,
)

from pipeline.bench.report import write_report


def rows_of(text: str) -> dict[str, list[str]]:
    """The first table's rows by job, split where columns are apart."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith("job "))
    found: dict[str, list[str]] = {}
    for line in lines:
        if not line:
            return found
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        found[cells[0]] = cells
    return found


def test_a_row_stands_beside_the_baseline_with_an_interval_and_a_verdict(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", completed([100.0 + i for i in range(7)]), completed([200.0 + 3 * i for i in range(7)]))
    text = report(sweep)
    assert rows_of(text)["0"][3:] == ["101-105", "1", "53.6", "212", "baseline"]
    assert rows_of(text)["1"][2:5] == ["209", "203-215", "2.03 (2.01-2.05)"]
    assert rows_of(text)["1"][-1] == "faster"
    assert "fastest: loader.num_workers=2\n" in text


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ([0.5, 0.51, 0.49, 0.5, 0.52, 0.5, 0.48], "slower"),
        ([1.01, 0.99, 1.0, 1.02, 0.98, 1.01, 0.99], "same"),
        ([1.5, 0.7, 1.0, 1.6, 0.6, 1.2, 0.9], "cannot tell"),
    ],
)
def test_the_verdict_is_what_the_interval_says(tmp_path: Path, factors: list[float], verdict: str) -> None:
    sweep = two(tmp_path / "s", completed([100.0] * 7), completed([100 * factor for factor in factors]))
    text = report(sweep)
    assert rows_of(text)["1"][-1] == verdict
    assert ("bench.repeats=" in text) == (verdict == "cannot tell")
    assert ("not told apart from the fastest: " in text) == (verdict != "slower")


def test_cannot_tell_says_how_many_rounds_would_tell_the_difference_that_was_asked_for(tmp_path: Path) -> None:
    noisy = [100 * factor for factor in (1.3, 0.8, 1.0, 1.2, 0.8, 1.1, 0.9)]
    sweep = two(tmp_path / "s", completed([100.0] * 7), completed(noisy, config={"bench.tell_pct": 20.0}))
    (line,) = [line for line in report(sweep).splitlines() if line.startswith("cannot tell")]
    before, after = "cannot tell 1 from the baseline: bench.repeats=", " would tell 20 %, "
    assert line.startswith(before)
    number, is_there, _ = line.removeprefix(before).partition(after)
    assert is_there
    assert int(number) > 7


def test_drift_that_all_trials_share_is_not_their_difference(tmp_path: Path) -> None:
    drift = [1.0, 0.7, 0.5, 0.9, 0.6, 0.8, 0.4]
    sweep = two(tmp_path / "s", completed([100 * d for d in drift]), completed([110 * d for d in drift]))
    assert rows_of(report(sweep))["1"][4] == "1.10 (1.10-1.10)"


def test_too_few_rounds_have_the_least_and_the_greatest_ratio_and_no_interval(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", completed([100.0, 100.0, 100.0]), completed([200.0, 300.0, 250.0]))
    text = report(sweep)
    assert rows_of(text)["1"][2:5] == ["250", "[200-300]", "2.50 [2.00-3.00]"]
    assert rows_of(text)["1"][-1] == "cannot tell"
    assert "[least-greatest]: no interval (3 rounds; 7 are needed)" in text
    assert "not told apart: the fastest and the others, for want of rounds" in text


def test_rounds_are_paired_by_their_number_and_not_by_their_place(tmp_path: Path) -> None:
    late = completed([500.0, 10.0, 20.0], first_round=1)  # its round 2 was interleaved with the other's last one
    sweep = two(tmp_path / "s", completed([1.0, 5.0, 2.0]), late)
    assert rows_of(report(sweep))["1"][4] == "52.5 [5.00-100]"


@pytest.mark.parametrize("sittings", [("one", "another"), (None, None)], ids=["two sittings", "no sitting"])
def test_rounds_that_were_not_interleaved_give_a_ratio_without_an_interval(
    tmp_path: Path, sittings: tuple[str | None, str | None]
) -> None:
    rates, (one, other) = rates_near(100.0), sittings
    sweep = two(tmp_path / "s", completed(rates, sitting=one), completed([2 * r for r in rates], sitting=other))
    text = report(sweep)
    assert rows_of(text)["1"][4] == "2.00 ?"
    assert rows_of(text)["1"][-1] == "cannot tell"
    assert "?: no common rounds, so a ratio of medians without an interval" in text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"host": HOST | {"name": "vm-2"}}, "host (vm-1 / vm-2)"),
        ({"host": HOST | {"num_usable_cores": 4}}, "usable cores (2 / 4)"),
        ({"dataset": "feed5a1ad0000000", "num_samples": 900}, "data set (3fa1c09b7d5e / feed5a1ad000)"),
        ({"dataset": None, "num_samples": 900}, "data set (3fa1c09b7d5e / 900 samples)"),
    ],
    ids=["host", "cores", "data", "data without a fingerprint"],
)
def test_machines_and_data_sets_are_not_mixed(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    trials = [(f"x={i}", completed(rates_near(100.0 * (i + 1)), **(changes if i > 1 else {}))) for i in range(4)]
    sweep = write_sweep(tmp_path / "s", trials)
    text = report(sweep)
    assert f"2 sections, not compared with each other: they differ in {what}\n" in text
    assert [row["verdict"] for row in csv_of(sweep)] == ["baseline", "faster", "baseline", "faster"]
    assert [row["section"] for row in csv_of(sweep)] == ["0", "0", "1", "1"]
    assert [round(float(row["vs_baseline"] or 1), 1) for row in csv_of(sweep)] == [1, 2, 1, 1.3]
    assert text.count("fastest: ") == 2
    assert "## Section 2" in (sweep / "report.md").read_text()


def test_another_commit_version_or_number_of_samples_is_a_warning_that_names_it(tmp_path: Path) -> None:
    other = {"commit": "c0ffee-dirty", "versions": VERSIONS | {"torch": "2.10.0"}, "num_samples": 1792}
    text = report(two(tmp_path / "s", completed(rates_near(100.0)), completed(rates_near(200.0), **other)))
    assert f"warning: different commits: {COMMIT} in 0; c0ffee-dirty in 1\n" in text
    assert "warning: different versions: torch 2.9.0 in 0; torch 2.10.0 in 1\n" in text
    assert "warning: different numbers of samples: 1800 in 0; 1792 in 1\n" in text
    assert rows_of(text)["1"][-1] == "faster"


def test_failed_skipped_and_unmeasured_trials_have_rows_and_lines(tmp_path: Path) -> None:
    trials = [
        ("x=0", completed(rates_near(100.0))),
        ("x=1", failed("RuntimeError: disk\non fire")),
        ("x=2", skipped("ffcv is not installed; make peers")),
        ("x=3", None),
    ]
    sweep, terminal = write_sweep(tmp_path / "s", trials), io.StringIO()
    assert write_report([sweep], sweep, terminal=terminal) == 1
    assert [cells[-1] for cells in rows_of(terminal.getvalue()).values()] == [
        "baseline",
        "failed",
        "skipped",
        "not run",
    ]
    lines = terminal.getvalue().splitlines()
    assert "1 (x=1) failed: RuntimeError: disk on fire" in lines
    assert "2 (x=2) skipped: ffcv is not installed; make peers" in lines
    assert "not run: 3; sweep.resume=DIR measures what is missing" in lines
    assert [row["error"] for row in csv_of(sweep)][1] == "RuntimeError: disk on fire"


def test_a_sweep_of_which_nothing_was_measured_is_shown_without_pictures(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", failed("OSError: no such file"), None)
    assert "0 (num_workers=0) failed: OSError: no such file" in report(sweep)
    assert sorted(path.name for path in sweep.glob("*.*")) == ["report.md", "results.csv", "sweep.json"]


def test_a_damaged_result_is_a_failed_trial_and_the_others_are_shown(tmp_path: Path) -> None:
    sweep = two(tmp_path / "s", completed(rates_near(100.0)), completed(rates_near(200.0)))
    (sweep / "1" / "result.json").write_text('{"status": "comp')
    assert "1 (num_workers=2) failed: result.json is damaged: JSONDecodeError" in report(sweep)


@pytest.mark.parametrize("name", ["1", FAST, "num_workers=2"])
def test_the_baseline_is_named_by_number_or_by_overrides(tmp_path: Path, name: str) -> None:
    sweep = two(tmp_path / "s", completed(rates_near(100.0)), completed(rates_near(200.0)), baseline=name)
    assert [cells[-1] for cells in rows_of(report(sweep)).values()] == ["slower", "baseline"]


def test_a_baseline_without_a_result_is_stood_in_for_and_the_report_says_so(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "s",
        [("r=a", failed("killed by SIGKILL")), ("r=b", completed(rates_near(100.0))), ("r=c", completed([900.0] * 7))],
        published={"c": 2.0},
    )
    text = report(sweep)
    assert [cells[-1] for cells in rows_of(text).values()] == ["failed", "baseline", "faster"]
    assert "the baseline 0 (a) has no result (failed); the others are compared with 1 (b) instead" in text
    assert "beaten" not in text
    assert "names no trial here" in report(two(tmp_path / "t", completed([1.0]), None, baseline="nobody"))


def test_a_row_is_credited_with_its_gain_over_the_row_above_and_over_no_other(tmp_path: Path) -> None:
    results = [completed([rate] * 7) for rate in (100.0, 200.1, 300.3, 600.9)]
    trials = [(f"r={i}", result) for i, result in enumerate(results)]
    sweep = write_sweep(tmp_path / "s", trials, vs_previous=True)
    report(sweep)
    assert [row["vs_previous"][:4] for row in csv_of(sweep)] == ["", "2.00", "1.50", "2.00"]
    (sweep / "2" / "result.json").write_text(json.dumps(failed("RuntimeError: x")))
    report(sweep)
    assert [row["vs_previous"][:4] for row in csv_of(sweep)] == ["", "2.00", "", ""]


def test_a_published_ratio_is_beaten_reached_or_missed_and_a_miss_is_explained_by_what_was_measured(
    tmp_path: Path,
) -> None:
    noisy = [100 * factor for factor in (1.9, 2.3, 2.05, 2.1, 2.0, 2.2, 1.95)]
    rows = {"base": [100.0] * 7, "fast": [300.0] * 7, "even": noisy, "slow": [150.0] * 7}
    trials = [(f"rung={name}", completed(rates)) for name, rates in rows.items()]
    sweep = write_sweep(tmp_path / "s", trials, published={"fast": 2.0, "even": 2.0, "slow": 2.0})
    text = report(sweep)
    shown = [line for line in text.splitlines() if "2.00 " in line and "(slow)" not in line]
    assert [word for word in ("beaten", "reached", "missed") if sum(word in line for line in shown) == 1] == [
        "beaten", "reached", "missed",
    ]  # fmt: skip
    why = " ".join(text[text.index("3 (slow) missed") : text.index("decode ceiling (")].split())
    assert why == (
        "3 (slow) missed 2.00 with 1.50: decode is 1.05 of an image's 1.62 ms of core time; at that, 2 cores give "
        "1,235/s at most, and 12 % of it was used; the decode ceiling would be 18.5 times the baseline; "
        "a resident batch would be 214 times the baseline"
    )


def test_a_miss_without_measured_stages_names_no_cause(tmp_path: Path) -> None:
    silent = dict.fromkeys(("read_ms", "decode_ms", "transform_ms", "decode_ceiling_per_sec", "resident_per_sec"))
    trials = [("rung=a", completed([100.0] * 7, **silent)), ("rung=b", completed([150.0] * 7, **silent))]
    text = report(write_sweep(tmp_path / "s", trials, published={"b": 2.0}))
    assert "\n1 (b) missed 2.00 with 1.50\n" in text


def test_cold_rates_are_a_column_where_they_were_measured_and_a_warning_where_they_are_warm(tmp_path: Path) -> None:
    warm = completed(rates_near(100.0))
    assert "cold images/s" not in report(two(tmp_path / "s", warm, warm))
    cold = completed(rates_near(200.0), cold_samples_per_sec=12_345.6, cold_resident_pct=40.2)
    text = report(two(tmp_path / "t", warm, cold))
    assert "cold images/s" in text
    assert "12,346" in text
    assert "warning: cold is not cold in 1: up to 40 % of the files stayed in the page cache" in text


def test_the_line_to_paste_is_quoted_for_a_shell_and_starts_no_sweep(tmp_path: Path) -> None:
    best = "sweep=ladder rung=a run.name=x bench.contender=torch bench.repeats=9 transforms.mean=[0.1,0.2,0.3] +run.b=1"
    sweep = write_sweep(tmp_path / "s", [("rung=b", completed([1.0])), (best, completed([2.0]))])
    assert "fastest: rung=a bench.contender=torch 'transforms.mean=[0.1,0.2,0.3]'\n" in report(sweep)


@pytest.mark.parametrize("num", [1, 3, 12, 40])
def test_nothing_is_wider_than_100_columns_and_nothing_is_cut(tmp_path: Path, num: int) -> None:
    text = report(many(tmp_path / "s", num, awkward=True))
    lines = [line for line in text.splitlines() if not line.startswith(("fastest: ", "report: "))]
    assert max(map(len, lines)) <= 100
    assert "…" not in text
    assert num == 1 or f"transforms.mean=[{num - 1}.4914".removeprefix("transforms.") in text


def test_columns_that_do_not_fit_move_to_a_second_table(tmp_path: Path) -> None:
    heads = [line.split() for line in report(ladder(tmp_path / "s")).splitlines() if line.startswith("job ")]
    assert [line[:2] for line in heads] == [["job", "rung"], ["job", "rung"]]
    words = [word for line in heads for word in line]
    assert [words.count(word) for word in ("images/s", "published", "previous", "memory", "hit", "CPU-s")] == [1] * 6
