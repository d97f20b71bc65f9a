"""`transforms.crops_per_image`: several crops of an image that is decoded once, each by draws of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import short_run

from pipeline.build import build_pipeline
from pipeline.config import (
    Backend,
    Cache,
    CachePolicy,
    ConfigError,
    FolderData,
    Loader,
    OnError,
    PipelineConfig,
    Place,
    Prefetch,
    SamplerName,
    Store,
    Transforms,
)
from pipeline.decode import Scratch
from pipeline.draws import draws
from pipeline.loader.batch import Batch
from pipeline.stalls import stage_costs
from pipeline.training.run import train
from pipeline.transforms import SampleTransform

CROPS = 3
SERIAL: dict[str, Any] = {"num_workers": 0}


def config(root: Path, *, crops: int = CROPS, loader: dict[str, Any] = SERIAL, **options: Any) -> PipelineConfig:
    transforms = Transforms(size=24, crops_per_image=crops, brightness=0.4, **options.pop("transforms", {}))
    data = options.pop("data", FolderData(root=str(root), val_fraction=0.2))
    return PipelineConfig(data=data, transforms=transforms, loader=Loader(batch_size=4, **loader), **options)


def epoch(cfg: PipelineConfig, **options: Any) -> list[Batch]:
    with build_pipeline(cfg, **options) as pipeline:
        return list(pipeline)


def test_every_crop_is_what_its_own_draws_make_of_the_image(images: Path) -> None:
    cfg = config(images)
    one = SampleTransform(cfg.transforms, normalise=True)
    with build_pipeline(cfg) as pipeline:
        for batch in pipeline:
            ids = batch.ids.numpy()
            assert len(ids) == len(batch.labels) == len(batch.images)
            assert np.array_equal(ids, np.repeat(ids[::CROPS], CROPS))
            assert batch.labels.tolist() == [pipeline.source.label(id) for id in ids.tolist()]
            for row, id in enumerate(ids.tolist()):
                own = draws(cfg.seed, 0, np.array([id]), one.num_draws, row % CROPS)[0]
                expected = np.empty(one.row_shape, one.row_dtype)
                one(pipeline.source.read(id), own, expected, Scratch())
                assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), expected)
                assert np.array_equal(batch.draws[row], own)


def test_the_first_crop_is_the_only_one_of_a_run_without(images: Path) -> None:
    for one, several in zip(epoch(config(images, crops=1)), epoch(config(images)), strict=True):
        assert torch.equal(several.images[::CROPS], one.images)
        assert torch.equal(several.ids[::CROPS], one.ids)


@pytest.mark.parametrize(
    "change",
    [
        {"loader": {"num_workers": 3}},
        {"loader": {"num_workers": 2, "backend": Backend.processes}},
        {"cache": Cache(policy=CachePolicy.pinned, store=Store.decoded)},
        {"cache": Cache(policy=CachePolicy.lru, store=Store.encoded), "loader": {"num_workers": 2}},
        {"prefetch": Prefetch(device="cpu")},
    ],
    ids=["threads", "processes", "decoded", "lru", "prefetch"],
)
def test_batches_are_the_same_whoever_makes_them(change: dict[str, Any], images: Path) -> None:
    for one, other in zip(epoch(config(images)), epoch(config(images, **change)), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_a_device_finishes_each_crop_by_its_own_draws(images: Path) -> None:
    for one, other in zip(
        epoch(config(images)), epoch(config(images, transforms={"place": Place.device})), strict=True
    ):
        assert torch.equal(one.images, other.images)


def test_an_epoch_has_every_image_once_and_a_state_counts_images(images: Path) -> None:
    cfg = config(images)
    with build_pipeline(cfg) as pipeline:
        whole = list(pipeline)
        assert len(whole) == len(pipeline)
        ids = torch.cat([batch.ids for batch in whole])
        assert sorted(ids.tolist()) == sorted([*range(pipeline.num_samples)] * CROPS)
        assert pipeline.stats()["samples"] == pipeline.num_samples
        assert pipeline.stats()["decode_count"] == pipeline.num_samples
        second = [batch.images for batch in pipeline]
    with build_pipeline(cfg) as pipeline:
        list(pipeline)
        batches = iter(pipeline)
        next(batches)
        state = pipeline.state_dict()
        del batches
    with build_pipeline(cfg) as pipeline:
        pipeline.load_state_dict(state)
        assert all(map(torch.equal, second[1:], (batch.images for batch in pipeline)))


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_a_bad_image_takes_all_of_its_crops_with_it(
    on_error: str, images: Path, spoilt: Callable[[Path], Path], tmp_path: Path
) -> None:
    root = spoilt(images)
    data = FolderData(root=str(root), val_fraction=1e-9, on_error=OnError[on_error], max_bad_fraction=0.5)
    batches = epoch(config(root, data=data))
    for batch in batches:
        ids = batch.ids.tolist()
        assert len(batch.images) == len(ids)
        assert ids[::CROPS] == ids[1::CROPS] == ids[2::CROPS]
    missing = 1 if on_error == "skip" else 0
    assert sum(len(batch.ids) for batch in batches) == CROPS * (len(list(root.rglob("*.jpg"))) - missing)


@pytest.fixture
def spoilt(tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a copy of a tree in which one image is cut."""

    def spoil(tree: Path) -> Path:
        for file in tree.rglob("*.jpg"):
            copy = tmp_path / "spoilt" / file.relative_to(tree)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        first = sorted((tmp_path / "spoilt").rglob("*.jpg"))[0]
        first.write_bytes(first.read_bytes()[:200])
        return tmp_path / "spoilt"

    return spoil


@pytest.mark.parametrize("name", [SamplerName.shuffle, SamplerName.balanced])
def test_crops_of_an_image_drawn_twice_are_all_different(name: SamplerName, images: Path) -> None:
    batches = epoch(config(images, loader={"num_workers": 0, "sampler": name}))
    made = [image.numpy().tobytes() for batch in batches for image in batch.images]
    assert len(set(made)) == len(made)


def test_evaluation_has_one_crop(images: Path) -> None:
    with build_pipeline(config(images), split="val") as pipeline:
        assert sum(len(batch.images) for batch in pipeline) == pipeline.num_samples


def test_what_would_not_be_several_crops_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crops_per_image=2 decodes an image once .*use transforms\.decode=full"):
        Transforms(crops_per_image=2, decode="scaled")
    with pytest.raises(ConfigError, match=r"would be as many equal images"):
        Transforms(crops_per_image=2, augment="none")
    with pytest.raises(ConfigError, match=r"crops_per_image"):
        Transforms(crops_per_image=0)


def test_the_stall_report_counts_crops_throughout(images: Path, tmp_path: Path) -> None:
    cfg = short_run(images)
    train(replace(cfg, transforms=replace(cfg.transforms, crops_per_image=8)), tmp_path)
    stalls = json.loads((tmp_path / "summary.json").read_text())["stalls"]
    # One thread makes the crops and trains on them: it cannot make more in a second than it has time for.
    assert stalls["worker_ms"] * stalls["measured_samples_per_sec"] < 1000


def test_stages_of_an_image_are_shared_by_its_crops_and_what_moves_batches_counts_crops() -> None:
    end = {
        "busy_count": 10,
        "busy_ms": 6.0,
        "decode_count": 10,
        "decode_ms": 3.0,
        "transfer_count": 30,
        "transfer_ms": 1.0,
    }
    costs = stage_costs({}, end, num_crops=3)
    assert (costs["busy"], costs["decode"], costs["transfer"]) == pytest.approx((0.002, 0.001, 0.001))
