"""One trial: what is taken on and off the clock, what is counted, and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import make_loader
from samples import LoggedFiles, Painted, takes_a_millisecond
from trials import BATCH_SIZE, CPU, NUM_IMAGES, FakeClock, SlowFirst, assembled, config, contender_of, endless, files_of

from pipeline.bench.passes import Feed, read_batch, run_pass
from pipeline.bench.peers.headrace import as_contender, open_pipeline
from pipeline.bench.trial import Trial, measure, run_trial
from pipeline.config import Cache, ConfigError, Model, Preload, SamplerName
from pipeline.sources import FileSource
from pipeline.training.learner import Learner

pytestmark = pytest.mark.usefixtures("torch_as_before")


class Watched(np.ndarray):
    """An array that counts its sums."""

    num_sums = 0

    def sum(self, *args: Any, **options: Any) -> Any:
        Watched.num_sums += 1
        return super().sum(*args, **options)


class WatchedList(list[int]):
    """A list that counts how often it is walked."""

    num_walks = 0

    def __iter__(self) -> Iterator[int]:
        WatchedList.num_walks += 1
        return super().__iter__()


@pytest.mark.parametrize(
    ("labels", "watched"),
    [
        (lambda: np.zeros(4, np.int64).view(Watched), lambda: Watched.num_sums - 3),
        (lambda: WatchedList([1, 2]), lambda: WatchedList.num_walks),
    ],
    ids=["array", "list"],
)
def test_a_pass_reads_every_image_and_every_label(labels: Any, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "num_sums", 0)
    monkeypatch.setattr(WatchedList, "num_walks", 0)
    stream = ((np.zeros((4, 3, 2, 2), np.float32).view(Watched), labels()) for _ in range(3))
    run_pass(Feed(stream, 3), read_batch, 3)
    assert Watched.num_sums >= 3
    assert watched() == 3


def test_a_pass_over_an_epoch_takes_each_sample_once_and_asks_for_none_more(jpegs: list[Path], tmp_path: Path) -> None:
    source = LoggedFiles(jpegs, np.zeros(23), tmp_path / "log")
    cfg = config(tmp_path, bench={}, loader={"num_workers": 0})
    with assembled(source, cfg) as pipeline:
        passed = run_pass(Feed(as_contender(pipeline, cfg, CPU).stream, len(pipeline)), read_batch, len(pipeline))
    assert (passed.num_samples, len(passed.waits_s)) == (23, 6)
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(23))


def test_a_stream_that_ends_is_no_measurement() -> None:
    stream = (batch for batch in [(np.zeros((1, 3, 2, 2)), None)] * 2)
    with pytest.raises(RuntimeError, match="ended after 2 batches"):
        run_pass(Feed(stream, 2), read_batch, 3)


def test_cpu_seconds_are_also_those_of_worker_processes() -> None:
    loader = make_loader(
        Painted(takes_a_millisecond), backend="processes", num_workers=1, num_samples=400, batch_size=100
    )
    with loader:
        feed = Feed(chain.from_iterable(repeat(loader)), len(loader))
        run_pass(feed, read_batch, 1)
        own_s = time.process_time()
        passed = run_pass(feed, read_batch, 5)
        own_s = time.process_time() - own_s
    assert passed.cpu_s > own_s + 0.1


def test_hits_are_counted_in_timed_passes_only_and_what_was_possible_leaves_the_first_epoch_out(
    trial_folder: Path,
) -> None:
    cfg = config(
        trial_folder, bench={"warmup": 1, "batches": 5}, loader={"num_workers": 0}, cache=Cache(policy="pinned")
    )
    with open_pipeline(cfg, CPU) as contender:
        trial = Trial(cfg, contender, contender.pipeline.source)
        trial.run(repeats=2, references=False)
        counted = trial.counted()
    assert [repeat["cache_hit_pct"] for repeat in trial.repeats] == [0, 100]
    assert counted["cache_bound_pct"] == pytest.approx(50)
    assert counted["cache_capacity_pct"] == 100


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_automatic_warm_up_fills_a_cache(trial_folder: Path, num_workers: int) -> None:
    cfg = config(trial_folder, bench={"warmup": "auto"}, loader={"num_workers": num_workers, "batch_size": 2})
    cfg.cache = Cache(policy="pinned")
    result = measure(cfg, repeats=1, references=False)
    assert (result["cache_hit_pct"], result["cache_bound_pct"]) == (100, 100)


def test_what_is_preloaded_needs_no_epoch_of_warm_up_and_can_be_hit_from_the_first_batch_on(trial_folder: Path) -> None:
    cfg = config(trial_folder, bench={"warmup": 0}, preload=Preload(mode="ram"))
    result = measure(cfg, repeats=1, references=False)
    assert (result["cache_hit_pct"], result["cache_bound_pct"], result["cache_capacity_pct"]) == (100, 100, 100)
    assert result["served_from"] == "memory (preload=ram)"


@pytest.mark.parametrize(("warmup", "num_taken"), [(0, 2), (1, 1 + 3 + 2), (4, 4 + 3 + 2)])
def test_warm_up_and_what_lies_ready_are_taken_before_the_clock_starts(
    jpegs: list[Path], tmp_path: Path, warmup: int, num_taken: int
) -> None:
    clock = FakeClock()
    contender = contender_of(endless(wait_s=1, clock=clock), num_ready=3)
    trial = Trial(config(tmp_path, bench={"warmup": warmup}), contender, FileSource(jpegs, np.zeros(23)), clock=clock)
    trial.run(repeats=1, references=False)
    assert clock() == num_taken
    assert trial.repeats[0]["samples_per_sec"] == pytest.approx(2 * BATCH_SIZE / 2)


def test_the_first_batch_is_timed_from_construction_and_from_the_process_start(trial_folder: Path) -> None:
    result = measure(config(trial_folder, bench={"warmup": 1}), repeats=2, references=False)
    assert result["first_batch_from_start_s"] > result["first_batch_s"] > result["build_s"] > 0
    assert [repeat["first_batch_s"] for repeat in result["repeats"]] == [result["first_batch_s"], None]
    began_s = time.perf_counter()
    told = measure(config(trial_folder, bench={"warmup": 1}), repeats=1, references=False, started_s=began_s - 1000)
    assert 1000 < told["first_batch_from_start_s"] < 1000 + time.perf_counter() - began_s


def test_an_epoch_s_border_is_held_against_the_usual_wait() -> None:
    clock = FakeClock()
    feed = Feed(endless(wait_s=1, border_s=7, clock=clock), 5, step=0)
    passed = run_pass(feed, read_batch, 16, clock=clock)
    assert passed.borders == [5, 10, 15]
    assert passed.gaps_s == pytest.approx([7, 7, 7])


@pytest.mark.parametrize("batches", [1, 8], ids=["by jumping", "in the passes"])
def test_a_slow_border_between_epochs_is_seen_wherever_passes_end(
    trial_folder: Path, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, jumps = FakeClock(), []
    cfg = config(trial_folder, bench={"warmup": 1, "batches": batches}, loader={"num_workers": 0})
    with assembled(SlowFirst(files_of(trial_folder), clock), cfg, sampler=SamplerName.sequential) as pipeline:
        contender = as_contender(pipeline, cfg, CPU)
        jump = type(contender).jump
        monkeypatch.setattr(type(contender), "jump", lambda self, step: (jumps.append(step), jump(self, step)))
        trial = Trial(cfg, contender, pipeline.source, clock=clock)
        trial.run(repeats=2, references=False)
    gaps_s = [repeat["epoch_gap_s"] for repeat in trial.repeats]
    assert gaps_s[0] == pytest.approx(6.99)
    assert gaps_s[1] == (None if batches == 1 else pytest.approx(6.99))
    assert len(jumps) == (3 if batches == 1 else 0)


def test_a_loader_that_cannot_jump_and_crossed_no_border_has_no_gap(jpegs: list[Path], tmp_path: Path) -> None:
    clock = FakeClock()
    contender = contender_of(endless(wait_s=1, clock=clock), batches_per_epoch=100)
    trial = Trial(config(tmp_path, bench={"warmup": 1}), contender, FileSource(jpegs, np.zeros(23)), clock=clock)
    trial.run(repeats=2, references=False)
    assert [repeat["epoch_gap_s"] for repeat in trial.repeats] == [None, None]


def test_a_loop_that_waits_most_of_the_time_says_so() -> None:
    clock = FakeClock()
    feed = Feed(endless(wait_s=0.99, clock=clock), 5)
    passed = run_pass(feed, lambda *_: clock.advance(0.01), 10, clock=clock)
    assert passed.data_wait_pct == pytest.approx(99)


def test_in_mode_train_a_model_is_trained_on_every_batch_and_the_resident_one(
    trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step = Learner.step

    def watched_step(self: Learner, *batch: Any) -> Any:
        sizes.append(len(batch[0]))
        return step(self, *batch)

    monkeypatch.setattr(Learner, "step", watched_step)
    cfg = config(
        trial_folder,
        bench={"mode": "train", "warmup": 1, "batches": 3},
        model=Model(width=8),
        loader={"num_workers": 0},
    )
    result = measure(cfg, repeats=1, references=True)
    num_of_passes = 1 + 3 + 3  # warm-up, pass, resident batch; the gap's passes come behind
    assert sizes[:num_of_passes] == [BATCH_SIZE] * num_of_passes
    assert 0 < result["data_wait_pct"] < 100
    assert result["resident_per_sec"] > 0


@pytest.mark.parametrize(
    ("told", "budget_s", "num_passes"), [(True, 1e6, 7), (False, 1e6, 9), (False, 0.5, 7)],
    ids=["narrow", "never narrow", "no time"],
)  # fmt: skip
def test_repeats_auto_ends_when_it_can_tell_or_the_time_is_spent(
    jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool, budget_s: float, num_passes: int
) -> None:
    clock = FakeClock()
    monkeypatch.setattr("pipeline.bench.trial.is_known", lambda rates, _: told and len(rates) >= 7)
    monkeypatch.setattr("pipeline.bench.trial.MAX_PASSES", 9)
    cfg = config(tmp_path, bench={"repeats": "auto", "budget_s": budget_s, "warmup": 1, "batches": 1})
    trial = Trial(cfg, contender_of(endless(wait_s=1, clock=clock)), FileSource(jpegs, np.zeros(23)), clock=clock)
    trial.run(repeats=None, references=False)
    assert len(trial.repeats) == num_passes


def test_a_trial_writes_its_result_prints_a_table_and_returns_its_objective(
    trial_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = {"warmup": 1, "references": True, "objective": "peak_pss_mb"}
    objective = run_trial(config(trial_folder, bench=bench, cache=Cache(policy="lru", max_images=10)), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert objective == result["peak_pss_mb"] > 0
    assert (result["status"], result["num_samples"], len(result["repeats"])) == ("completed", NUM_IMAGES, 2)
    rates = [repeat["samples_per_sec"] for repeat in result["repeats"]]
    assert (result["samples_per_sec_min"], result["samples_per_sec_max"]) == (min(rates), max(rates))
    assert result["host"]["num_torch_threads"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines if not line.startswith("report"))
    text = "\n".join(lines)
    for shown in ("decode ceiling", "resident batch", "first batch: after", " ms", "MB at most", "room for 42 %"):
        assert shown in text
    assert lines[-1] == f"report: {tmp_path / 'result.json'}"


def test_an_objective_that_no_result_has_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for objective, message in {
        "images_per_sec": "is no number of result.json; did you mean samples_per_sec?",
        "data_wait_pct": "needs bench.mode=train",
        "cold_samples_per_sec": "needs bench.cold=true",
        "resident_per_sec": "needs bench.references=true",
        "cache_hit_pct": "needs bench.contender=headrace with a cache",
    }.items():
        cfg = config(tmp_path / "missing", bench={"objective": objective})
        with pytest.raises(ConfigError, match=f"bench.objective={objective} {message}".replace("?", r"\?")):
            run_trial(cfg, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loader_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path / "missing", bench={"contender": "dali"})
    monkeypatch.setattr("pipeline.bench.peers.why_not", lambda name: f"{name} is not here: run make peers")
    monkeypatch.setattr("pipeline.bench.peers.interpreter", lambda _: None)
    with pytest.raises(ConfigError, match=r"^dali is not here: run make peers$"):
        measure(cfg, repeats=1, references=False)
    monkeypatch.setattr("pipeline.bench.peers.interpreter", lambda _: "/elsewhere/bin/python")
    with pytest.raises(ConfigError, match=r"bench.contender=dali needs another Python: run .* with /elsewhere/bin"):
        measure(cfg, repeats=1, references=False)
