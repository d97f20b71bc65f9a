"""Stores in whole loaders: which files are opened, what is hit, what it costs, and that no byte changes."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import digest
from fakes import jpeg_bytes, photo, write_jpegs
from samples import LoggedFiles
from watching import SOAK, TESTS, Killer, run_script

from pipeline import HighPerformanceDataset
from pipeline.build import Pipeline, assemble
from pipeline.build_loading import build_loading
from pipeline.cache.shared_store import SharedStore
from pipeline.cache.theory import lru_hit_rate
from pipeline.config import Cache, Data, Loader, PipelineConfig, Preload, SamplerName, Transforms
from pipeline.machine import available_bytes
from pipeline.sources import FileSource, Source
from pipeline.stats import Stats

COUNT = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More than are looked at for an estimate."""
    return write_jpegs(tmp_path_factory.mktemp("files"), COUNT, height=20, width=30)


def pipeline_of(
    source: Source,
    policy: str = "none",
    *,
    preload: str = "none",
    num_epochs: int | None = None,
    cache: dict[str, Any] | None = None,
    **loader: Any,
) -> Pipeline:
    """Shuffled and augmented, in batches of 8."""
    transforms = Transforms.named("light", size=16).resolved()
    config = PipelineConfig(
        data=Data(),
        cache=Cache(policy=policy, **(cache or {})),  # type: ignore[arg-type]
        preload=Preload(mode=preload),  # type: ignore[arg-type]
        loader=Loader(batch_size=8, **({"backend": "processes", "num_workers": 4} | loader)),
        transforms=transforms,
    )
    return assemble(
        source,
        config,
        transforms=transforms,
        sampler=SamplerName.shuffle,
        device=torch.device("cpu"),
        name="test",
        num_epochs=num_epochs,
    )


def opened(log: Path) -> Counter[int]:
    """How often each file was."""
    return Counter(map(int, log.read_text().split()))


WHOLE = {"pinned": {"policy": "pinned"}, "lru": {"policy": "lru"}, "valued": {"policy": "valued"}}
WHOLE["preload=ram"] = {"preload": "ram"}


@pytest.mark.parametrize("name", WHOLE)
def test_four_processes_open_each_file_once_and_never_again_with_the_next_epoch_in_flight(
    name: str, files: list[Path], tmp_path: Path
) -> None:
    log = tmp_path / "opened"
    source = LoggedFiles(files, range(COUNT), log)
    with pipeline_of(source, num_epochs=3, prefetch_factor=4, **WHOLE[name]) as pipeline:
        for _ in range(3):
            for batch in pipeline:
                assert batch.epoch >= 0
            assert opened(log) == dict.fromkeys(range(COUNT), 1)
        stats = pipeline.stats()
    hits = 3 * COUNT if name == "preload=ram" else 2 * COUNT
    assert (stats["cache_hits"], stats["cache_misses"]) == (hits, 3 * COUNT - hits)
    assert stats["cache_hit_pct"] == pytest.approx(100 * hits / (3 * COUNT))
    assert stats["cache_hit_pct"] == pytest.approx(stats["cache_bound_pct"])
    assert (stats["cache_entries"], stats["cache_evictions"]) == (COUNT, 0)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_pinned_third_is_hit_as_often_as_theory_allows(backend: str, files: list[Path]) -> None:
    capacity = round(0.35 * COUNT)
    source = FileSource(files, range(COUNT))
    cache = {"max_images": capacity}
    with pipeline_of(source, "pinned", cache=cache, num_epochs=4, backend=backend, num_workers=2) as pipeline:
        for epoch in range(4):
            for _ in pipeline:
                pass
            stats = pipeline.stats()
            # Of the next epoch some batches are made already.
            asked = stats["cache_hits"] + stats["cache_misses"]
            assert stats["cache_hits"] <= capacity * (asked - COUNT) / COUNT + capacity
            assert asked >= COUNT * (epoch + 1)
    assert stats["cache_hits"] == 3 * capacity
    assert stats["cache_hit_pct"] == pytest.approx(stats["cache_bound_pct"])


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_an_lru_of_a_third_is_hit_as_often_as_theory_says(backend: str, files: list[Path]) -> None:
    count = 5 * COUNT
    source = FileSource(files * 5, range(count))
    cache = {"max_images": round(0.35 * count)}
    with pipeline_of(source, "lru", cache=cache, num_epochs=6, backend=backend, num_workers=2) as pipeline:
        for _ in range(6):
            for _ in pipeline:
                pass
        stats = pipeline.stats()
    assert stats["cache_hits"] + stats["cache_misses"] == 6 * count
    assert stats["cache_hits"] / (5 * count) == pytest.approx(lru_hit_rate(0.35), abs=0.03)
    assert stats["cache_hit_pct"] < stats["cache_bound_pct"]


