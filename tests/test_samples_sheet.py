"""`samples.png`: what it shows is what was trained on, and making it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from runs import assert_same_run

from pipeline.build import build_pipeline
from pipeline.config import FolderData, Loader, Logger, Model, Optim, Report, Run, Schedule, TrainConfig, Transforms
from pipeline.training.contact_sheet import Layout, Tile, draw_contact_sheet
from pipeline.training.run import train
from pipeline.training.samples_sheet import SamplesSheet, in_words

SIZE = 16


@pytest.fixture(autouse=True)
def _as_before(torch_as_before: None) -> None:
    """Training sets torch's threads and seed."""


def config(
    images: Path, *, samples: bool = True, resume: Path | None = None, max_steps: int | None = None
) -> TrainConfig:
    """Two epochs of six batches of four: 24 tiles, three rows of eight."""
    return TrainConfig(
        data=FolderData(root=str(images)),
        transforms=Transforms.named("heavy", size=SIZE, scale=[0.5, 1.0]),
        loader=Loader(batch_size=4, num_workers=0),
        model=Model(width=8),
        optim=Optim(lr=0.4),
        schedule=Schedule(epochs=2, warmup_epochs=0.5),
        logger=Logger(plot=False, every_steps=1),
        report=Report(samples=samples),
        run=Run(device="cpu", num_threads=1, max_steps=max_steps),
        resume=None if resume is None else str(resume),
    )


def first_epoch(cfg: TrainConfig) -> list[tuple[torch.Tensor, str, int]]:
    """Each image of it as the model gets it, the name of its class, and its id."""
    with build_pipeline(cfg) as pipeline:
        names = pipeline.source.class_names
        return [
            (image.clone(), names[label], id)
            for batch in pipeline
            for image, label, id in zip(batch.images, batch.labels.tolist(), batch.ids.tolist(), strict=True)
        ]


def levels(image: torch.Tensor, options: Transforms) -> NDArray[np.float64]:
    """The pixels (H, W, 3) that a normalised (3, H, W) was made of, not rounded."""
    mean, std = np.array(options.mean), np.array(options.std)
    return 255 * (image.double().numpy().transpose(1, 2, 0) * std + mean)


