"""The files of a sweep's report, several sweeps in one, and the command line that rebuilds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sweeps import completed, csv_of, failed, ladder, rates_near, report, two, write_sweep

from pipeline.bench.sweep_dir import read_sweeps
from pipeline.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def test_the_csv_has_every_number_in_a_fixed_order_and_no_formula(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "s", [("+a.b=1", completed([100.0] * 7, novel_number=4.5)), ("+a.b=2", failed("=1+1"))]
    )
    report(sweep)
    first, second = csv_of(sweep)
    columns = list(first)
    assert columns[:8] == [
        "job",
        "section",
        "status",
        "verdict",
        "a.b",
        "overrides",
        "samples_per_sec",
        "samples_per_sec_min",
    ]
    assert columns[-2:] == ["novel_number", "error"]
    assert (first["samples_per_sec"], first["novel_number"], first["rounds"]) == ("100.0", "4.5", "7")
    assert (first["overrides"], second["error"], second["samples_per_sec"]) == ("'+a.b=1", "'=1+1", "")
    result = json.loads((sweep / "0" / "result.json").read_text())
    numbers = [key for key, value in result.items() if isinstance(value, int | float)]
    assert set(numbers) <= set(columns)


def test_the_markdown_has_whole_tables_conditions_and_its_pictures(tmp_path: Path) -> None:
    sweep = ladder(tmp_path / "s")
    report(sweep)
    text = (sweep / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| job")]
    assert [len(table) for table in tables] == [9, 9]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    for said in (
        "python bench.py -m sweep=ladder",
        "2026-11-22 20:00:00",
        "torch 2.9.0",
        "7 rounds, 50 batches of 32",
        "![Images per second by rung](throughput.png)",
        "- fastest: `rung=all`",
        "## How to read it",
    ):
        assert said in text
    assert (sweep / "throughput.png").stat().st_size > 10_000


def test_a_pipe_in_an_override_does_not_break_the_markdown_table(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", [("x=a|b", completed([1.0])), ("x=c", failed("a | b"))])
    report(sweep)
    assert r"| 0 | a\|b |" in (sweep / "report.md").read_text()


def test_the_same_files_give_the_same_report_to_the_byte(tmp_path: Path) -> None:
    sweep = ladder(tmp_path / "s")
    names = ("report.md", "results.csv", "throughput.png")
    texts = [(report(sweep), *((sweep / name).read_bytes() for name in names)) for _ in range(2)]
    assert texts[0] == texts[1]


def test_several_sweeps_are_merged_and_only_rounds_of_one_sweep_are_paired(tmp_path: Path) -> None:
    rates = rates_near(100.0)
    two(tmp_path / "x", completed(rates), completed([2 * r for r in rates]))
    base = {"bench": {"tell_pct": 10.0}, "transforms": {"size": 96}}
    two(tmp_path / "y", completed(rates), completed([4 * r for r in rates]), base=base)
    text = report(tmp_path / "x", tmp_path / "y", out=tmp_path / "both")
    assert f"\na: {tmp_path}" in text
    assert [row["job"] for row in csv_of(tmp_path / "both")] == ["a/0", "a/1", "b/0", "b/1"]
    assert [row["vs_baseline_is_interval"] for row in csv_of(tmp_path / "both")] == ["", "True", "False", "False"]
    assert [row["transforms.size"] for row in csv_of(tmp_path / "both")] == ["", "", "96", "96"]
    assert "fastest: loader.num_workers=2\n" in text


def test_a_sweeps_own_names_hold_beside_another_sweep(tmp_path: Path) -> None:
    def rung(name: str, rate: float) -> tuple[str, dict[str, Any]]:
        return f"rung={name}", completed(rates_near(rate))

    write_sweep(tmp_path / "x", [rung("a", 100.0), rung("b", 300.0)], published={"b": 2.0})
    write_sweep(tmp_path / "y", [("loader.num_workers=1", completed(rates_near(50.0)))])
    assert "2.00 beaten" in report(tmp_path / "x", tmp_path / "y", out=tmp_path / "both")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no sweep.json; give the directory of a sweep, of bench.py -m"),
        ("{", "is damaged: JSONDecodeError"),
        ('{"program": "train"}', "is a sweep of train.py; give one of bench.py"),
        ('{"program": "bench", "command": "", "began": "", "base": {}, "jobs": []}', "lists no jobs"),
    ],
    ids=["none", "damaged", "train", "empty"],
)
def test_a_wrong_directory_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_sweeps([tmp_path])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "pipeline.bench.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_command_line_rebuilds_and_merges_and_its_exit_code_tells(tmp_path: Path) -> None:
    good = two(tmp_path / "good", completed(rates_near(100.0)), completed(rates_near(200.0)))
    bad = two(tmp_path / "bad", completed(rates_near(100.0)), failed("RuntimeError: x"))
    finished = run(good)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.endswith(f"report: {good / 'report.md'}\n")
    assert run(good, bad, "--out", tmp_path / "both").returncode == 1
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["report.md", "results.csv", "throughput.png"]


@pytest.mark.parametrize("given", [["{empty}"], ["{good}", "{bad}"], ["{good}", "{good}", "--out", "{empty}/out"]])
def test_the_command_line_refuses_in_one_line_with_exit_code_2(tmp_path: Path, given: list[str]) -> None:
    places = {name: tmp_path / name for name in ("good", "bad", "empty")}
    for name in ("good", "bad"):
        two(places[name], completed([1.0]), None)
    places["empty"].mkdir()
    finished = run(*(argument.format(**places) for argument in given))
    assert (finished.returncode, finished.stdout, finished.stderr.count("\n")) == (2, "", 1)
    assert not list(places["empty"].iterdir())


def test_asking_for_help_and_for_a_table_loads_no_torch_and_help_no_matplotlib(tmp_path: Path) -> None:
    nothing = two(tmp_path / "s", None, None)
    script = (
        "import sys\nfrom pipeline.bench.report import main\n"
        f"assert main([{str(nothing)!r}]) == 0\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
        "main(['--help'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
