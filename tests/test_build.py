"""Every option of every group, composed and built; and what the builder decides."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import digest
from fakes import write_jpegs
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from pipeline._compat import HYDRA_MAIN
from pipeline.build import build_pipeline
from pipeline.build_estimate import look_at_some
from pipeline.build_loading import Loading, build_loading
from pipeline.build_prefetch import plan_delivery
from pipeline.cli import conf_dir
from pipeline.config import Cache, ConfigError, FolderData, Loader, PipelineConfig, Prefetch, Preload, Transforms
from pipeline.config.compose import to_config
from pipeline.decode import Scratch
from pipeline.loader.batch import Batch
from pipeline.sources import ArraySource, FileSource
from pipeline.stats import Stats
from pipeline.transforms.device import BatchTransform
from pipeline.transforms.sample import SampleTransform

CHOICES = {
    "data": ["tiny", "small", "medium", "large"],
    "cache": ["none", "lru", "pinned", "valued"],
    "preload": ["none", "ram", "pack"],
    "prefetch": ["auto", "none", "cpu", "cuda", "mps"],
    "transforms": ["none", "light", "standard", "heavy"],
    "loader.num_workers": ["0", "2", "auto"],
    "loader.sampler": ["shuffle", "sequential", "balanced"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def configs(root: Path) -> Iterator[Any]:
    """`configs(*overrides)`: the composed configuration, over 40 synthetic images of 16 pixels."""
    small = [f"data.root={root}", "data.num_images=40", "loader.batch_size=8", "transforms.size=16"]

    def make(*overrides: str) -> PipelineConfig:
        with initialize_config_dir(str(conf_dir()), version_base=HYDRA_MAIN.get("version_base")):
            config = to_config(compose("train", [*overrides, *small]), cwd=str(root))
        config.preload.dir = str(root / "packs")
        return config

    yield make
    GlobalHydra.instance().clear()


def is_missing(config: PipelineConfig) -> bool:
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return config.prefetch.device in there and not there[config.prefetch.device]()


def assert_builds(config: PipelineConfig) -> None:
    """Build it and take a batch; a device that is not there is told instead."""
    if is_missing(config):
        with pytest.raises(ConfigError, match=rf"prefetch\.device={config.prefetch.device} needs "):
            build_pipeline(config)
        return
    with build_pipeline(config) as pipeline:
        batch = next(iter(pipeline))
        assert batch.images.shape == (8, 3, 16, 16)
        assert batch.images.dtype is torch.float32
        assert len(pipeline) == -(-pipeline.num_samples // 8)


@pytest.mark.parametrize(("key", "option"), [(key, option) for key, options in CHOICES.items() for option in options])
def test_every_option_is_composed_and_built(key: str, option: str, configs: Any) -> None:
    assert_builds(configs(f"{key}={option}"))


@pytest.mark.parametrize("tier", CHOICES["data"])
def test_every_tier_works_with_every_cache_preload_prefetch_and_number_of_workers(tier: str, configs: Any) -> None:
    composed = configs(f"data={tier}")
    for policy, mode, device, num_workers in itertools.product(
        CHOICES["cache"], CHOICES["preload"], CHOICES["prefetch"], (0, 2)
    ):
        assert_builds(
            replace(
                composed,
                cache=Cache(policy=policy, max_images=30),  # type: ignore[arg-type]  # strings are welcome
                preload=Preload(mode=mode, dir=composed.preload.dir),  # type: ignore[arg-type]
                prefetch=Prefetch(device=device),  # type: ignore[arg-type]
                loader=replace(composed.loader, num_workers=num_workers),
            )
        )


def test_validation_is_in_order_complete_and_the_same_every_epoch(configs: Any) -> None:
    config = configs("transforms=heavy", "loader.sampler=balanced", "loader.drop_last=true")
    with build_pipeline(config, split="val") as pipeline:
        first, second = ([digest(batch) for batch in pipeline] for _ in range(2))
        ids = [id for batch in pipeline for id in batch.ids.tolist()]
    assert first == second
    assert ids == list(range(pipeline.num_samples))
    assert pipeline.transforms.resize == "exact"


def test_training_and_validation_share_no_file(configs: Any) -> None:
    config = configs()
    with build_pipeline(config) as train, build_pipeline(config, split="val") as val:
        files = [{source.where(id) for id in range(len(source))} for source in (train.source, val.source)]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 40


def test_another_image_type_is_made_by_the_prefetcher_or_refused(configs: Any) -> None:
    with build_pipeline(configs("prefetch=cpu", "prefetch.dtype=bfloat16")) as pipeline:
        assert next(iter(pipeline)).images.dtype is torch.bfloat16
    with pytest.raises(ConfigError, match=r"prefetch\.dtype=bfloat16 needs prefetch=cpu, cuda or mps"):
        build_pipeline(configs("prefetch=none", "prefetch.dtype=bfloat16"))


def test_what_a_device_would_do_equals_what_workers_do(configs: Any) -> None:
    """The uint8 path end to end, with the CPU standing in for the device."""
    options = configs("transforms=heavy").transforms.resolved()
    with build_pipeline(configs()) as pipeline:
        source = pipeline.source
    worker, device = SampleTransform(options, normalise=True), SampleTransform(options, normalise=False)
    assert worker.num_draws == device.num_draws
    draws = np.random.default_rng(0).random((8, worker.num_draws))
    floats = np.empty((8, *worker.row_shape), worker.row_dtype)
    bytes_ = np.empty((8, *device.row_shape), device.row_dtype)
    for id in range(8):
        worker(source.read(id), draws[id], floats[id], Scratch())
        device(source.read(id), draws[id], bytes_[id], Scratch())
    on_device = BatchTransform(options)(torch.from_numpy(bytes_).permute(0, 3, 1, 2), draws)
    assert (on_device - torch.from_numpy(floats).permute(0, 3, 1, 2)).abs().max().item() <= 1e-6


@contextmanager
def loading_of(
    source: Any, cache: Cache, preload: Preload | None = None, **transforms: Any
) -> Iterator[tuple[Loading, Stats]]:
    stats = Stats()
    with ExitStack() as resources:
        yield (
            build_loading(
                source,
                cache,
                preload or Preload(),
                Transforms(size=16, **transforms),
                num_threads=2,
                name="test",
                stats=stats,
                resources=resources,
            ),
            stats,
        )


@pytest.mark.parametrize(("max_gib", "kind"), [(1.0, np.ndarray), (1e-4, bytes)])
def test_auto_keeps_pixels_if_all_fit_and_bytes_otherwise(max_gib: float, kind: type, tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 10)
    cache = Cache(policy="lru", max_gib=max_gib)  # type: ignore[arg-type]
    with loading_of(FileSource(paths, range(10)), cache) as (loading, _):
        assert isinstance(loading.load(0), kind)


def test_a_decoded_store_keeps_what_max_side_makes_of_an_image(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 2, height=60, width=80)
    for policy in ("lru", "pinned", "valued"):
        cache = Cache(policy=policy)  # type: ignore[arg-type]
        with loading_of(FileSource(paths, range(2)), cache, max_side=40) as (loading, _):
            for _ in range(2):
                assert np.shape(loading.load(0)) == (30, 40, 3)


def test_policies_and_capacities_are_the_ones_named(tmp_path: Path) -> None:
    source = FileSource(write_jpegs(tmp_path, 4), range(4))
    kept = {"lru": [2, 3], "pinned": [0, 1]}
    for policy, ids in kept.items():
        with loading_of(source, Cache(policy=policy, max_images=2)) as (loading, _):  # type: ignore[arg-type]
            for id in range(4):
                loading.load(id)
            assert loading.store is not None
            assert [id for id in range(4) if loading.store.has(id)] == ids
    with loading_of(source, Cache()) as (loading, _):
        assert loading.store is None


def test_each_file_is_read_once_while_it_fits(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path / "train" / "a", 8) + write_jpegs(tmp_path / "val" / "a", 1)
    config = PipelineConfig(
        data=FolderData(root=str(tmp_path)),
        cache=Cache(policy="pinned"),  # type: ignore[arg-type]
        loader=Loader(num_workers=3, batch_size=2),
        transforms=Transforms(size=16),
    )
    with build_pipeline(config, num_epochs=3) as pipeline:
        for _ in range(3):
            for _ in pipeline:
                pass
        stats = pipeline.stats()
    assert len(paths) == 9
    assert (stats["read_count"], stats["decode_count"], stats["transform_count"]) == (8, 8, 24)
    assert stats["cache_hit_pct"] > 50


def test_filling_a_store_before_the_first_epoch_counts_as_no_miss(tmp_path: Path) -> None:
    source = FileSource(write_jpegs(tmp_path, 4), range(4))
    with loading_of(source, Cache(), Preload(mode="ram")) as (loading, stats):  # type: ignore[arg-type]
        for id in range(4):
            loading.load(id)
        numbers = loading.stats(stats, first_epoch_samples=None, epoch_samples=4, has_bound=True)
    assert (numbers["cache_hits"], numbers["cache_misses"], numbers["cache_bound_pct"]) == (4, 0, 100)


def test_a_preload_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 100)
    reads: list[int] = []

    class Counting(FileSource):
        def read(self, id: int) -> bytes:
            reads.append(id)
            return super().read(id)

    cache = Cache(store="decoded", max_gib=50 * 60 * 80 * 3 / 2**30)  # type: ignore[arg-type]
    with (
        pytest.raises(
            ValueError, match=r"preload=ram needs about .* use cache\.store=encoded, transforms\.max_side"
        ) as error,
        loading_of(Counting(paths, range(100)), cache, Preload(mode="ram")),  # type: ignore[arg-type]
    ):
        pass
    assert re.search(r"100 decoded images of test, 14 kB each", str(error.value))
    assert len(reads) <= 32


def test_a_preload_that_an_estimate_took_for_smaller_says_so_where_the_room_ends(tmp_path: Path) -> None:
    small = write_jpegs(tmp_path / "small", 40, height=8, width=8)
    paths = [*small, *write_jpegs(tmp_path / "large", 2, height=90, width=90)]
    looked_at = np.linspace(0, 41, 32, dtype=np.int64).tolist()
    order = [id for id in range(42) if id not in looked_at]
    source = FileSource([paths[0] if id in looked_at else paths[-1] for id in range(42)], range(42))
    assert order
    cache = Cache(store="decoded", max_gib=9 * 90 * 90 * 3 / 2**30)  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=r"room for \d+ of 42; use cache\.store=encoded"),
        loading_of(source, cache, Preload(mode="ram")),  # type: ignore[arg-type]
    ):
        pass


def test_a_broken_file_does_not_spoil_the_estimate_but_is_met_at_its_place(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 3)
    paths[0].write_bytes(b"<html>")
    paths[1].unlink()
    cache = Cache(policy="lru")  # type: ignore[arg-type]
    with loading_of(FileSource(paths, range(3)), cache) as (loading, _):
        assert isinstance(loading.load(2), np.ndarray)
        with pytest.raises(ValueError, match="no known image format"):
            loading.load(0)
    paths[2].unlink()
    with loading_of(FileSource(paths, range(3)), cache) as (loading, _), pytest.raises(FileNotFoundError):
        loading.load(2)


def test_stores_of_one_program_do_not_count_on_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build_budget.available_bytes", lambda: 2 * 2**30)
    pixels = np.broadcast_to(np.zeros((1, 1000, 1000, 3), np.uint8), (2000, 1000, 1000, 3))
    source = ArraySource(pixels, range(2000))

    def budget(loading: Loading) -> int:
        assert loading.store is not None
        return loading.store.settings.max_bytes

    cache = Cache(policy="pinned")  # type: ignore[arg-type]
    too_much = Cache(policy="pinned", max_gib=1.5)  # type: ignore[arg-type]
    with loading_of(source, cache) as (train, _):
        assert budget(train) == 2**30
        with loading_of(source, cache) as (val, _):
            assert budget(train) + budget(val) <= 1.6 * 2**30
        with pytest.raises(ValueError, match=r"cache\.max_gib=1\.5 is more than"), loading_of(source, too_much):
            pass
    with loading_of(source, too_much) as (again, _):
        assert budget(again) == int(1.5 * 2**30)


def test_sets_whose_files_differ_in_nothing_but_their_place_have_packs_of_their_own(tmp_path: Path) -> None:
    sources = []
    for name, level in (("A", 20), ("B", 230)):
        path = tmp_path / name / "image.bmp"
        path.parent.mkdir()
        Image.new("RGB", (8, 8), (level, level, level)).save(path)
        os.utime(path, (1, 1))
        sources.append(FileSource(["image.bmp"], [0], root=tmp_path / name))
    assert sources[0].fingerprint() == sources[1].fingerprint()
    pack = Preload(mode="pack", dir=str(tmp_path / "packs"))  # type: ignore[arg-type]
    for _ in range(2):
        for source in sources:
            with loading_of(source, Cache(), pack) as (loading, _):
                assert loading.load(0) == source.read(0)
    assert len(list((tmp_path / "packs").glob("*.pack"))) == 2, "each run would pack anew what the other has packed"


def test_a_budget_above_what_is_free_is_refused(tmp_path: Path) -> None:
    source = FileSource(write_jpegs(tmp_path, 1), range(1))
    with (
        pytest.raises(ValueError, match=r"cache\.max_gib=1e\+06 is more than the .* GiB that are free"),
        loading_of(source, Cache(policy="lru", max_gib=1e6)),  # type: ignore[arg-type]
    ):
        pass


def test_an_estimate_is_of_files_and_of_pixels_after_max_side(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path / "large", 3, height=60, width=80) + write_jpegs(tmp_path / "small", 1)
    source = FileSource(paths, range(4))
    files = np.mean([path.stat().st_size for path in paths])
    assert look_at_some(source.read, 4, None)[:2] == (files, 3 * 60 * 80)
    assert look_at_some(source.read, 4, 40)[:2] == (files, 3 * 30 * 40)
    for path in paths:
        path.unlink()
    assert look_at_some(source.read, 4, None)[:2] == (math.inf, math.inf)


def test_pixels_cannot_be_packed_and_need_no_decoding(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((4, 16, 16, 3), np.uint8), range(4))
    pack = Preload(mode="pack", dir=str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"use cache\.store=decoded or preload=ram"), loading_of(source, Cache(), pack):
        pass
    cache = Cache(store="decoded")  # type: ignore[arg-type]
    with loading_of(source, cache, Preload(mode="ram")) as (loading, stats):  # type: ignore[arg-type]
        assert np.shape(loading.load(3)) == (16, 16, 3)
        assert stats.summary()["decode_count"] == 0


def test_pinned_batches_have_the_type_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: pinned.append(batch) or batch)
    config = PipelineConfig(data=FolderData(root="/data"), prefetch=Prefetch(device="cpu", dtype="bfloat16"))
    delivery = plan_delivery(
        config, config.transforms.resolved(), torch.device("cpu"), pin_memory=True, has_own_transform=False
    )
    assert delivery.stage is not None
    batch = delivery.stage(Batch(torch.ones(2, 3, 8, 8), torch.zeros(2), ids=torch.arange(2)))
    assert batch.images.dtype is torch.bfloat16
    assert pinned == [batch]
