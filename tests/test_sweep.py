"""A multirun of bench.py as a user runs it: real processes that raise, are killed and hang, and a sweep resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jpegs

from pipeline.bench.sweep_file import SweepFile
from pipeline.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]
QUICK = (
    "data=folder", "data.val_fraction=0.1", "loader.batch_size=4",
    "bench.batches=2", "bench.warmup=0", "bench.references=false",
)  # fmt: skip

# Python runs a sitecustomize before anything else: trial 5 is killed, trial 7 never gets further, trial 3 raises in its
# measuring; the others measure nothing and say so at once.
FAULTS = """
import os, signal, sys, threading, types

arguments = sys.orig_argv
if "pipeline.bench.child" in arguments:
    trial, healed = int(arguments[arguments.index("--trial") + 1]), os.path.exists({healed!r})
    if trial == 5 and not healed:
        os.kill(os.getpid(), signal.SIGKILL)
    if trial == 7 and not healed:
        threading.Event().wait()

    def measure(config, *, repeats, references, wait_turn):
        if trial == 3 and not healed:
            raise ValueError("truncated JPEG")
        told = {{"round": 0, "sitting": None, "samples_per_sec": 100.0 + trial, "samples_per_cpu_sec": 50.0}}
        return {{"status": "completed", "contender": "headrace", **told, "repeats": [told]}}

    module = sys.modules["pipeline.bench.trial"] = types.ModuleType("pipeline.bench.trial")
    module.measure = measure
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        write_jpegs(tmp_path / "images" / name, 4)
    return tmp_path / "images"


def bench(*overrides: str, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if site is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "bench.py"), *overrides, *QUICK]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=400, check=False)


def results(sweep: Path) -> dict[int, dict[str, Any]]:
    return {int(path.parent.name): json.loads(path.read_text()) for path in sorted(sweep.glob("*/result.json"))}


def processes(sweep: Path) -> dict[str, int]:
    """How many processes each trial has had: they write their logs."""
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in sweep.glob("*/rounds/*.json")}


def test_of_twelve_trials_one_raises_one_is_killed_one_hangs_and_the_others_are_measured_and_only_they_run_again(
    images: Path, tmp_path: Path
) -> None:
    site, healed = tmp_path / "site", tmp_path / "healed"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FAULTS.format(healed=str(healed)))
    sizes = ",".join(str(16 + number) for number in range(12))
    command = ("-m", f"data.root={images}", f"transforms.size={sizes}", "bench.repeats=1", "bench.timeout_s=10")
    finished = bench(*command, "run.name=twelve", cwd=tmp_path, site=site)
    sweep = tmp_path / "outputs/bench/multirun/twelve"
    found = results(sweep)
    assert finished.returncode == 1, finished.stderr
    status = {number: result["status"] for number, result in found.items()}
    assert status == {number: "failed" if number in (3, 5, 7) else "completed" for number in range(12)}
    causes = ("ValueError: truncated JPEG", "killed by SIGKILL", "still running after bench.timeout_s=10, killed")
    assert tuple(found[number]["error"] for number in (3, 5, 7)) == causes
    assert all(cause in finished.stdout for cause in causes)

    before = processes(sweep)
    healed.touch()
    resumed = bench(*command, f"sweep.resume={sweep}", cwd=tmp_path, site=site)
    assert resumed.returncode == 0, resumed.stderr
    assert {result["status"] for result in results(sweep).values()} == {"completed"}
    after = processes(sweep)
    assert {number for number in after if after[number] != before.get(number)} == {"3", "5", "7"}
    assert len((sweep / "results.csv").read_text().splitlines()) == 13


