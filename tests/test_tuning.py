"""`tune=true`: what is tried, what is chosen by which costs, and that a run is the same but for its speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import assert_same_run, command, run, short_run, summary

from pipeline.config import Cache, ConfigError, Dist, Run
from pipeline.stalls import Costs
from pipeline.training.tuning.cell import Cell, Served, all_cells, shortlist
from pipeline.training.tuning.tune import FILE, _allowed, _gains, believed, tune

NUM_CORES = 4


def served(
    *, read: float = 0.0, decode: float = 0.0, transform: float = 0.0, cpu: float | None = None, step: float
) -> Served:
    """Milliseconds a sample; a step on four threads takes `step`, on fewer as many times as long."""
    stages = {"read": read, "decode": decode, "transform": transform, "collate": 0.0, "transfer": 0.0}
    busy = read + decode + transform
    costs = Costs(
        num_samples=1000,
        num_batches=10,
        wall_s=1.0,
        wait_s=1.0,
        cpu_s=1.0,
        sample_s={stage: spent / 1e3 for stage, spent in {**stages, "busy": busy, "making_cpu": busy}.items()},
    )
    return Served(
        costs=costs,
        sample_cpu_s=(busy if cpu is None else cpu) / 1e3,
        step_s={count: step * NUM_CORES / count / 1e3 for count in (1, 2, 4)},
        step_cpu_s=dict.fromkeys((1, 2, 4), step * NUM_CORES / 1e3),
        num_cores=NUM_CORES,
        prefetched_batches=0,
    )


def cell(num_workers: int, num_threads: int, *, threads_per_worker: int = 1) -> Cell:
    return Cell(num_workers=num_workers, threads_per_worker=threads_per_worker, num_threads=num_threads)


@pytest.mark.parametrize(
    ("costs", "first", "per_sec"),
    [
        (served(read=8.0, cpu=0.2, step=0.1), cell(32, 2), 1e3 / 0.25),
        (served(decode=4.0, step=0.01), cell(4, 1), 1e3 / 1.01),
        (served(decode=0.1, step=4.0), cell(1, 4), 1e3 / 4.025),
        (served(decode=1.0, step=0.75), cell(1, 4), 1e3 / 1.0),
    ],
    ids=["storage is waited for", "decoding takes the cores", "the model takes the cores", "both want them"],
)
def test_what_is_tried_first_is_what_the_costs_promise_most_with_the_least_it_takes(
    costs: Served, first: Cell, per_sec: float
) -> None:
    cells = all_cells(NUM_CORES, in_processes=False)
    tried = shortlist(cells, costs, beside=cell(4, 1), count=4)
    assert costs.per_sec(tried[0]) == pytest.approx(max(map(costs.per_sec, cells)), rel=1e-3)
    assert tried[0] == first
    assert costs.per_sec(first) == pytest.approx(per_sec)
    assert cell(4, 1) in tried
    assert len(tried) <= 5


def test_of_cells_that_promise_the_same_few_are_tried() -> None:
    costs = served(decode=0.1, step=4.0)
    tried = shortlist(all_cells(NUM_CORES, in_processes=False), costs, beside=cell(4, 1), count=2)
    assert tried == [cell(1, 4), cell(4, 4), cell(4, 1)]


def test_processes_are_as_many_as_cores_and_have_threads_for_what_waits() -> None:
    cells = all_cells(NUM_CORES, in_processes=True)
    assert max(cell.num_workers for cell in cells) == NUM_CORES
    assert cell(4, 1, threads_per_worker=8) in cells
    assert cell(2, 4) in cells


def test_a_store_of_pixels_leaves_what_comes_after_decoding() -> None:
    kept = served(read=1.0, decode=2.0, transform=1.0, step=0.01).with_kept_pixels()
    assert kept.per_sec(cell(1, 4)) == pytest.approx(1000)
    assert kept.sample_cpu_s == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("loader", "of_run", "left"),
    [
        ({"num_workers": 3}, {}, {cell(3, 1), cell(3, 2), cell(3, 4)}),
        ({"num_workers": "auto"}, {"num_threads": 2}, {cell(0, 2), cell(1, 2), cell(2, 2)}),
        ({"num_workers": 3}, {"num_threads": 3}, {cell(3, 3)}),
    ],
    ids=["workers", "torch's threads", "both"],
)
def test_what_is_set_is_left_as_it_is(loader: dict[str, Any], of_run: dict[str, Any], left: set[Cell]) -> None:
    cfg = replace(short_run(Path("images"), loader=loader), run=Run(device="cpu", **of_run))  # type: ignore[arg-type]
    allowed = set(_allowed(cfg, all_cells(NUM_CORES, in_processes=False)))
    assert left <= allowed
    assert len({cell.num_workers for cell in allowed}) == 1 or loader["num_workers"] == "auto"
    assert len({cell.num_threads for cell in allowed}) == 1 or "num_threads" not in of_run


@pytest.mark.parametrize(
    "groups", [{"dist": Dist(nproc=2)}, {"run": Run(evaluate_only=True), "init_from": "weights.pt"}], ids=str
)
def test_ranks_and_evaluation_are_not_tuned(groups: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tune=true is for one process that trains"):
        replace(short_run(Path("images")), tune=True, **groups)


def test_where_nothing_is_left_to_choose_nothing_is_measured(tmp_path: Path) -> None:
    said: list[str] = []
    cfg = replace(short_run(tmp_path / "none", loader={"num_workers": 3}), cache=Cache(policy="lru"))  # type: ignore[arg-type]
    assert tune(cfg, tmp_path, said.append) is cfg
    assert said == [
        "tune=true has nothing to choose: workers, run.num_threads and a store are set; nothing is measured"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_tuned_run_is_the_run_with_the_overrides_it_names_and_goes_on_with_them(
    images: Path, tmp_path: Path, faults: Path
) -> None:
    tuned = command(images, "loader.num_workers=auto", "tune=true", "run.name=tuned")
    cut = run([*tuned, "run.max_steps=5"], cwd=tmp_path, faults=faults)
    assert cut.returncode == 0, cut.stderr
    found = json.loads((tmp_path / "outputs/train/tuned" / FILE).read_text())
    assert f"tuned in {found['took_s']:.1f} s: {' '.join(found['overrides'])}" in cut.stderr
    assert "run.num_threads=1" in found["overrides"], "it was set"
    config = summary(tmp_path / "outputs/train/tuned")["config"]
    assert config["loader"]["num_workers"] == found["cell"]["num_workers"]
    later = run([*tuned, "run.max_steps=null", "resume=auto"], cwd=tmp_path, faults=faults)
    assert later.returncode == 0, later.stderr
    assert "tuned in" not in later.stderr
    plain = [
        argument for argument in tuned if argument not in ("tune=true", "run.name=tuned", "loader.num_workers=auto")
    ]
    by_hand = run([*plain, *found["overrides"], "run.name=by_hand"], cwd=tmp_path, faults=faults)
    assert by_hand.returncode == 0, by_hand.stderr
    assert_same_run(tmp_path / "outputs/train/tuned", tmp_path / "outputs/train/by_hand")


def test_a_cell_is_believed_by_its_costs_and_by_its_trials() -> None:
    assert believed(653, [513, 452, 573]) > believed(543, [518, 505, 532])
    assert believed(700, [100, 100, 100]) < believed(300, [290, 280, 310])
    assert believed(300, []) == 300


def test_pixels_are_kept_where_that_makes_the_best_cell_faster() -> None:
    cells = all_cells(NUM_CORES, in_processes=False)
    assert _gains(served(decode=4.0, transform=1.0, step=0.1), cells)
    assert not _gains(served(decode=0.2, transform=0.1, step=4.0), cells)
    assert not _gains(served(decode=0.1, transform=4.0, step=0.1), cells)


@pytest.mark.parametrize(("store", "policy"), [("cache=lru", "lru"), ("preload=ram", "none")])
def test_a_store_that_is_chosen_stays(images: Path, tmp_path: Path, faults: Path, store: str, policy: str) -> None:
    finished = run(command(images, "tune=true", store, "run.name=stays"), cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    assert summary(tmp_path / "outputs/train/stays")["config"]["cache"]["policy"] == policy
