"""Tiny decoded images are made many at a time: the bytes, failures and deaths are those of one at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import assert_same_batches, digest
from fakes import FUSED, make_loader, write_jpegs
from samples import Block, Both, For, Once, Tell, is_killed, named, reads_a_null_pointer
from tiny import SIZE, Acting, Tiny, tiny_pixels
from watching import ANSWER_S, Fifo, run_aside

from pipeline.build import build_pipeline
from pipeline.config import Cache, FolderData, PipelineConfig, Transforms
from pipeline.config import Loader as LoaderConfig
from pipeline.decode import Scratch
from pipeline.loader.errors import WorkerDiedError, WorkerStalledError
from pipeline.loader.job import make_rows
from pipeline.loader.loader import Loader
from pipeline.loader.sample import MakeSample
from pipeline.sampler import SequentialSampler
from pipeline.stats import Stats
from pipeline.transforms.geometry import RANDOM_CROP_DRAWS, random_resized_crop, random_resized_crops
from pipeline.transforms.sample import SampleTransform

NUM_SAMPLES = 96
BACKENDS: dict[str, dict[str, Any]] = {
    "serial": {"num_workers": 0},
    "threads": {"num_workers": 2},
    "processes": {"num_workers": 2, "backend": "processes"},
    "processes of two threads": {"num_workers": 1, "backend": "processes", "threads_per_worker": 2},
}


def tiny_loader(load: Callable[[int], Any], transform: SampleTransform | None = None, **options: Any) -> Loader:
    """Batches of 32 in order of id, unless told otherwise."""
    transform = transform or Acting()
    settings: dict[str, Any] = {"num_samples": NUM_SAMPLES, "batch_size": 32, "row_shape": (SIZE, SIZE, 3)} | options
    settings.setdefault("sampler", SequentialSampler(settings["num_samples"]))
    sample = MakeSample(load, transform, where=named, stats=Stats())
    return make_loader(sample, num_draws=transform.num_draws, **settings)


def first_batch() -> str:
    """The digest of the first batch where nothing happens."""
    with tiny_loader(Tiny()) as loader:
        return digest(next(iter(loader)))


# Bytes.


def test_tiny_images_from_a_store_that_lends_its_memory_keep_their_bytes(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "train" / "a", 40, height=30, width=24)
    write_jpegs(tmp_path / "val" / "a", 1)

    def epochs(cache: Cache, **loader: Any) -> list[list[str]]:
        config = PipelineConfig(
            data=FolderData(root=str(tmp_path)),
            cache=cache,
            loader=LoaderConfig(batch_size=16, **loader),
            transforms=Transforms(size=16),
        )
        with build_pipeline(config, num_epochs=3) as pipeline:
            return [[digest(batch) for batch in pipeline] for _ in range(3)]

    processes: dict[str, Any] = {"backend": "processes", "num_workers": 1}
    lru = Cache(policy="lru", store="decoded", max_images=25)  # type: ignore[arg-type]
    pinned = Cache(policy="pinned", store="decoded")  # type: ignore[arg-type]
    uncached = epochs(Cache(), num_workers=0)
    assert epochs(lru, **processes) == epochs(pinned, **processes) == uncached


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("resize", ["fast", "exact", FUSED])
@pytest.mark.parametrize("augment", ["none", "light", "standard", "heavy"])
def test_many_rows_have_the_bytes_that_each_has_alone(
    augment: str, resize: str, normalise: bool, memory_format: str, size: int
) -> None:
    transform = SampleTransform(
        Transforms.named(augment, size=size, resize=resize), normalise=normalise, memory_format=memory_format
    )
    random = np.random.default_rng(size)
    shapes = [(32, 32)] * 20 + random.integers(8, 65, (transform.most_rows - 20, 2)).tolist()
    samples = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    assert all(transform.takes(sample) for sample in samples)
    draws = random.random((len(samples), transform.num_draws))
    together, alone = np.zeros((2, len(samples), *transform.row_shape), transform.row_dtype)
    transform.many(samples, draws, together, Scratch())
    for sample, own_draws, row in zip(samples, draws, alone, strict=True):
        transform(sample, own_draws, row, Scratch())
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_samples_among_tiny_ones_change_no_byte(backend: str) -> None:
    odd = {0: "huge", 5: "encoded", 6: "encoded", 31: "huge", 40: "huge", 95: "encoded"}
    transform = Acting()
    with tiny_loader(Tiny(odd), batch_size=96, **BACKENDS[backend]) as loader:
        (batch,) = loader
    for row, own_draws in enumerate(batch.draws):
        alone = np.empty(transform.row_shape, np.float32)
        transform(Tiny(odd)(row), own_draws, alone, Scratch())
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), alone), f"row {row}"


def test_shuffled_epochs_of_tiny_images_are_the_same_from_all_backends() -> None:
    loaders = [tiny_loader(Tiny(), sampler=None, batch_size=40, **options) for options in BACKENDS.values()]
    assert_same_batches(loaders)
    for loader in loaders:
        loader.close()


def test_images_above_the_limit_or_max_side_are_made_alone() -> None:
    transform = SampleTransform(Transforms.named("light", size=32, max_side=48), normalise=True)
    shapes = {(48, 48, 3): True, (49, 20, 3): False, (20, 49, 3): False, (20, 20): False}
    assert {shape: transform.takes(np.zeros(shape, np.uint8)) for shape in shapes} == shapes
    assert not SampleTransform(Transforms.named("light", size=65), normalise=True).takes(tiny_pixels(0))


# Crops.


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.2, 9.0)), ((1.0, 1.0), (1.0, 1.0))]
)
def test_crops_of_many_images_are_those_of_each(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    heights, widths = random.integers(1, 65, (2, 20_000))
    draws = random.random((20_000, RANDOM_CROP_DRAWS + 1))
    assert_same_crops(heights, widths, draws, scale, ratio)


def test_a_crop_whose_side_is_a_half_is_rounded_alike_among_many() -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    random = np.random.default_rng(0)
    draws = random.random((40_000, RANDOM_CROP_DRAWS))
    low, span = math.log(ratio[0]), math.log(ratio[1]) - math.log(ratio[0])
    shapes = np.array([math.exp(low + span * draw) for draw in draws[:, 1].tolist()])
    area = (random.integers(14, 26, 40_000) + 0.5) ** 2 / shapes  # of crops whose width lies at a half
    draws[:, 0] = (area / 32**2 - scale[0]) / (scale[1] - scale[0])
    draws = draws[(draws[:, 0] >= 0) & (draws[:, 0] < 1)]
    sides = np.full(len(draws), 32)
    assert_same_crops(sides, sides, draws, scale, ratio)


def assert_same_crops(
    heights: np.ndarray, widths: np.ndarray, draws: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    assert len(draws) > 1000
    many = random_resized_crops(heights, widths, draws, scale=scale, ratio=ratio)
    each = [
        random_resized_crop(height, width, own, scale=scale, ratio=ratio)
        for height, width, own in zip(
            heights.tolist(), widths.tolist(), draws[:, :RANDOM_CROP_DRAWS].tolist(), strict=True
        )
    ]
    assert many.tolist() == [list(box) for box in each]


# Tasks.


def test_tiny_images_are_made_together_in_every_task_and_counted_one_by_one() -> None:
    transform = Acting()
    with tiny_loader(Tiny(), transform, batch_size=96) as loader:
        list(loader)
    assert transform.groups == [64, 32]
    transform = Acting()
    stats = Stats()
    sample = MakeSample(Tiny(), transform, where=named, stats=stats)
    options: dict[str, Any] = {"num_samples": 96, "batch_size": 96, "row_shape": (SIZE, SIZE, 3)}
    with make_loader(sample, num_draws=transform.num_draws, num_workers=1, **options) as loader:
        list(loader)
    assert transform.groups == [24, 24, 24, 24], "about four tasks a thread"
    assert stats.summary()["transform_count"] == 96


def test_a_batch_that_nobody_wants_any_more_is_not_made() -> None:
    transform, load = Acting(), Tiny()
    sample = MakeSample(load, transform, where=named, stats=Stats())
    draws, rows = np.zeros((8, transform.num_draws)), np.zeros((8, *transform.row_shape), np.float32)

    def refuses_to_make(_: int, count: int) -> bool:
        return count == 1

    def refuses_to_read_on(first: int, _: int) -> bool:
        return first < 3

    assert list(sample.many(range(8), draws, rows, refuses_to_make)) == []
    assert load.reads == list(range(8))
    assert list(sample.many(range(8), draws, rows, refuses_to_read_on)) == []
    assert load.reads == [*range(8), 0, 1, 2]
    assert transform.groups == []


# Failures.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("odd", "failing", "stage"),
    [
        ({41: "no image"}, 41, "decode or transform"),
        ({41: "unreadable"}, 41, "read"),
        ({41: "unreadable", 37: "no image"}, 37, "decode or transform"),
        ({41: "no image", 37: "unreadable"}, 37, "read"),
        ({41: "no image", 37: "huge", 35: "encoded", 34: "no image"}, 34, "decode or transform"),
    ],
)
def test_a_failure_is_that_of_the_first_row_that_fails(
    odd: dict[int, str], failing: int, stage: str, backend: str
) -> None:
    with tiny_loader(Tiny(odd), **BACKENDS[backend]) as loader:
        iterator = iter(loader)
        assert digest(next(iterator)) == first_batch()
        with pytest.raises(Exception, match=r".") as caught:  # what exactly is OpenCV's to say
            next(iterator)
        note = " ".join(caught.value.__notes__)
        assert f"stage {stage}, sample id {failing}, {named(failing)}" in note


def test_no_sample_is_read_twice_because_another_fails() -> None:
    load = Tiny({20: "no image"})
    with tiny_loader(load) as loader, pytest.raises(Exception, match=r"."):  # OpenCV's words
        next(iter(loader))
    assert load.reads == list(range(32))


def test_rows_before_the_one_that_fails_are_made_and_counted() -> None:
    transform = Acting()
    sample = MakeSample(Tiny({20: "no image"}), transform, where=named, stats=Stats())
    draws, rows = np.zeros((32, transform.num_draws)), np.full((32, *transform.row_shape), np.nan, np.float32)
    made = make_rows(sample, list(range(32)), draws, rows, lambda *_: True)
    assert made.num_rows == 20
    assert made.error is not None
    assert np.isfinite(rows[:20]).all()


# Deaths and stalls.


def test_a_worker_killed_among_many_rows_changes_nothing_and_blames_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transform = Acting(For({37}, Once(tmp_path / "killed", is_killed)))
    options: dict[str, Any] = {"backend": "processes", "num_workers": 1, "max_restarts": 1}
    with tiny_loader(Tiny(), transform, **options) as loader, tiny_loader(Tiny()) as undisturbed:
        assert_same_batches([loader, undisturbed])
        assert loader.stats_counters.worker_deaths == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_sample_that_kills_its_worker_among_many_rows_is_found_and_the_others_are_not_blamed() -> None:
    transform = Acting(For({37}, reads_a_null_pointer))
    with tiny_loader(Tiny(), transform, backend="processes", num_workers=1, max_restarts=1) as loader:
        iterator = iter(loader)
        assert digest(next(iterator)) == first_batch()
        with pytest.raises(WorkerDiedError, match="a sample killed 3 workers") as caught:
            next(iterator)
    (note,) = caught.value.__notes__
    assert f"sample id 37, {named(37)}" in note


def test_all_rows_that_were_made_together_are_in_hand_and_no_other() -> None:
    transform = Acting(For({37}, is_killed))
    with (
        tiny_loader(Tiny(), transform, backend="processes", num_workers=1, max_restarts=0) as loader,
        pytest.raises(WorkerDiedError) as caught,
    ):
        list(loader)  # the death may be heard of before the first batch is asked for
    told = [line for line in str(caught.value).splitlines() if "in hand" in line]
    assert told == [f"  in hand: sample id {id}, {named(id)}" for id in range(32, 48)]


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_stall_names_all_samples_that_are_made_together(backend: str, told: Fifo, gate: Fifo) -> None:
    transform = Acting(For({2}, Both(Tell(told.path), Block(gate.path))))
    loader = tiny_loader(Tiny(), transform, backend=backend, num_workers=1, batch_size=16, stall_timeout_s=0.5)
    result = run_aside(lambda: next(iter(loader)))
    assert told.told()[1] == 2
    with pytest.raises(WorkerStalledError) as caught:
        result(ANSWER_S)
    in_hand = str(caught.value).partition(" has been in hand")[0]
    num_together = 4 if backend == "threads" else 8
    assert [id for id in range(16) if f"sample id {id}, {named(id)}" in in_hand] == list(range(num_together))
    gate.let_through()
    loader.close()