def test_rounds_alternate_between_fresh_processes_and_the_winner_is_ready_to_paste(
    images: Path, tmp_path: Path
) -> None:
    finished = bench(
        "-m", f"data.root={images}", "bench.contender=torch,headrace", "loader.num_workers=1", "bench.repeats=2",
        "run.name=two", cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    sweep = tmp_path / "outputs/bench/multirun/two"
    found = results(sweep)
    assert [[repeat["round"] for repeat in result["repeats"]] for result in found.values()] == [[0, 1], [0, 1]]
    assert len({repeat["sitting"] for result in found.values() for repeat in result["repeats"]}) == 1
    lines = [line for line in finished.stderr.splitlines() if line.startswith("round ")]
    assert [line[:7] for line in lines] == ["round 1", "round 1", "round 2", "round 2"]
    both = {"bench.contender=torch", "bench.contender=headrace"}
    assert {line.split(", ", 1)[1].split(":")[0] for line in lines[:2]} == both
    assert re.search(r"^fastest: .*bench\.contender=(torch|headrace)\b", finished.stdout, re.MULTILINE)
    assert (sweep / "report.md").exists()
    assert (sweep / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert (sweep / "0/.hydra/overrides.yaml").exists()


def test_a_sweep_is_not_resumed_with_another_configuration_nor_written_over(images: Path, tmp_path: Path) -> None:
    base = ("-m", f"data.root={images}", "bench.repeats=1", "run.name=one")
    assert bench(*base, cwd=tmp_path).returncode == 0
    again = bench(*base, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "outputs/bench/multirun/one holds a sweep already; change run.name, or use "
        "sweep.resume=outputs/bench/multirun/one\n",
    )
    resume = "sweep.resume=outputs/bench/multirun/one"
    changed = bench(*base[:3], resume, "seed=3", cwd=tmp_path)
    assert changed.returncode == 2
    assert changed.stderr.splitlines()[-1] == "  seed: 0 there, 3 here"
    elsewhere = bench(*base[:3], resume, "hydra/launcher=basic", cwd=tmp_path)
    assert (elsewhere.returncode, elsewhere.stderr.count("\n")) == (2, 1)
    unchanged = bench(*base[:3], resume, "bench.timeout_s=500", cwd=tmp_path)
    assert unchanged.returncode == 0, unchanged.stderr
    nothing = bench(*base[:3], "sweep.resume=outputs", cwd=tmp_path)
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "outputs holds no sweep.json; give the directory of a sweep, of bench.py -m\n",
    )
    single = bench(f"data.root={images}", resume, cwd=tmp_path)
    assert single.stderr == f"{resume} continues a sweep; add -m and what it sweeps over\n"


def test_a_resumed_sweep_says_which_keys_of_its_base_differ() -> None:
    file = SweepFile(command="python bench.py -m a=1,2", began="2026-01-01T00:00:00", sweep={})
    file.add(["a=1"], {"loader": {"batch_size": 64, "num_workers": 2}, "bench": {"timeout_s": 600.0}})
    file.check_unchanged(
        0, {"loader": {"batch_size": 64, "num_workers": 2}, "bench": {"timeout_s": 5.0}}, Path("outputs/s")
    )
    with pytest.raises(ConfigError) as refused:
        file.check_unchanged(
            0, {"loader": {"batch_size": 32, "num_workers": 2}, "bench": {"timeout_s": 600.0}}, Path("outputs/s")
        )
    assert str(refused.value).splitlines() == [
        "sweep.resume=outputs/s was begun with another configuration; begin a new sweep, or use",
        "  python bench.py -m a=1,2",
        "  loader.batch_size: 64 there, 32 here",
    ]


def test_the_baseline_is_the_first_trial_or_the_one_named_by_number_or_overrides() -> None:
    file = SweepFile(
        command="", began="", sweep={}, jobs=[["data=tiny", "a=lru"], ["data=tiny", "a=2"]], configs=[{}, {}]
    )
    assert file.baseline() == 0
    for named in ("1", "a=2"):
        file.sweep = {"baseline": named}
        assert file.baseline() == 1
    file.sweep = {"baseline": "lru"}
    assert file.baseline() == 0
    for named in ("2", "a=3"):
        file.sweep = {"baseline": named}
        assert file.baseline() is None


def test_ctrl_c_keeps_what_is_measured_ends_the_process_that_measures_and_says_how_to_go_on(
    images: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "bench.py"), "-m", *QUICK, f"data.root={images}", "loader.num_workers=0,1"]
    command += ["bench.repeats=3", "run.name=cut"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweep:
        assert sweep.stderr is not None
        for line in sweep.stderr:
            if line.startswith("round 2"):
                break
        sweep.send_signal(signal.SIGINT)
        rest = [line for line in sweep.stderr if not line.startswith("round")]
        assert sweep.wait(60) == 130
    assert rest[-1].startswith("interrupted; what is measured is kept; continue with: python ")
    assert rest[-1].endswith(" sweep.resume=outputs/bench/multirun/cut\n")
    assert not children_left(tmp_path)
    directory = tmp_path / "outputs/bench/multirun/cut"
    kept = [repeat for result in results(directory).values() for repeat in result["repeats"]]
    assert len(kept) >= 3
    resumed = subprocess.run(
        [*command[:-1], "sweep.resume=outputs/bench/multirun/cut"], cwd=tmp_path, capture_output=True, timeout=200
    )
    assert resumed.returncode == 0
    found = [result["repeats"] for result in results(directory).values()]
    assert [sorted(repeat["round"] for repeat in repeats) for repeats in found] == [[0, 1, 2], [0, 1, 2]]
    assert all(repeat in [*found[0], *found[1]] for repeat in kept)


def children_left(cwd: Path) -> list[str]:
    """Processes of a round that still run in this directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if "pipeline.bench.child" in (entry / "cmdline").read_text() and (entry / "cwd").resolve() == cwd:
                found.append(entry.name)
        except OSError:
            continue
    return found
