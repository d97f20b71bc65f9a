"""The stall report: whose time it was, what bounds a run, what would help, and what it costs to know."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from delays import OF_SAMPLES, STAGES, delay_above_all, report_of
from fakes import write_jpegs
from runs import short_run
from watching import SOAK

from pipeline.config import Cache, Run, Schedule, TrainConfig
from pipeline.stalls.advice import Machine, advise
from pipeline.stalls.bound import Lane, find_bound, predicted_s
from pipeline.stalls.costs import Costs, stage_costs
from pipeline.stalls.report import explain
from pipeline.stats import Lanes as LanesOf

THREADS = LanesOf(num_threads=2, queue_batches=2, prefetched_batches=0)
SERIAL = LanesOf(num_threads=0, queue_batches=0, prefetched_batches=0)
PREFETCHED = LanesOf(num_threads=2, queue_batches=2, prefetched_batches=2)


def costs_of(*, compute: float = 1.0, overhead: float = 0.0, cpu: float = 0.0, **sample_ms: float) -> Costs:
    """Of 1,000 samples in 10 batches; all in milliseconds a sample."""
    stages = dict.fromkeys(("read", "decode", "transform", "collate", "transfer"), 0.0) | sample_ms
    stages.setdefault("busy", sum(stages[stage] for stage in ("read", "decode", "transform")))
    return Costs(
        num_samples=1000,
        num_batches=10,
        num_ahead=0,
        wall_s=2.0,
        wait_s=0.5,
        first_batch_s=0.0,
        compute_s=compute,
        overhead_s=overhead,
        cpu_s=cpu,
        sample_s={stage: spent_ms / 1e3 for stage, spent_ms in ({"making_cpu": 0.0} | stages).items()},
        num_calls=4000,
        queue_pct=50.0,
        prefetch_pct=None,
    )


def config(**groups: Any) -> TrainConfig:
    """A run of ten epochs; `groups` are whole ones."""
    return replace(short_run(Path("images")), **({"schedule": Schedule(epochs=10)} | groups))


def machine(*, num_cores: int = 4, free_gib: float = 8.0, decoded_gib: float = 1.0) -> Machine:
    return Machine(
        num_cores=num_cores,
        computes=True,
        free_bytes=lambda: int(free_gib * 2**30),
        decoded_bytes=lambda: decoded_gib * 2**30,
    )


@pytest.mark.parametrize(
    ("lanes", "costs", "lane", "stage", "pace_ms"),
    [
        (THREADS, costs_of(read=0.2, decode=1.4, transform=0.6), Lane.workers, "decode", 1.1),
        (THREADS, costs_of(read=0.2, decode=1.0, transform=0.6), Lane.loop, "compute", 1.0),
        (THREADS, costs_of(compute=0.4, decode=1.0, collate=0.5), Lane.loop, "collate", 0.9),
        (THREADS, costs_of(compute=0.4, overhead=0.9, decode=1.0), Lane.loop, "overhead", 1.3),
        (THREADS, costs_of(decode=0.4, busy=3.0), Lane.workers, "beside", 1.5),
        (PREFETCHED, costs_of(compute=0.8, collate=0.3, transfer=0.6), Lane.prefetcher, "transfer", 0.9),
        (PREFETCHED, costs_of(compute=0.8, collate=0.3, transfer=0.4), Lane.loop, "compute", 0.8),
        (SERIAL, costs_of(compute=0.6, read=0.1, decode=0.7, transform=0.3), Lane.loop, "decode", 1.7),
        (replace(SERIAL, prefetched_batches=2), costs_of(compute=0.6, decode=0.7), Lane.prefetcher, "decode", 0.7),
    ],
)
def test_the_slowest_lane_sets_the_pace_and_its_largest_stage_is_named(
    lanes: LanesOf, costs: Costs, lane: Lane, stage: str, pace_ms: float
) -> None:
    bound = find_bound(costs, lanes)
    assert (bound.lane, bound.stage) == (lane, stage)
    assert bound.pace_s == pytest.approx(pace_ms / 1e3)


def test_an_epoch_takes_its_first_batch_the_pace_of_the_slowest_lane_and_the_last_step() -> None:
    costs = replace(costs_of(compute=0.5, decode=2.0), first_batch_s=0.3)
    assert predicted_s(costs, THREADS) == pytest.approx(0.3 + 0.9 * 1.0 + 0.05)
    assert predicted_s(replace(costs, num_ahead=200), THREADS) == pytest.approx(0.3 + 0.8 * 1.0 + 0.05)
    assert predicted_s(costs, SERIAL) == pytest.approx(0.3 + 0.9 * 2.5 + 0.25)


@pytest.mark.parametrize(
    ("lanes", "costs", "options", "override", "speedup"),
    [
        (THREADS, costs_of(compute=0.5, read=3.0, cpu=1.0), {}, "loader.num_workers=6", 3.0),
        (
            SERIAL,
            costs_of(compute=1.0, decode=1.0, cpu=2.0),
            {"schedule": Schedule(epochs=1)},
            "loader.num_workers=1",
            2,
        ),
        (THREADS, costs_of(compute=0.3, decode=2.0, transform=1.0, cpu=5.8), {}, "cache=pinned", 1.36),
        (THREADS, costs_of(compute=2.0, decode=1.0, cpu=7.6), {}, "cache=pinned", 1.15),
        (THREADS, costs_of(compute=0.3, decode=0.8, collate=0.5), {}, "prefetch=cpu", 1.6),
        (
            THREADS,
            costs_of(compute=0.5, overhead=0.5, decode=0.8),
            {"run": Run(save_every_steps=5)},
            "run.save_every_steps=null",
            2.0,
        ),
    ],
    ids=[
        "storage waits",
        "nothing overlaps",
        "cores are busy",
        "workers have the model's cores",
        "collating is in the way",
        "checkpoints are",
    ],
)
def test_the_override_that_promises_most_is_told(
    lanes: LanesOf, costs: Costs, options: dict[str, Any], override: str, speedup: float
) -> None:
    advice = advise(costs, lanes, config(**options), machine())
    assert advice.override == override
    assert advice.speedup == pytest.approx(speedup, rel=0.03)


@pytest.mark.parametrize(
    ("costs", "options", "here", "why"),
    [
        (costs_of(decode=0.4), {}, machine(), "compute sets the pace"),
        (
            costs_of(compute=0.3, decode=4.0, cpu=7.6),
            {"schedule": Schedule(epochs=1)},
            machine(),
            "cores are 95 % busy",
        ),
        (costs_of(compute=0.3, decode=4.0, cpu=7.6), {}, machine(decoded_gib=7.0), "decode sets the pace"),
        (
            costs_of(compute=0.3, decode=4.0, cpu=7.6),
            {"cache": Cache(policy="pinned")},  # type: ignore[arg-type]
            machine(),
            "decode sets the pace",
        ),
    ],
    ids=["compute", "one epoch", "no room", "a cache already"],
)
def test_where_nothing_would_help_it_says_so(costs: Costs, options: dict[str, Any], here: Machine, why: str) -> None:
    advice = advise(costs, THREADS, config(**options), here)
    assert advice.override is None
    assert why in advice.why


def test_costs_are_of_what_was_made_and_what_was_handed_over() -> None:
    begin = {"samples": 100, "busy_count": 120, "decode_count": 60, "decode_ms": 2.0, "collate_count": 100}
    end = {"samples": 300, "busy_count": 330, "busy_ms": 1.0, "decode_count": 90, "decode_ms": 2.0}
    sample_s, num_calls = stage_costs(begin, end | {"collate_count": 300, "collate_ms": 0.5})
    assert sample_s["decode"] == pytest.approx(30 * 2.0e-3 / 210), "a sample that a cache had is a sample too"
    assert sample_s["collate"] == pytest.approx(300 * 0.5e-3 / 200)
    assert num_calls == 210 + 30 + 200


def test_a_report_of_epochs_is_of_all_of_them_and_its_bound_of_most_of_the_time() -> None:
    cold = replace(costs_of(compute=0.5, decode=4.0), wall_s=2.1)
    warm = replace(costs_of(compute=0.5, decode=0.0), wall_s=0.6)
    report = explain([cold, *([warm] * 4)], THREADS, config(), machine())
    assert report is not None
    assert report.bound.stage == "compute"
    assert report.measured_per_sec == pytest.approx(5000 / 4.5)
    assert report.costs.sample_s["decode"] == pytest.approx(0.8e-3)
    assert report.advice.override is None


def test_a_report_fits_100_columns() -> None:
    costs = costs_of(compute=0.3, overhead=0.1, read=0.1234, decode=22.345, transform=11.1, collate=0.2, transfer=0.1)
    report = explain([costs], PREFETCHED, config(), machine())
    assert report is not None
    assert max(map(len, report.lines())) <= 100
    assert "bound by   decode" in "\n".join(report.lines())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for name in ("cats", "dogs"):
        write_jpegs(root / name, 150 if SOAK else 60, height=240, width=320)
    return root


def random_config(root: Path, choose: random.Random, stage: str) -> TrainConfig:
    """Workers, batches and queues as they come; a prefetcher where `stage` is its."""
    return short_run(
        root,
        loader={
            "num_workers": choose.choice([0, 1, 2, 3]),
            "batch_size": choose.choice([4, 6, 10]),
            "prefetch_factor": choose.choice([2, 3]),
        },
        prefetch={"device": "cpu" if stage == "transfer" else choose.choice(["none", "cpu"])},
        schedule={"epochs": 2},
    )


@pytest.mark.soak
@pytest.mark.parametrize("case", range(24 if SOAK else len(STAGES)))
def test_a_delay_is_found_at_its_stage(photographs: Path, case: int) -> None:
    stage, choose = STAGES[case % len(STAGES)], random.Random(case)
    cfg = random_config(photographs, choose, stage)
    compute_s = choose.uniform(2e-3, 8e-3) if stage != "compute" else 0.0
    before = report_of(cfg, compute_s=compute_s)
    # At reduced count the machine is everybody's: there it stands further out.
    delay_s = delay_above_all(before, stage, factor=1.3 if SOAK else 3.0)
    after = report_of(cfg, stage=stage, delay_s=delay_s, compute_s=compute_s)
    assert after.bound.stage == stage, f"{cfg.loader} {after.numbers()}"
    spent_s = after.costs.wait_s + after.costs.compute_s + after.costs.overhead_s
    assert spent_s == pytest.approx(after.costs.wall_s, rel=0.05)


def test_a_stage_of_a_sample_in_worker_processes_is_counted_too(photographs: Path) -> None:
    cfg = short_run(photographs, loader={"num_workers": 1, "backend": "processes"})
    costs = report_of(cfg).costs
    for stage in (*OF_SAMPLES, "busy", "making_cpu"):
        assert costs.sample_s[stage] > 0, stage
    assert costs.sample_s["busy"] >= sum(costs.sample_s[stage] for stage in OF_SAMPLES)
    assert 0 < costs.sample_s["making_cpu"] < costs.cpu_s / costs.num_samples


def test_waiting_for_workers_is_not_collating(photographs: Path) -> None:
    report = report_of(short_run(photographs, loader={"num_workers": 1}), stage="read", delay_s=5e-3)
    assert report.costs.sample_s["collate"] < report.costs.sample_s["read"] / 3
    assert report.bound.stage == "read"