def test_what_is_read_first_after_an_interruption_could_have_been_no_hit(files: list[Path]) -> None:
    source = FileSource(files, range(COUNT))
    with pipeline_of(source, "lru", num_epochs=3) as whole:
        batches = iter(whole)
        for _ in range(len(whole) - 2):
            next(batches)
        state = whole.state_dict()
    with pipeline_of(source, "lru", num_epochs=3) as pipeline:
        pipeline.load_state_dict(state)
        for _ in range(3):
            for _ in pipeline:
                pass
        stats = pipeline.stats()
        assert stats["cache_hits"] > 0
        assert stats["cache_hit_pct"] == pytest.approx(stats["cache_bound_pct"])
        assert pipeline.cache_advice() is None


@pytest.mark.parametrize("policy", ["pinned", "lru"] if SOAK else ["pinned"])
def test_a_whole_decoded_store_takes_its_bytes_once_for_all_processes(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(jpeg_bytes(photo(0, 192, 256)))
    count = 2000 if SOAK else 400
    out = run_script(tmp_path, (TESTS / "store_memory.py").read_text(), path, count, policy)
    without_bytes, with_bytes, cached_bytes, entries = json.loads(out)
    assert (entries, cached_bytes) == (count, count * 192 * 256 * 3)
    assert with_bytes <= without_bytes + 1.2 * cached_bytes


def undisturbed(files: list[Path]) -> list[str]:
    with pipeline_of(FileSource(files, range(len(files))), num_workers=0, num_epochs=1) as pipeline:
        return [digest(batch) for batch in pipeline]


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["pinned", "lru", "valued"])
def test_workers_killed_while_the_store_fills_change_nothing_and_cost_one_file_each(
    policy: str, files: list[Path], tmp_path: Path
) -> None:
    expected, log = undisturbed(files), tmp_path / "opened"
    with Killer(100 if SOAK else 10, seed=len(policy)) as killer:
        while killer.remaining:
            log.write_text("")
            source, before = LoggedFiles(files, range(COUNT), log, takes_s=0.01), killer.remaining
            with pipeline_of(source, policy, num_epochs=1, num_workers=3, max_restarts=1000) as pipeline:
                assert [digest(batch) for batch in pipeline] == expected
                assert pipeline.stats()["cache_entries"] == COUNT
            assert opened(log).total() <= COUNT + before - killer.remaining


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["lru", "valued"])
@pytest.mark.parametrize("kind", ["encoded", "decoded"])
def test_workers_killed_while_the_store_evicts_change_nothing(policy: str, kind: str, files: list[Path]) -> None:
    source = FileSource(files, range(COUNT))
    max_bytes = 20 * 4096
    cache = {"max_gib": max_bytes / 2**30, "store": kind}
    with (
        pipeline_of(FileSource(files, range(COUNT)), num_workers=0) as serial,
        pipeline_of(source, policy, cache=cache, num_workers=3, max_restarts=1000) as pipeline,
        Killer(100 if SOAK else 5, seed=len(kind)) as killer,
    ):
        while killer.remaining:
            assert [digest(batch) for batch in pipeline] == [digest(batch) for batch in serial]
            assert pipeline.stats()["cache_bytes"] <= max_bytes
        assert [digest(batch) for batch in pipeline] == [digest(batch) for batch in serial]


@pytest.fixture
def two_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A control group of 2 GiB, of which nothing is used, as the kernel would show it."""
    (tmp_path / "sys/job").mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/job\n")
    for name, number in (("max", 2 << 30), ("current", 0)):
        (tmp_path / f"sys/job/memory.{name}").write_text(f"{number}\n")
    defaults: dict[str, Any] = available_bytes.__kwdefaults__
    monkeypatch.setitem(defaults, "proc_cgroup", tmp_path / "cgroup")
    monkeypatch.setitem(defaults, "cgroup_root", tmp_path / "sys")
    return 2 << 30


@pytest.mark.parametrize("policy", ["pinned", "lru", "valued"])
def test_auto_takes_at_most_half_of_what_a_control_group_allows(policy: str, files: list[Path], two_gib: int) -> None:
    with ExitStack() as resources:
        loading = build_loading(
            FileSource(files, range(COUNT)),
            Cache(policy=policy),  # type: ignore[arg-type]
            Preload(),
            Transforms(size=16),
            num_threads=1,
            name="test",
            stats=Stats(),
            resources=resources,
            in_processes=True,
        )
        assert isinstance(loading.store, SharedStore)
        assert 0 < loading.store.settings.max_bytes <= two_gib // 2
        loading.load(0)


def test_a_dataset_takes_at_most_half_of_what_a_control_group_allows(files: list[Path], two_gib: int) -> None:
    with HighPerformanceDataset(files, range(COUNT)) as dataset:
        assert isinstance(dataset._shared.store, SharedStore)
        assert 0 < dataset._shared.store.settings.max_bytes <= two_gib // 2
