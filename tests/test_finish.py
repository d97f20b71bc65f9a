"""Greyscale, blur and erasing: what torchvision's do, each sample by draws of its own, in workers and on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import photo
from numpy.typing import NDArray
from torchvision.transforms import v2

from pipeline.build import build_pipeline
from pipeline.config import (
    ConfigError,
    FolderData,
    Loader,
    PipelineConfig,
    Place,
    Prefetch,
    PrefetchDevice,
    SamplerName,
    Transforms,
)
from pipeline.decode import Scratch
from pipeline.transforms import BatchTransform, SampleTransform
from pipeline.transforms.blur import Blur
from pipeline.transforms.erasing import Erasing

SIZE = 48
ALL: dict[str, Any] = {"greyscale": 0.5, "blur": 0.5, "erasing": 0.5, "brightness": 0.4, "saturation": 0.4, "hue": 0.1}
LEVEL = 1 / 255


def pixels_of(seed: int = 0) -> NDArray[np.uint8]:
    return photo(seed, SIZE, SIZE)


def finished(images: NDArray[np.uint8], draws: NDArray[np.float64], **options: Any) -> NDArray[np.float64]:
    """`images` (B, H, W, 3) after what a device does, in [0, 1]; `draws` for that alone."""
    settings = Transforms(size=SIZE, flip=0.0, **options)
    transform = BatchTransform(settings)
    columns = np.concatenate([np.zeros((len(draws), 22)), draws], axis=1)
    assert columns.shape[1] == transform.num_draws
    made = transform(torch.from_numpy(images).permute(0, 3, 1, 2), columns).permute(0, 2, 3, 1).double().numpy()
    return made * np.array(settings.std) + np.array(settings.mean)


def planes(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).double() / 255


def test_greyscale_is_torchvisions_for_draws_below_the_probability() -> None:
    images = np.stack([pixels_of(0), pixels_of(1)])
    made = finished(images, np.array([[0.29], [0.31]]), greyscale=0.3)
    expected = v2.functional.rgb_to_grayscale(planes(images[0]), num_output_channels=3).permute(1, 2, 0).numpy()
    assert np.abs(made[0] - expected).max() < 0.1 * LEVEL
    assert np.abs(made[1] - images[1] / 255).max() < 0.1 * LEVEL


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.999])
def test_a_blur_is_torchvisions_of_the_same_sigma_and_kernel(draw: float) -> None:
    image = pixels_of()
    sigma = 0.1 + 1.9 * draw
    made = finished(image[None], np.array([[0.4, draw]]), blur=0.5)[0]
    expected = v2.functional.gaussian_blur(planes(image), [13, 13], [sigma, sigma]).permute(1, 2, 0).numpy()
    assert np.abs(made - expected).max() < 0.1 * LEVEL
    untouched = finished(image[None], np.array([[0.6, draw]]), blur=0.5)[0]
    assert np.abs(untouched - image / 255).max() < 0.1 * LEVEL


def test_an_erased_part_is_the_mean_colour_and_the_rest_stays() -> None:
    options = Transforms(size=SIZE, erasing=0.5)
    draws = np.array([[0.49, 0.5, 0.5, 0.25, 0.75], [0.51, 0.5, 0.5, 0.25, 0.75]])
    images = np.stack([pixels_of(0), pixels_of(1)])
    made = finished(images, draws, erasing=0.5)
    (row,), ((top, left, bottom, right),) = Erasing(options, first_column=0).boxes(draws)
    assert row == 0
    assert np.allclose(made[0, top:bottom, left:right], options.mean, atol=1e-6)
    outside = np.ones((SIZE, SIZE), bool)
    outside[top:bottom, left:right] = False
    assert np.abs(made[0] - images[0] / 255)[outside].max() < 0.1 * LEVEL
    assert np.abs(made[1] - images[1] / 255).max() < 0.1 * LEVEL


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    num = 4000
    options = Transforms(size=224, erasing=1.0)
    rows, boxes = Erasing(options, first_column=0).boxes(np.random.default_rng(0).random((num, 5)))
    assert len(rows) == num
    assert boxes.min() >= 0
    assert boxes.max() <= 224
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ours = np.array([heights * widths, heights, boxes[:, 0], boxes[:, 1]])
    torch.manual_seed(0)
    image, told = torch.zeros(1, 224, 224), []
    for _ in range(num):
        params = v2.RandomErasing(p=1.0).make_params([image])
        told.append((params["h"] * params["w"], params["h"], params["i"], params["j"]))
    theirs = np.array(told).T
    # Means of 4,000 of each: their standard errors are below 1.6 % of the deviation.
    for own, other in zip(ours, theirs, strict=True):
        assert abs(own.mean() - other.mean()) < 0.08 * other.std()


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize(
    "options", [{"blur": 0.7}, {"blur": 0.7, "blur_sigma": [5.0, 9.0]}, ALL], ids=["blur", "wide", "all"]
)
def test_workers_and_devices_agree_within_a_hundred_thousandth(memory_format: str, options: dict[str, Any]) -> None:
    settings = Transforms(size=SIZE, **options)
    worker = SampleTransform(settings, normalise=True, memory_format=memory_format)
    rest = SampleTransform(settings, normalise=False)
    draws = np.random.default_rng(1).random((16, worker.num_draws))
    rows = np.empty((16, *worker.row_shape), np.float32)
    levels = np.empty((16, *rest.row_shape), np.uint8)
    for number, own in enumerate(draws):
        worker(pixels_of(number), own, rows[number], Scratch())
        rest(pixels_of(number), own, levels[number], Scratch())
    on_device = BatchTransform(settings)(torch.from_numpy(levels).permute(0, 3, 1, 2), draws).numpy()
    expected = rows if memory_format == "contiguous" else rows.transpose(0, 3, 1, 2)
    assert np.abs(on_device - expected).max() * max(settings.std) < 1e-5


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu_within_a_hundred_thousandth() -> None:
    settings = Transforms(size=SIZE, **ALL)
    transform = BatchTransform(settings)
    images = torch.from_numpy(np.stack([pixels_of(number) for number in range(16)])).permute(0, 3, 1, 2)
    draws = np.random.default_rng(1).random((16, transform.num_draws))
    difference = (transform(images.cuda(), draws).cpu() - transform(images, draws)).abs().max().item()
    assert difference * max(settings.std) < 1e-5


@pytest.mark.parametrize("place", ["worker", "device"])
def test_sixty_four_copies_of_one_image_become_sixty_four_images(place: str) -> None:
    settings = Transforms(size=SIZE, scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=0.0, **(ALL | {"erasing": 1.0}))
    transform = SampleTransform(settings, normalise=place == "worker")
    rows = np.empty((64, *transform.row_shape), transform.row_dtype)
    draws = np.random.default_rng(2).random((64, transform.num_draws))
    for own, row in zip(draws, rows, strict=True):
        transform(pixels_of(), own, row, Scratch())
    images = torch.from_numpy(rows).permute(0, 3, 1, 2)
    made = images if place == "worker" else BatchTransform(settings)(images, draws)
    assert len({image.numpy().tobytes() for image in made}) == 64


def test_a_kernel_is_never_wider_than_a_reflection_reaches() -> None:
    blur = Blur(Transforms(size=8, blur=1.0, blur_sigma=[9.0, 9.0]), first_column=0)
    _, kernels = blur.kernels(np.zeros((1, 2)))
    assert kernels.shape == (1, 15)
    image = torch.rand(1, 3, 8, 8).mul(255).to(torch.uint8)
    assert (
        BatchTransform(Transforms(size=8, blur=1.0, blur_sigma=[9.0, 9.0], flip=0.0))(image, np.zeros((1, 24)))
        .isfinite()
        .all()
    )


def batches(root: Path, place: str, prefetch: str = "auto", **options: Any) -> list[torch.Tensor]:
    cfg = PipelineConfig(
        data=FolderData(root=str(root)),
        transforms=Transforms(size=32, place=Place(place), **options),
        loader=Loader(batch_size=8, num_workers=0, sampler=SamplerName.sequential),
        prefetch=Prefetch(device=PrefetchDevice(prefetch)),
    )
    with build_pipeline(cfg) as pipeline:
        return [batch.images for batch in pipeline]


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_where_it_is_done_changes_no_value_beyond_a_hundred_thousandth(images: Path, options: dict[str, Any]) -> None:
    in_workers = batches(images, "worker", **options)
    for place, prefetch in (("auto", "auto"), ("worker", "cpu"), ("auto", "none")):
        assert all(map(torch.equal, in_workers, batches(images, place, prefetch, **options)))
    for prefetch in ("auto", "cpu"):
        on_device = batches(images, "device", prefetch, **options)
        assert all(one.dtype == torch.float32 for one in on_device)
        for one, other in zip(in_workers, on_device, strict=True):
            assert (one - other).abs().max().item() * 0.23 < 1e-5


def test_a_device_stage_without_a_prefetcher_is_refused(images: Path) -> None:
    with pytest.raises(ConfigError, match=r"transforms\.place=device needs prefetch=cpu, cuda, mps or auto"):
        batches(images, "device", "none")


@pytest.mark.parametrize("key", ["greyscale", "blur", "erasing"])
def test_probabilities_are_between_none_and_all(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"transforms\.{key} must be .*got 1\.5; 0 is off"):
        Transforms(**{key: 1.5})


def test_a_run_goes_on_wherever_colours_are_made(images: Path) -> None:
    def config(place: Place) -> PipelineConfig:
        return PipelineConfig(
            data=FolderData(root=str(images)), transforms=Transforms(size=32, place=place), loader=Loader(batch_size=8)
        )

    with build_pipeline(config(Place.worker)) as pipeline:
        batches = iter(pipeline)
        next(batches)
        state, expected = pipeline.state_dict(), next(batches)
    with build_pipeline(config(Place.device)) as pipeline:
        pipeline.load_state_dict(state)
        found = next(iter(pipeline))
    assert torch.equal(found.ids, expected.ids)
    assert (found.images - expected.images).abs().max().item() * 0.23 < 1e-5
