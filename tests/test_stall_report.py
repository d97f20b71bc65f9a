"""The stall report: whose time it was, what bounds a run, what would help, and what it costs to know."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from delays import OF_SAMPLES, STAGES, Silent, Slow, delay_above_all, learner_for, report_of
from fakes import write_jpegs
from hydra import compose, initialize_config_dir
from runs import ROOT, overrides_for, short_run
from watching import SOAK

from pipeline import build_budget
from pipeline._compat import HYDRA_DEFAULTS
from pipeline.build import build_pipeline
from pipeline.cli import conf_dir
from pipeline.config import Cache, Loader, Prefetch, Run, Schedule, TrainConfig
from pipeline.config.compose import to_config
from pipeline.stalls.advice import Machine, advise
from pipeline.stalls.bound import Lane, find_bound, predicted_s
from pipeline.stalls.costs import Costs, stage_costs
from pipeline.stalls.report import explain
from pipeline.stats import Lanes as LanesOf
from pipeline.training.loop import train_epoch
from pipeline.training.loop_clock import DeviceClock, LoopClock
from pipeline.training.stall_watch import StallWatch, reuses_pixels

THREADS = LanesOf(num_threads=2, queue_batches=2, prefetched_batches=0)
SERIAL = LanesOf(num_threads=0, queue_batches=0, prefetched_batches=0)
PREFETCHED = LanesOf(num_threads=2, queue_batches=2, prefetched_batches=2)


def costs_of(
    *,
    compute: float = 1.0,
    compute_cpu: float | None = None,
    overhead: float = 0.0,
    saving: float = 0.0,
    move: float = 0.0,
    ranks: float = 0.0,
    cpu: float = 0.0,
    device: float | None = None,
    **sample_ms: float,
) -> Costs:
    """Of 1,000 samples in 10 batches; all in milliseconds a sample. `move` is the loop's transfer.

    The loop's thread is on a core for all of its steps unless `compute_cpu` says otherwise.
    """
    stages = (
        dict.fromkeys(("read", "decode", "transform", "collate", "transfer", "making_cpu", "read_cpu"), 0.0) | sample_ms
    )
    stages.setdefault("busy", sum(stages[stage] for stage in ("read", "decode", "transform")))
    return Costs(
        num_samples=1000,
        num_batches=10,
        wall_s=2.0,
        wait_s=0.5,
        loop_s={"compute": compute, "transfer": move, "saving": saving, "ranks": ranks, "overhead": overhead},
        compute_cpu_s=compute if compute_cpu is None else compute_cpu,
        device_s=device,
        cpu_s=cpu,
        sample_s={stage: spent_ms / 1e3 for stage, spent_ms in stages.items()},
        queue_pct=50.0,
    )


def config(**groups: Any) -> TrainConfig:
    """A run of ten epochs; `groups` are whole ones."""
    return replace(short_run(Path("images")), **({"schedule": Schedule(epochs=10)} | groups))


def machine(
    *, num_cores: int = 4, num_threads: int = 1, num_epochs: int = 10, fits: bool = True, computes: bool = True
) -> Machine:
    return Machine(
        num_cores=num_cores,
        computes=computes,
        num_threads=num_threads,
        num_epochs=num_epochs,
        keeps_pixels=lambda: fits,
    )


@pytest.mark.parametrize(
    ("lanes", "costs", "lane", "stage", "pace_ms"),
    [
        (THREADS, costs_of(read=0.2, decode=1.4, transform=0.6), Lane.workers, "decode", 1.1),
        (THREADS, costs_of(read=0.2, decode=1.0, transform=0.6), Lane.loop, "compute", 1.0),
        (THREADS, costs_of(compute=0.4, decode=1.0, collate=0.5), Lane.loop, "collate", 0.9),
        (THREADS, costs_of(compute=0.4, overhead=0.9, decode=1.0), Lane.loop, "overhead", 1.3),
        (THREADS, costs_of(compute=0.4, saving=0.9, decode=1.0), Lane.loop, "saving", 1.3),
        (THREADS, costs_of(compute=0.4, ranks=0.9, decode=1.0), Lane.loop, "ranks", 1.3),
        (THREADS, costs_of(compute=0.4, move=0.7, decode=1.0), Lane.loop, "transfer", 1.1),
        (THREADS, costs_of(compute=0.4, device=0.9, decode=1.0), Lane.device, "compute", 0.9),
        (THREADS, costs_of(compute=0.4, device=0.6, decode=1.4), Lane.workers, "decode", 0.7),
        (THREADS, costs_of(decode=0.4, busy=3.0), Lane.workers, "python", 1.5),
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
    assert predicted_s(costs, SERIAL) == pytest.approx(0.3 + 0.9 * 2.5 + 0.05), "the first batch was made already"


@pytest.mark.parametrize(
    ("lanes", "costs", "options", "here", "override", "speedup"),
    [
        (THREADS, costs_of(compute=0.5, read=3.0, cpu=1.0), {}, {"fits": False}, "loader.num_workers=6", 2.8),
        (SERIAL, costs_of(compute=1.0, decode=1.0, cpu=2.0), {}, {"fits": False}, "loader.num_workers=1", 1.9),
        (
            SERIAL,
            costs_of(compute=1.0, decode=1.0, cpu=2.0),
            {"run": Run()},
            {"fits": False, "num_threads": 4},
            "loader.num_workers=1 run.num_threads=4",
            1.9,
        ),
        (
            THREADS,
            costs_of(compute=0.3, decode=2.0, transform=1.0, making_cpu=2.9, cpu=5.8),
            {},
            {},
            "cache=pinned",
            1.23,
        ),
        (THREADS, costs_of(compute=0.3, read=2.8, transform=0.2, making_cpu=0.2, cpu=5.8), {}, {}, None, 1.0),
        (
            THREADS,
            costs_of(compute=2.0, decode=1.0, making_cpu=1.0, cpu=7.6),
            {},
            {"num_threads": 4},
            "cache=pinned",
            1.15,
        ),
        (
            replace(THREADS, num_threads=4),
            costs_of(compute=2.0, decode=7.0, making_cpu=6.0, cpu=7.6),
            {},
            {},
            "cache=pinned",
            1.25,
        ),
        (replace(THREADS, num_threads=4), costs_of(compute=2.0, decode=6.0, making_cpu=5.4, cpu=7.4), {}, {}, None, 1),
        (THREADS, costs_of(compute=0.3, decode=0.8, collate=0.5), {}, {}, "prefetch=cpu", 1.6),
        (THREADS, costs_of(compute=0.5, decode=0.8, collate=0.4), {}, {}, None, 1.0),
        (
            THREADS,
            costs_of(compute=0.3, move=0.5, decode=0.2),
            {"prefetch": Prefetch(device="none")},  # type: ignore[arg-type]
            {"computes": False},
            "prefetch=auto",
            1.67,
        ),
        (
            THREADS,
            costs_of(compute=0.4, saving=0.6, decode=0.4),
            {"run": Run(save_every_steps=5)},
            {},
            "run.save_every_steps=375",
            2.45,
        ),
        (THREADS, costs_of(compute=0.4, overhead=0.6, decode=0.4), {"run": Run(save_every_steps=5)}, {}, None, 1.0),
    ],
    ids=[
        "storage waits",
        "nothing overlaps",
        "torch keeps the threads that its steps were measured with",
        "decoding takes the cores",
        "reading took no core that could be freed",
        "workers have the model's cores",
        "and its one thread gets a whole one",
        "which it had",
        "collating is in the way",
        "collating is the smaller part",
        "nobody moves batches ahead",
        "checkpoints are in the way",
        "progress and loggers are",
    ],
)
def test_the_override_that_promises_most_is_told(
    lanes: LanesOf,
    costs: Costs,
    options: dict[str, Any],
    here: dict[str, Any],
    override: str | None,
    speedup: float,
) -> None:
    advice = advise(costs, lanes, config(**options), machine(**here))
    assert advice.override == override, advice
    assert advice.speedup == pytest.approx(speedup, rel=0.03)


def test_more_threads_are_not_promised_to_make_python_faster_and_more_processes_are() -> None:
    costs = costs_of(compute=0.2, decode=1.0, busy=3.0, cpu=0.5)
    threads = advise(costs, replace(THREADS, in_threads=True), config(), machine(fits=False))
    processes = advise(costs, THREADS, config(), machine(fits=False))
    assert 1 < threads.speedup <= 1.5 / 1.0
    assert processes.speedup > 3


def test_no_more_workers_are_promised_than_have_a_sample_to_make() -> None:
    costs = costs_of(compute=0.1, read=8.0, cpu=0.1)
    loader = Loader(batch_size=4, num_workers=2, prefetch_factor=2)
    advice = advise(costs, THREADS, config(loader=loader), machine(fits=False))
    assert advice.override == "loader.num_workers=8"
    assert advice.speedup == pytest.approx(3.97, rel=0.01)


@pytest.mark.parametrize(
    ("lanes", "costs", "options", "here", "why"),
    [
        (THREADS, costs_of(decode=0.4), {}, machine(), "none in the input pipeline: compute sets the pace"),
        (THREADS, costs_of(ranks=2.0), {}, machine(), "none in the input pipeline: other ranks sets the pace"),
        (
            THREADS,
            costs_of(compute=0.3, decode=4.0, making_cpu=4.0, cpu=7.6),
            {},
            machine(fits=False),
            "none found: decode sets the pace, and the cores are 95 % busy",
        ),
        (
            SERIAL,
            costs_of(compute=0.3, transform=1.6, making_cpu=1.6, cpu=1.9),
            {},
            machine(fits=False, num_cores=1),
            "none found: transforms sets the pace, and the cores are 95 % busy",
        ),
        (
            THREADS,
            costs_of(compute=0.3, decode=4.0, making_cpu=4.0, cpu=7.6),
            {"cache": Cache(policy="pinned")},  # type: ignore[arg-type]
            machine(),
            "none found: decode sets the pace, and the cores are 95 % busy",
        ),
    ],
    ids=["compute", "other ranks", "no room", "no workers", "a cache already"],
)
def test_where_nothing_would_help_it_says_so(
    lanes: LanesOf, costs: Costs, options: dict[str, Any], here: Machine, why: str
) -> None:
    advice = advise(costs, lanes, config(**options), here)
    assert advice.override is None
    assert advice.why == why


def test_costs_are_of_what_was_made_and_what_was_handed_over() -> None:
    begin = {"samples": 100, "busy_count": 120, "decode_count": 60, "decode_ms": 2.0, "collate_count": 100}
    end = {"samples": 300, "busy_count": 330, "busy_ms": 1.0, "decode_count": 90, "decode_ms": 2.0}
    sample_s = stage_costs(begin, end | {"collate_count": 300, "collate_ms": 0.5})
    assert sample_s["decode"] == pytest.approx(30 * 2.0e-3 / 210), "a sample that a cache had is a sample too"
    assert sample_s["collate"] == pytest.approx(300 * 0.5e-3 / 200)


def test_a_report_of_epochs_is_of_all_of_them_and_its_bound_of_most_of_the_time() -> None:
    cold = replace(costs_of(compute=0.5, decode=4.0), wall_s=2.1)
    warm = replace(costs_of(compute=0.5, decode=0.0), wall_s=0.6)
    report = explain([cold, *([warm] * 4)], THREADS, config(), machine())
    assert report is not None
    assert report.bound.stage == "compute"
    assert report.measured_per_sec == pytest.approx(5000 / 4.5)
    assert report.costs.sample_s["decode"] == pytest.approx(0.8e-3)
    assert report.advice.override is None


def test_epochs_that_waited_longest_for_their_first_batch_are_said_to() -> None:
    short = replace(costs_of(compute=0.5, decode=0.6), first_batch_s=1.0, wall_s=1.6)
    report = explain([short] * 3, THREADS, config(), machine())
    assert report is not None
    assert (report.bound.lane, report.bound.stage) == (Lane.workers, "first_batch")
    assert report.bound.pace_s == pytest.approx(1e-3)
    assert report.advice.why == "none looked for: the first batch of each epoch takes longer than all else"


def test_a_run_that_mostly_waited_for_its_workers_to_start_is_said_to() -> None:
    short = replace(costs_of(compute=0.5, decode=0.6), wall_s=0.6)
    slow = replace(short, first_batch_s=2.0, wall_s=2.6)
    report = explain([slow, short, short], THREADS, config(), machine())
    assert report is not None
    assert report.bound.stage == "start"
    assert "bound by   the start of the run (workers, first batch)" in "\n".join(report.lines())
    assert report.advice.override is None


def test_a_cache_is_promised_to_a_run_and_not_to_the_epochs_that_find_it_full() -> None:
    costs = costs_of(compute=0.3, read=2.0, decode=2.0, transform=1.0, making_cpu=2.4, cpu=2.8)
    overrides = {num_epochs: advise(costs, THREADS, config(), machine(num_epochs=num_epochs)) for num_epochs in (2, 20)}
    assert overrides[2].override == "loader.num_workers=5"
    assert overrides[2].speedup == pytest.approx(2.2, rel=0.03)
    assert overrides[20].override == "cache=pinned"
    assert overrides[20].speedup == pytest.approx(20 / (1 + 19 / 5), rel=0.2)
    assert overrides[20].when == " over 20 epochs"


LOCKED = replace(THREADS, in_threads=True)


@pytest.mark.parametrize(
    ("costs", "lanes", "stage"),
    [
        (costs_of(compute=2.0, compute_cpu=0.8, read=3.0, read_cpu=1.0, making_cpu=1.0, cpu=2.0), LOCKED, "lock"),
        (costs_of(compute=2.0, compute_cpu=1.9, read=3.0, read_cpu=1.0, making_cpu=1.0, cpu=3.0), LOCKED, "compute"),
        (costs_of(compute=2.0, compute_cpu=0.8, read=3.0, read_cpu=0.1, making_cpu=1.0, cpu=2.0), LOCKED, "compute"),
        (costs_of(compute=2.0, compute_cpu=0.8, read=3.0, read_cpu=1.0, making_cpu=1.0, cpu=7.0), LOCKED, "compute"),
        (costs_of(compute=2.0, compute_cpu=0.8, read=3.0, read_cpu=1.0, making_cpu=1.0, cpu=2.0), THREADS, "compute"),
        (costs_of(compute=0.3, read=4.0, read_cpu=1.8, making_cpu=1.8, cpu=2.1), LOCKED, "lock"),
        (costs_of(compute=1.9, compute_cpu=0.8, read=4.0, read_cpu=1.0, making_cpu=1.0, cpu=2.0), LOCKED, "lock"),
        (costs_of(compute=0.3, read=4.0, read_cpu=0.2, making_cpu=0.2, cpu=0.5), LOCKED, "read"),
    ],
    ids=[
        "steps wait",
        "they wait little",
        "nobody reads in Python",
        "for cores",
        "processes",
        "readers wait",
        "both wait",
        "a disk",
    ],
)
def test_reading_in_python_is_seen_to_hold_the_others_up(costs: Costs, lanes: LanesOf, stage: str) -> None:
    report = explain([costs], lanes, config(), machine())
    assert report is not None
    assert report.bound.stage == stage


def test_where_the_lock_is_held_a_cache_or_processes_are_advised() -> None:
    costs = costs_of(compute=2.0, compute_cpu=0.8, read=3.0, read_cpu=1.2, making_cpu=1.2, cpu=2.0)
    kept = advise(costs, LOCKED, config(), machine(num_cores=2))
    assert (kept.override, kept.speedup) == ("cache=pinned", pytest.approx(2.17, rel=0.03))
    apart = advise(costs, LOCKED, config(), machine(num_cores=2, fits=False))
    assert (apart.override, apart.speedup) == ("loader.backend=processes", pytest.approx(1.5, rel=0.03))


@pytest.mark.parametrize(
    "epochs",
    [
        [replace(costs_of(compute=0.5, decode=0.6), first_batch_s=0.3, wall_s=0.9)],
        [replace(costs_of(compute=0.5, decode=0.6), num_batches=1, first_batch_s=0.1, wall_s=0.6)],
        [
            replace(costs_of(compute=0.5, decode=0.6), first_batch_s=1.5, wall_s=2.1),
            *[replace(costs_of(compute=0.5, decode=0.6), wall_s=0.6)] * 3,
        ],
    ],
    ids=["the others took longer", "its only step took longer", "all epochs together took longer"],
)
def test_a_first_batch_that_took_a_while_is_not_what_bounds_a_run(epochs: list[Costs]) -> None:
    report = explain(epochs, THREADS, config(), machine())
    assert report is not None
    assert report.bound.stage == "compute"


def test_what_a_slow_start_took_no_override_is_promised_to_save() -> None:
    costs = costs_of(compute=0.5, read=8.0, cpu=0.5)
    fast = advise(costs, THREADS, config(), machine(fits=False))
    slow = advise(replace(costs, first_batch_s=3.6), THREADS, config(), machine(fits=False))
    assert (fast.speedup, slow.speedup) == (pytest.approx(3.84, rel=0.01), pytest.approx(1.59, rel=0.01))


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
    # At reduced count the machine is everybody's: there it stands further out, and other programs may hold up a try.
    for _ in range(1 if SOAK else 3):
        before = report_of(cfg, compute_s=compute_s)
        delay_s = delay_above_all(before, stage, factor=1.3 if SOAK else 3.0)
        after = report_of(cfg, stage=stage, delay_s=delay_s, compute_s=compute_s)
        if after.bound.stage == stage:
            break
    assert after.bound.stage == stage, f"{cfg.loader} {after.numbers()}"
    # Whatever the formulas say: what bounds a run makes it slower when it takes longer.
    if after.predicted_per_sec < before.predicted_per_sec / 1.15:
        assert after.measured_per_sec < before.measured_per_sec / 1.05
    spent_s = after.costs.wait_s + sum(after.costs.loop_s.values())
    assert spent_s == pytest.approx(after.costs.wall_s, rel=0.05)
    assert after.numbers()["measuring_pct"] < 5


def test_a_stage_of_a_sample_in_worker_processes_is_counted_too(photographs: Path) -> None:
    cfg = short_run(photographs, loader={"num_workers": 1, "backend": "processes"})
    costs = report_of(cfg).costs
    for stage in (*OF_SAMPLES, "busy", "making_cpu"):
        assert costs.sample_s[stage] > 0, stage
    assert costs.sample_s["busy"] >= sum(costs.sample_s[stage] for stage in OF_SAMPLES)
    assert 0 < costs.sample_s["making_cpu"] < costs.cpu_s / costs.num_samples


def test_waiting_for_workers_is_not_collating(photographs: Path) -> None:
    report = report_of(short_run(photographs, loader={"num_workers": 1}), stage="read", delay_s=0.05)
    assert report.costs.sample_s["collate"] < report.costs.sample_s["read"] / 3
    assert report.bound.stage == "read"


def test_a_part_that_ends_early_is_of_the_samples_the_loop_had_and_not_of_those_made_ahead(photographs: Path) -> None:
    cfg = short_run(photographs, loader={"num_workers": 2, "batch_size": 4}, prefetch={"device": "cpu"})
    with build_pipeline(cfg) as pipeline:
        watch = StallWatch(pipeline, device=torch.device("cpu"))
        for _ in range(2):
            spent = watch.begin()
            learner = learner_for(Slow(3 * cfg.transforms.size**2, 0.0))
            train_epoch(learner, pipeline, observer=Silent(), every_steps=9, after_batch=lambda _: True, spent=spent)
            watch.end(spent)
        report = watch.report(cfg)
    assert report is not None
    assert (report.costs.num_batches, report.costs.num_samples) == (2, 8)
    assert report.costs.first_batch_s > 0


def test_a_queue_is_full_where_the_model_is_slow_and_what_ends_an_epoch_is_no_batch(photographs: Path) -> None:
    cfg = short_run(photographs, loader={"num_workers": 2, "batch_size": 10}, prefetch={"device": "cpu"})
    costs = report_of(cfg, compute_s=0.1).costs
    assert costs.prefetch_pct is not None
    assert costs.queue_pct is not None
    assert 50 < costs.prefetch_pct <= 100
    assert 50 < costs.queue_pct <= 100


def test_an_override_that_is_told_can_be_given_and_does_what_it_promises(photographs: Path) -> None:
    cfg = short_run(photographs, loader={"num_workers": 1, "batch_size": 16}, schedule={"epochs": 1})
    slow = report_of(cfg, stage="read", delay_s=0.05)
    override = slow.advice.override
    assert override is not None
    assert re.fullmatch(r"loader\.num_workers=\d+", override)
    command_line = [*overrides_for(photographs), "loader.batch_size=16", "schedule.epochs=1", "prefetch=none", override]
    with initialize_config_dir(config_dir=str(conf_dir()), **HYDRA_DEFAULTS):
        given = to_config(compose("train", command_line), cwd="/")
    faster = report_of(given, stage="read", delay_s=0.05)
    assert slow.advice.speedup > 2
    assert faster.measured_per_sec > 2 * slow.measured_per_sec


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, True),
        ({"cache": Cache(max_gib=1e-6)}, False),
        ({"cache": Cache(max_gib=1e-6, store="decoded")}, False),  # type: ignore[arg-type]
        ({"cache": Cache(max_images=5)}, False),
        ({"cache": Cache(store="encoded")}, False),  # type: ignore[arg-type]
        ({"schedule": Schedule(epochs=1)}, False),
        ({"run": Run(max_steps=3)}, False),
        ({"loader": Loader(batch_size=4, sampler="balanced")}, False),  # type: ignore[arg-type]
    ],
    ids=[
        "room",
        "no budget",
        "no budget for pixels alone",
        "few images",
        "bytes only",
        "one epoch",
        "a few steps",
        "some are drawn again",
    ],
)
def test_a_cache_is_advised_where_it_would_hold_all_pixels_and_be_asked_again(
    photographs: Path, groups: dict[str, Any], expected: bool
) -> None:
    cfg = replace(short_run(photographs), **groups)
    with build_pipeline(cfg) as pipeline:
        assert reuses_pixels(pipeline, cfg) is expected


def test_a_cache_is_advised_where_evaluation_can_have_as_large_a_one(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with build_pipeline(short_run(photographs)) as pipeline:
        budget_gib = 1.2 * pipeline.num_samples * 240 * 320 * 3 / 2**30
        cfg = replace(short_run(photographs), cache=Cache(max_gib=budget_gib))
        for free, expected in ((2.2, True), (1.5, False)):
            monkeypatch.setattr(build_budget, "available_bytes", lambda free=free: int(free * budget_gib * 2**30))
            assert reuses_pixels(pipeline, cfg) is expected


class FakeEvent:
    """An event of a device whose clock is the number of events so far, in milliseconds."""

    now_ms = 0.0

    def record(self) -> None:
        FakeEvent.now_ms += 3.0
        self.at_ms = FakeEvent.now_ms

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at_ms - self.at_ms


def test_steps_of_a_device_are_as_long_as_the_device_says(photographs: Path) -> None:
    spent = LoopClock(device=DeviceClock(FakeEvent))
    with build_pipeline(short_run(photographs)) as pipeline:
        train_epoch(learner_for(Slow(3 * 16**2, 0.0)), pipeline, observer=Silent(), every_steps=2, spent=spent)
        num_steps = len(pipeline)
    assert spent.device is not None
    assert spent.device.spent_s == pytest.approx(num_steps * 3e-3)


RANKS = """
import json, sys
from pathlib import Path
from delays import Silent, Slow, delayed, learner_for
from pipeline._compat import HYDRA_DEFAULTS
from pipeline.build import build_pipeline
from pipeline.cli import conf_dir
from pipeline.dist import run_ranks
from pipeline.dist.world import join_world
from pipeline.training.loop import train_epoch
from pipeline.training.stall_watch import StallWatch
from runs import short_run
import torch

