"""`schedule.sizes`: training images that change their size between epochs, and nothing else that changes by it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import digest
from fakes import write_jpegs
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from runs import assert_same_run, command, rows, run, short_run, summary
from torch import Tensor, nn
from watching import own_pss_bytes, workers_begun, workers_of

from pipeline import build_batches
from pipeline._compat import HYDRA_DEFAULTS
from pipeline.api import create_dataloader
from pipeline.build import Pipeline, build_pipeline
from pipeline.build_loader import check_memory
from pipeline.cli import conf_dir
from pipeline.config import (
    BenchConfig,
    Cache,
    ConfigError,
    FolderData,
    Loader,
    PipelineConfig,
    Prefetch,
    PrefetchDevice,
    Schedule,
    SyntheticData,
    TrainConfig,
    Transforms,
)
from pipeline.config.compose import to_config
from pipeline.config.messages import one_line
from pipeline.doctor.plan import plan_run
from pipeline.model import ResNetSmall
from pipeline.training.checks import check_last_batch
from pipeline.training.run import train
from pipeline.training.sizes import last_of_size, longest_size, size_at, training_sizes

SIZES = [[1, 16], [2, 24], [4, 16]]
STEPS_PER_EPOCH = 4

pytestmark = pytest.mark.usefixtures("torch_as_before")


def config(images: Path, *, resume: Path | None = None, **groups: Any) -> TrainConfig:
    """Four epochs of four steps; evaluation at 32 pixels."""
    schedule = {"epochs": 4, "sizes": SIZES} | groups.pop("schedule", {})
    return short_run(images, size=32, resume=resume, schedule=schedule, **groups)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(config(images), run_dir)
    return run_dir


@contextmanager
def sizes_that_models_see() -> Iterator[list[tuple[bool, int]]]:
    """Of each batch, in order: whether it is trained on, and how many pixels high it is."""
    seen: list[tuple[bool, int]] = []

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, ResNetSmall):
            seen.append((module.training, arguments[0].shape[2]))

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


# --- a pipeline ------------------------------------------------------------------------------------------------------


def pipeline_of(folder: Path, loader: Loader, *, size: int = 16, prefetch: str = "none", **options: Any) -> Pipeline:
    cfg = TrainConfig(
        data=FolderData(root=str(folder)),
        loader=loader,
        cache=options.pop("cache", Cache()),
        prefetch=Prefetch(device=prefetch),  # type: ignore[arg-type]
        transforms=Transforms.named("standard", size=size),
    )
    return build_pipeline(cfg, **options)


@pytest.mark.parametrize("prefetch", ["none", "cpu"])
@pytest.mark.parametrize(("num_workers", "backend"), [(0, "auto"), (2, "threads"), (2, "processes")])
def test_batches_after_a_change_are_those_of_a_pipeline_of_that_size(
    num_workers: int, backend: str, prefetch: str, trial_folder: Path
) -> None:
    loader = Loader(batch_size=4, num_workers=num_workers, backend=backend)  # type: ignore[arg-type]
    plain = Loader(batch_size=4, num_workers=0)
    with pipeline_of(trial_folder, loader, prefetch=prefetch) as changing:
        for _ in range(2):
            assert all(batch.images.shape[2:] == (16, 16) for batch in changing)
        changing.change_size(24)
        after = [digest(batch) for batch in changing]
        state = changing.state_dict()
    with pipeline_of(trial_folder, plain, size=24) as fresh:
        fresh.set_epoch(2)
        assert [digest(batch) for batch in fresh] == after
        assert fresh.state_dict() == state


def test_a_change_within_an_epoch_goes_on_with_its_next_batch(trial_folder: Path) -> None:
    loader = Loader(batch_size=4, num_workers=2)
    with pipeline_of(trial_folder, loader, prefetch="cpu") as changing:
        batches = iter(changing)
        ids = [next(batches).ids.tolist() for _ in range(2)]
        changing.change_size(24)
        with pytest.raises(RuntimeError, match="abandoned"):
            next(batches)
        rest = list(changing)
    assert {batch.images.shape[2] for batch in rest} == {24}
    with pipeline_of(trial_folder, loader) as fresh:
        assert [batch.ids.tolist() for batch in fresh] == [*ids, *(batch.ids.tolist() for batch in rest)]


@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize("store", ["encoded", "decoded"])
def test_what_the_cache_has_is_still_there_after_a_change(store: str, backend: str, tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 1)):
        write_jpegs(tmp_path / split / "cats", count)
    loader = Loader(batch_size=4, num_workers=2, backend=backend)  # type: ignore[arg-type]
    cache = Cache(policy="pinned", store=store)  # type: ignore[arg-type]
    with pipeline_of(tmp_path, loader, cache=cache, num_epochs=1) as changing:
        assert sum(len(batch.ids) for batch in changing) == 12
        before = changing.stats()
        for path in (tmp_path / "train").rglob("*.jpg"):
            path.unlink()
        changing.change_size(24, num_epochs=2)
        assert {batch.images.shape[2] for batch in changing} == {24}
        after = changing.stats()
        assert (after["cache_misses"], after["cache_hits"]) == (before["cache_misses"], before["cache_hits"] + 12)


def test_the_workers_end_before_others_begin(trial_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_batches.build_executor
    alive: list[set[int]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        alive.append(workers_of(os.getpid()))
        return build(*arguments, **options)

    monkeypatch.setattr(build_batches, "build_executor", watched)
    with pipeline_of(trial_folder, Loader(batch_size=4, num_workers=2, backend="processes")) as changing:  # type: ignore[arg-type]
        list(changing)
        before = workers_begun(2)
        changing.change_size(24)
        list(changing)
        assert len(workers_of(os.getpid())) == 2
        assert not before & workers_of(os.getpid())
    assert alive == [set(), set()]


def test_nothing_is_made_ahead_that_the_next_size_would_throw_away(trial_folder: Path) -> None:
    with pipeline_of(trial_folder, Loader(batch_size=4, num_workers=1), num_epochs=1) as changing:
        list(changing)
        changing.change_size(24, num_epochs=2)
        list(changing)
        assert changing.stats()["transform_count"] == changing.stats()["samples"] == 48


def test_the_seconds_of_a_prefetcher_go_on_after_a_change(trial_folder: Path) -> None:
    with pipeline_of(trial_folder, Loader(batch_size=4, num_workers=1), prefetch="cpu") as changing:
        list(changing)
        before = changing.stats()
        changing.change_size(24)
        assert changing.stats()["wait_s"] == before["wait_s"] > 0
        list(changing)
        assert changing.stats()["transfer_count"] == 2 * before["transfer_count"]


def flat(image: Any) -> Tensor:
    return torch.zeros(3, *image.size)


def test_a_transform_of_ones_own_has_no_size_to_change(jpegs: list[Path]) -> None:
    with (
        create_dataloader(jpegs, [0] * len(jpegs), 4, num_workers=0, transform=flat) as loader,
        pytest.raises(ValueError, match="transform=flat decides the size of its images"),
    ):
        loader.change_size(24)


def test_a_size_that_is_none_changes_nothing_and_a_closed_pipeline_starts_no_workers(trial_folder: Path) -> None:
    with pipeline_of(trial_folder, Loader(batch_size=4, num_workers=0)) as changing:
        with pytest.raises(ConfigError, match=r"transforms\.size must be >= 8, got 4"):
            changing.change_size(4)
        assert {batch.images.shape[2] for batch in changing} == {16}
    with pytest.raises(RuntimeError, match=r"close\(\) was already called"):
        changing.change_size(24)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_workers", "prefetch"), [(0, "none"), (2, "none"), (2, "cpu")])
def test_each_epoch_trains_at_its_size_and_every_evaluation_is_at_the_transforms(
    num_workers: int, prefetch: str, images: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sizes_that_models_see() as seen:
        train(config(images, loader={"num_workers": num_workers}, prefetch={"device": prefetch}), tmp_path)
    assert [size for training, size in seen if training] == [16] * 4 + [24] * 8 + [16] * 4
    assert {size for training, size in seen if not training} == {32}
    assert "images of 16 pixels, from epoch 2 on 24, from epoch 4 on 16" in capsys.readouterr().err
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("step", range(1, 4 * STEPS_PER_EPOCH))
def test_a_run_cut_anywhere_goes_on_to_the_same_end(step: int, images: Path, whole: Path, tmp_path: Path) -> None:
    train(config(images, run={"max_steps": step}), tmp_path)
    assert summary(tmp_path)["status"] == "stopped"
    num_workers = step % 3  # read ahead or not, it is the same
    train(config(images, resume=tmp_path, loader={"num_workers": num_workers}), tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_killed_after_an_epoch_goes_on_from_the_border_to_the_same_end(
    epoch: int, images: Path, whole: Path, faults: Path, tmp_path: Path
) -> None:
    sizes = ["schedule.sizes=[[1,16],[2,24],[4,16]]", "schedule.epochs=4", "transforms.size=32"]
    part = [*command(images, *sizes, "run.name=cut", "resume=auto", "transforms.scale=[0.5,1.0]")]
    # As the next epoch's checkpoint is about to take its name: the one of this epoch's end is what there is.
    fault = f"os.rename|checkpoints/last.pt|{epoch + 1}|SIGKILL"
    killed = run([*part, "loader.num_workers=2"], cwd=tmp_path, faults=faults, fault=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    continued = run([*part, "loader.num_workers=0"], cwd=tmp_path, faults=faults)
    assert continued.returncode == 0, continued.stderr
    assert f"in epoch {epoch}" in continued.stderr
    assert_same_run(tmp_path / "outputs/train/cut", whole)


def test_the_learning_rate_does_not_depend_on_the_sizes(images: Path, whole: Path, tmp_path: Path) -> None:
    train(config(images, schedule={"sizes": None}), tmp_path)
    assert [row["lr"] for row in rows(tmp_path)] == [row["lr"] for row in rows(whole)]
    assert [row["train_loss"] for row in rows(tmp_path)] != [row["train_loss"] for row in rows(whole)]


def test_other_sizes_are_refused_by_name_when_a_run_goes_on(images: Path, tmp_path: Path) -> None:
    train(config(images, run={"max_steps": 2}), tmp_path)
    with pytest.raises(ConfigError) as caught:
        train(config(images, resume=tmp_path, schedule={"sizes": [[1, 16], [3, 24]]}), tmp_path)
    was, now = "[[1, 16], [2, 24], [4, 16]]", "[[1, 16], [3, 24]]"
    assert f"  schedule.sizes: was {was}, is {now}" in str(caught.value).splitlines()


def test_two_ranks_change_size_together_and_go_on_from_the_border(images: Path, faults: Path, tmp_path: Path) -> None:
    sizes = ["schedule.sizes=[[1,16],[2,24]]", "schedule.epochs=2", "dist.nproc=2", "loader.batch_size=2"]
    part = [*command(images, *sizes), "cache=pinned"]
    uncut = run([*part, "run.name=whole"], cwd=tmp_path, faults=faults)
    assert uncut.returncode == 0, uncut.stderr
    cut = run([*part, "run.name=cut", "run.max_steps=4"], cwd=tmp_path, faults=faults)
    assert cut.returncode == 0, cut.stderr
    continued = run([*part, "run.name=cut", "resume=auto"], cwd=tmp_path, faults=faults)
    assert continued.returncode == 0, continued.stderr
    assert_same_run(tmp_path / "outputs/train/cut", tmp_path / "outputs/train/whole")


def test_the_contact_sheet_shows_images_of_the_first_size(images: Path, tmp_path: Path) -> None:
    for name, sizes, size in (("changing", SIZES, 32), ("small", None, 16)):
        cfg = short_run(images, size=size, schedule={"epochs": 4, "sizes": sizes}, run={"max_steps": 5})
        train(replace(cfg, report=replace(cfg.report, samples=True)), tmp_path / name)
    assert (tmp_path / "changing/samples.png").read_bytes() == (tmp_path / "small/samples.png").read_bytes()


def test_tuning_changes_no_size(images: Path, tmp_path: Path, faults: Path) -> None:
    part = command(images, "schedule.sizes=[[1,8],[2,16]]", "tune=true", "run.name=tuned", "run.max_steps=5")
    finished = run(part, cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    found = summary(tmp_path / "outputs/train/tuned")
    assert found["config"]["schedule"]["sizes"] == [[1, 8], [2, 16]]
    assert found["config"]["transforms"]["size"] == 16
    assert "images of 8 pixels, from epoch 2 on 16" in finished.stderr


def test_a_size_that_memory_has_no_room_for_is_refused_before_the_first_step(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(images, schedule={"sizes": [[1, 16], [3, 64]]})
    needed_bytes = check_memory(cfg.loader, 0, plan_run(cfg).transform())
    monkeypatch.setattr("pipeline.build_loader.available_bytes", lambda: needed_bytes - 1)
    with sizes_that_models_see() as seen, pytest.raises(ConfigError, match="batches in flight need") as caught:
        train(cfg, tmp_path)
    assert seen == []
    assert str(caught.value).endswith(
        "lower loader.batch_size, loader.prefetch_factor or the 64 pixels in schedule.sizes"
    )
    first = config(images, schedule={"sizes": [[1, 64], [3, 16]]})
    with pytest.raises(ConfigError, match=r"the 64 pixels in schedule\.sizes"):
        train(first, tmp_path)
    alone = replace(first, transforms=replace(first.transforms, size=64), schedule=Schedule(epochs=4))
    with pytest.raises(ConfigError, match=r"or transforms\.size$"):
        train(alone, tmp_path)


# --- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            [[2, 32]],
            r"must begin with epoch 1 and go on in order, got \[\[2, 32\]\]; \[\[1,32\],\[5,48\]\] is 32 pixels",
        ),
        ([[1, 32], [5, 48], [3, 64]], "must begin with epoch 1 and go on in order"),
        ([[1, 32], [1, 48]], "must begin with epoch 1 and go on in order"),
        ([[1, 7]], "a size in schedule.sizes must be >= 8, got 7"),
        ([[1, 32.5]], "a size in schedule.sizes must be a whole number >= 8, got 32.5"),
        ([[1, 32], [9, 48]], "schedule.sizes changes at epoch 9, after the last of schedule.epochs=8"),
        ([], "must be pairs of an epoch and a size, got "),
        ([[1, 32, 3]], "must be pairs of an epoch and a size, got "),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(sizes: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Schedule(epochs=8, sizes=sizes)
    assert "\n" not in str(caught.value)


def test_sizes_must_fit_the_other_keys(images: Path, tmp_path: Path) -> None:
    cfg = config(images)
    with pytest.raises(ConfigError, match=r"schedule.sizes asks for 24 pixels .* transforms.max_side=20"):
        replace(cfg, transforms=Transforms(size=16, max_side=20))
    with pytest.raises(ConfigError, match=r"schedule.sizes is for train\.py"):
        BenchConfig(data=SyntheticData(num_images=100), schedule=Schedule(sizes=[[1, 32]]))
    alone = replace(cfg, loader=replace(cfg.loader, drop_last=False), transforms=Transforms(size=64))
    with pytest.raises(ConfigError, match=r"^loader\.batch_size=1 is too little for batch normalisation"):
        check_last_batch(replace(cfg, loader=replace(cfg.loader, batch_size=1)), num_samples=9)
    with pytest.raises(ConfigError, match=r"last batch of an epoch would be 1 sample .* at schedule.sizes=16;"):
        train(alone, tmp_path)


def test_the_command_line_and_yaml_mean_the_same() -> None:
    with initialize_config_dir(config_dir=str(conf_dir()), **HYDRA_DEFAULTS):
        cfg = to_config(compose("train", ["schedule.sizes=[[1,32],[5,48]]"]), cwd="/")
        assert cfg.schedule.sizes == [[1, 32], [5, 48]]
        assert to_config(compose("train", []), cwd="/").schedule.sizes is None
        lines = []
        values = ("32", "[1,32]", "[[1,x]]", "[[1,32.5]]", "{1:32}", "[[1,null]]", "[[1,32],5]")
        for value in values:
            with pytest.raises(HydraException) as caught:
                compose("train", [f"schedule.sizes={value}"])
            lines.append(one_line(caught.value))
    wanted = "schedule.sizes must be pairs of whole numbers, such as [[1,32],[5,48]], or null"
    assert lines == [f"{wanted}, got {value}" for value in values]


def test_sizes_by_epoch() -> None:
    cfg = TrainConfig(
        data=SyntheticData(num_images=100),
        transforms=Transforms(size=64),
        schedule=Schedule(epochs=8, sizes=[[1, 32], [3, 32], [4, 48], [6, 32]]),
    )
    assert [size_at(cfg, epoch) for epoch in range(1, 9)] == [32, 32, 32, 48, 48, 32, 32, 32]
    assert [last_of_size(cfg, epoch) for epoch in range(1, 9)] == [3, 3, 3, 5, 5, 8, 8, 8]
    assert training_sizes(cfg) == [32, 48]
    assert longest_size(cfg) == 32
    plain = replace(cfg, schedule=Schedule(epochs=8))
    assert (size_at(plain, 3), last_of_size(plain, 3), training_sizes(plain), longest_size(plain)) == (64, 8, [64], 64)


def test_the_doctor_plans_for_the_largest_size(images: Path) -> None:
    plan = plan_run(config(images))
    assert plan.transform(training=True).row_shape == (24, 24, 3)
    assert plan.transform(training=False).row_shape == (32, 32, 3)


@pytest.mark.parametrize("prefetch", ["none", "cpu"])
def test_memory_stays_over_ten_epochs_of_changing_sizes(prefetch: str, images: Path) -> None:
    sizes = [160, 96]
    cfg = PipelineConfig(
        data=FolderData(root=str(images)),
        transforms=Transforms(size=sizes[1]),
        loader=Loader(batch_size=32, num_workers=2, drop_last=False),
        prefetch=Prefetch(device=PrefetchDevice(prefetch)),
    )
    slot_bytes = 32 * 160 * 160 * 3 * 4
    used: list[int] = []
    with build_pipeline(cfg) as pipeline:
        for number in range(12):
            pipeline.change_size(sizes[number % 2])
            for batch in pipeline:
                assert batch.images.shape[-1] == sizes[number % 2]
            del batch
            used.append(own_pss_bytes(os.getpid()))
    assert max(used[-2:]) < max(used[2:4]) + slot_bytes, [count >> 20 for count in used]