def shown(path: Path, *, rows: int, columns: int) -> tuple[NDArray[np.uint8], Layout]:
    """The picture, and where its tiles are."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    layout = replace(Layout.for_size(SIZE), rows=rows, columns=columns)
    return pixels, replace(layout, header=len(pixels) - layout.height)


def tile(pixels: NDArray[np.uint8], layout: Layout, number: int) -> NDArray[np.uint8]:
    left, top = layout.corner(number)
    return pixels[top : top + layout.side, left : left + layout.side]


# --- a run's ---------------------------------------------------------------------------------------------------------


def test_a_run_with_the_sheet_ends_with_the_same_weights_to_the_bit(trial_folder: Path, tmp_path: Path) -> None:
    train(config(trial_folder), tmp_path / "with")
    train(config(trial_folder, samples=False), tmp_path / "without")
    assert (tmp_path / "with" / "samples.png").exists()
    assert not (tmp_path / "without" / "samples.png").exists()
    assert_same_run(tmp_path / "with", tmp_path / "without")


def test_the_sheet_has_each_image_of_the_first_batches_as_the_model_gets_it(trial_folder: Path, tmp_path: Path) -> None:
    cfg = config(trial_folder)
    train(cfg, tmp_path)
    samples = first_epoch(cfg)
    assert len(samples) == 24
    pixels, layout = shown(tmp_path / "samples.png", rows=3, columns=8)
    for number, (image, _, _) in enumerate(samples):
        ours = tile(pixels, layout, number)
        expected = levels(image, cfg.transforms).repeat(layout.factor, axis=0).repeat(layout.factor, axis=1)
        assert np.abs(ours - expected).max() <= 1, f"tile {number}"


def test_the_sheet_says_class_and_id_under_each_image_and_what_was_done_to_all(
    trial_folder: Path, tmp_path: Path
) -> None:
    cfg = config(trial_folder)
    train(cfg, tmp_path / "run")
    tiles = [Tile(levels(image, cfg.transforms).round().astype(np.uint8), *rest) for image, *rest in first_epoch(cfg)]
    title = "What the model sees: epoch 1 from its first batch, 24 samples"
    draw_contact_sheet(tiles, tmp_path / "expected.png", title=title, caption=in_words(cfg.transforms))
    with Image.open(tmp_path / "run/samples.png") as ours, Image.open(tmp_path / "expected.png") as expected:
        difference = np.abs(np.asarray(ours, np.int16) - np.asarray(expected, np.int16))
    assert difference.max() <= 1  # a level where coloured pixels are rounded; text would differ by more


def test_a_continued_run_keeps_its_sheet_and_makes_one_that_is_missing(trial_folder: Path, tmp_path: Path) -> None:
    train(config(trial_folder, max_steps=1), tmp_path)
    path = tmp_path / "samples.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    path.write_bytes(b"kept")
    train(config(trial_folder, resume=tmp_path, max_steps=2), tmp_path)
    assert path.read_bytes() == b"kept"
    path.unlink()
    cfg = config(trial_folder, resume=tmp_path)
    train(cfg, tmp_path)
    pixels, layout = shown(path, rows=2, columns=8)  # the 16 that were left of the epoch
    image, _, _ = first_epoch(cfg)[8]
    expected = levels(image, cfg.transforms).repeat(layout.factor, axis=0).repeat(layout.factor, axis=1)
    assert np.abs(tile(pixels, layout, 0) - expected).max() <= 1


def test_a_run_that_begins_replaces_the_sheet_of_one_that_saved_nothing(trial_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.png").write_bytes(b"another run's")
    train(config(trial_folder, max_steps=1), tmp_path)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.format == "PNG"


# --- which samples ---------------------------------------------------------------------------------------------------


def watched(path: Path, batches: list[Any], **options: Any) -> tuple[SamplesSheet, list[Any]]:
    sheet = SamplesSheet(path, transforms=Transforms(**({"size": SIZE} | options)), class_names=["cats", "dogs"])
    return sheet, list(sheet.watch(batches, epoch=1))


def test_batches_pass_as_they_are_and_a_full_sheet_takes_no_more(tmp_path: Path) -> None:
    batches = [(torch.rand(20, 3, SIZE, SIZE), torch.arange(20) % 2) for _ in range(4)]
    before = [images.clone() for images, _ in batches]
    sheet, passed = watched(tmp_path / "samples.png", batches)
    assert all(ours is theirs for ours, theirs in zip(passed, batches, strict=True))
    assert all(torch.equal(images, earlier) for (images, _), earlier in zip(batches, before, strict=True))
    assert sheet.is_full
    sheet.draw()
    pixels, layout = shown(tmp_path / "samples.png", rows=6, columns=8)
    last = levels(before[2][7], Transforms(size=SIZE)).clip(0, 255)  # number 47
    assert np.abs(tile(pixels, layout, 47)[:: layout.factor, :: layout.factor] - last).max() <= 1


def test_what_is_shown_was_copied_before_the_batch_is_used_again(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, SIZE, SIZE)
    sheet, _ = watched(tmp_path / "samples.png", [(images, torch.tensor([0, 1]))], mean=[0.5] * 3)
    images.fill_(9.0)
    sheet.draw()
    pixels, layout = shown(tmp_path / "samples.png", rows=1, columns=2)
    assert set(np.unique(tile(pixels, layout, 0))) == {128}


def test_bfloat16_and_empty_batches_are_taken_too(tmp_path: Path) -> None:
    empty = (torch.empty(0, 3, SIZE, SIZE), torch.empty(0, dtype=torch.int64))
    half = (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bfloat16), torch.tensor([5]))  # a class without a name
    sheet, _ = watched(tmp_path / "samples.png", [empty, half], mean=[0.5] * 3)
    sheet.draw()
    pixels, layout = shown(tmp_path / "samples.png", rows=1, columns=1)
    assert set(np.unique(tile(pixels, layout, 0))) == {128}


def test_without_an_image_there_is_no_sheet(tmp_path: Path) -> None:
    sheet, _ = watched(tmp_path / "samples.png", [])
    sheet.draw()
    assert list(tmp_path.iterdir()) == []


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 64, 96, 224, 384, 512, 1024, 4096])
def test_tiles_of_every_size_lie_apart_within_a_picture_of_bearable_size(size: int) -> None:
    layout = Layout.for_size(size)
    assert 1 <= layout.columns <= 8
    assert 1 <= layout.rows <= 6
    assert layout.side >= 112
    assert max(layout.width, layout.height) <= max(2400, size + 100)
    corners = [layout.corner(number) for number in range(layout.num_tiles)]
    assert len(set(corners)) == len(corners)
    for left, top in corners:
        assert all(x == left or abs(x - left) > layout.side for x, _ in corners)
        assert all(y == top or abs(y - top) > layout.side + 30 for _, y in corners)  # two lines of text between
        assert 0 < left < left + layout.side < layout.width
        assert 0 <= top < top + layout.side + 30 < layout.height


def test_a_name_that_is_too_long_is_cut_and_stays_under_its_own_image(tmp_path: Path) -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    tiles = [Tile(grey, "a name\nof two lines that goes on and on and on", 10**30), Tile(grey, "")]
    layout = draw_contact_sheet(tiles, tmp_path / "sheet.png", title="t" * 300, caption="caption " * 80)
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = np.asarray(picture)
    (left, top), (next_left, _) = layout.corner(0), layout.corner(1)
    beneath = pixels[top + layout.side + 1 :]
    assert beneath[:, left : left + layout.side].min() < 100
    assert beneath[:, left + layout.side + 1 : next_left - 1].min() == 255
    assert beneath[:, next_left : next_left + layout.side].min() == 255
    margin = pixels[: layout.header - 1, -12:]  # title and caption end before the picture does
    assert margin.min() == 255


def test_the_caption_says_what_is_done_to_an_image() -> None:
    light = in_words(Transforms.named("light", size=64, scale=[0.5, 1.0], resize="fast"))
    assert light == (
        "transforms=light: random crop of 50 to 100 % of the area to 64 x 64 pixels (resize=fast), "
        "width : height of the crop 0.75 to 1.33, flip 50 %, normalisation undone"
    )
    heavy = in_words(Transforms.named("heavy", size=64, flip=0.0, decode="scaled", max_side=100))
    assert "decode=scaled, longest side at most 100 pixels, " in heavy
    assert "brightness x 0.2 to 1.8, contrast x 0.2 to 1.8, saturation x 0.2 to 1.8, hue ± 36°" in heavy
    assert "flip" not in heavy
    none = in_words(Transforms.named("none", size=64))
    assert none == (
        "transforms=none: short side to 73, centre cropped to 64 x 64 pixels (resize=exact), normalisation undone"
    )