def work(root):
    cfg = short_run(Path(root), loader={"num_workers": 1})
    with join_world(on_cuda=False) as world, delayed("read" if world.rank == 1 else "", 0.1):
        with build_pipeline(cfg, rank=world.rank, world_size=world.size) as pipeline:
            watch = StallWatch(pipeline, device=torch.device("cpu"), world=world)
            learner = learner_for(Slow(3 * cfg.transforms.size**2, 0.0), world)
            spent = watch.begin()
            train_epoch(learner, pipeline, observer=Silent(), every_steps=50, spent=spent)
            watch.end(spent)
            waited_for = spent.lap_s["ranks"]
            report = watch.report(cfg)
        every = world.gather_values(waited_for)
        return None if report is None else [report.numbers(), report.lines(), every]

if __name__ == "__main__":
    print(json.dumps(run_ranks(work, sys.argv[1], nproc=2)))
"""


def test_of_several_ranks_the_one_that_waits_most_is_explained_and_the_others_wait_for_it(
    photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    arguments = [sys.executable, str(tmp_path / "ranks.py"), str(photographs)]
    done = subprocess.run(
        arguments, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    numbers, lines, waited_s = json.loads(done.stdout)
    assert (numbers["rank"], numbers["num_ranks"], numbers["bound"]) == (1, 2, "read")
    assert "in rank 1 of 2, which waits most" in "\n".join(lines)
    assert waited_s[0] > numbers["wait_s"] / 2 > waited_s[1]
    parts_s = numbers["wait_s"] + numbers["compute_s"] + numbers["overhead_s"]
    assert parts_s == pytest.approx(numbers["wall_s"], rel=0.05)


def test_no_run_fails_for_its_report(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bool:
        raise ArithmeticError("a mistake in the report")

    cfg = short_run(photographs, schedule={"epochs": 2})
    with build_pipeline(cfg) as pipeline, pytest.MonkeyPatch.context() as patch:
        watch = StallWatch(pipeline, device=torch.device("cpu"))
        spent = watch.begin()
        train_epoch(learner_for(Slow(3 * 16**2, 0.0)), pipeline, observer=Silent(), every_steps=9, spent=spent)
        watch.end(spent)
        patch.setattr(pipeline, "could_keep_pixels", lambda _: fail())
        assert watch.report(cfg) is None
        assert "a mistake in the report" in caplog.text
        assert watch.report(cfg, may_read=False) is not None
