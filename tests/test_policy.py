"""TrivialAugment and RandAugment: torchvision's on PIL to the bit, drawn by image."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from fakes import photo
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from pipeline.config import ConfigError, Policy, Transforms
from pipeline.decode import Scratch
from pipeline.transforms import BatchTransform, SampleTransform
from pipeline.transforms.policy import _OPERATIONS, DrawnPolicy

SIZE = 64
THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


def space_of(policy: Policy) -> dict[str, tuple[torch.Tensor, bool]]:
    """Torchvision's magnitudes, and whether they have a sign."""
    if policy is Policy.trivial:
        return TrivialAugmentWide()._augmentation_space(31)
    return RandAugment()._augmentation_space(31, (SIZE, SIZE))


def drawn(policy: Policy) -> DrawnPolicy:
    return DrawnPolicy(Transforms(size=SIZE, policy=policy), first_column=0)


def done(policy: Policy, pixels: NDArray[np.uint8], draws: Any) -> NDArray[np.uint8]:
    made = pixels.copy()
    drawn(policy)(made, np.array(draws))
    return made


def theirs(name: str, magnitude: float, image: Image.Image) -> Image.Image:
    return _apply_op(image, THEIRS[name], magnitude, InterpolationMode.NEAREST, None)


def test_every_magnitude_is_torchvisions_to_the_bit() -> None:
    for number, name in enumerate(_OPERATIONS):
        magnitudes, is_signed = space_of(Policy.trivial)[THEIRS[name]]
        for bin_number, sign in itertools.product(range(31), (0.25, 0.75)):
            magnitude = float(magnitudes[bin_number]) if magnitudes.ndim else 0.0
            expected = -magnitude if is_signed and sign < 0.5 else magnitude
            draws = np.array([(number + 0.5) / 14, (bin_number + 0.5) / 31, sign])
            assert drawn(Policy.trivial).chosen(draws) == [(name, expected)]


@pytest.mark.parametrize("size", [8, 32, 33, 96, 224, 511])
def test_magnitudes_that_grow_with_the_image_are_torchvisions_to_the_bit(size: int) -> None:
    space = RandAugment()._augmentation_space(31, (size, size))
    policy = DrawnPolicy(Transforms(size=size, policy=Policy.rand), first_column=0)
    for number, name in enumerate(_OPERATIONS):
        magnitudes, _ = space[THEIRS[name]]
        expected = float(magnitudes[9]) if magnitudes.ndim else 0.0
        assert policy.chosen(np.full(4, (number + 0.5) / 14))[0][1] in (expected, -expected)


@pytest.mark.parametrize("bin_number", [0, 1, 8, 10, 15, 17, 20, 22, 30])
@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("number", range(14), ids=list(_OPERATIONS))
def test_every_operation_is_torchvisions_on_pil_to_the_bit(number: int, negative: bool, bin_number: int) -> None:
    name = list(_OPERATIONS)[number]
    pixels = photo(number, SIZE, SIZE)
    magnitudes, is_signed = space_of(Policy.trivial)[THEIRS[name]]
    magnitude = float(magnitudes[bin_number]) if magnitudes.ndim else 0.0
    magnitude = -magnitude if is_signed and negative else magnitude
    draws = [(number + 0.5) / 14, (bin_number + 0.5) / 31, 0.25 if negative else 0.75]
    expected = np.asarray(theirs(name, magnitude, Image.fromarray(pixels)))
    assert np.array_equal(done(Policy.trivial, pixels, draws), expected)


def test_rand_augment_does_two_operations_of_torchvisions_ninth_magnitude() -> None:
    space = space_of(Policy.rand)
    for seed in range(60):
        draws = np.random.default_rng(seed).random(4)
        chosen = drawn(Policy.rand).chosen(draws)
        assert len(chosen) == 2
        pixels = photo(seed, SIZE, SIZE)
        image = Image.fromarray(pixels)
        for (name, magnitude), sign in zip(chosen, draws[1::2], strict=True):
            magnitudes, is_signed = space[THEIRS[name]]
            if magnitudes.ndim:
                assert abs(magnitude) == float(magnitudes[9])
                assert (magnitude < 0) == bool(is_signed and sign < 0.5 and magnitude)
            image = theirs(name, magnitude, image)
        assert np.array_equal(done(Policy.rand, pixels, draws), np.asarray(image))


def test_every_operation_is_drawn_as_often() -> None:
    policy = drawn(Policy.trivial)
    names = [policy.chosen(draws)[0][0] for draws in np.random.default_rng(0).random((14_000, 3))]
    counts = np.array([names.count(name) for name in _OPERATIONS])
    assert ((counts - 1000) ** 2 / 1000).sum() < 34.5, "chi-squared of 13 degrees, 0.1 %"


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_it_comes_after_crop_and_flip_wherever_colours_are_made(policy: str) -> None:
    options = Transforms(size=SIZE, policy=policy, brightness=0.4)  # type: ignore[arg-type]
    plain = SampleTransform(Transforms(size=SIZE), normalise=False)
    worker, rest = SampleTransform(options, normalise=True), SampleTransform(options, normalise=False)
    assert worker.num_draws == BatchTransform(options).num_draws == 23 + (3 if policy == "trivial" else 4) + 1
    for seed, draws in enumerate(np.random.default_rng(3).random((20, worker.num_draws))):
        crop, levels = (np.empty((SIZE, SIZE, 3), np.uint8) for _ in range(2))
        plain(photo(seed, 90, 120), draws[:23], crop, Scratch())
        rest(photo(seed, 90, 120), draws, levels, Scratch())
        assert np.array_equal(levels, done(Policy(policy), crop, draws[23:]))
        row = np.empty((SIZE, SIZE, 3), np.float32)
        worker(photo(seed, 90, 120), draws, row, Scratch())
        on_device = BatchTransform(options)(torch.from_numpy(levels)[None].permute(0, 3, 1, 2), draws[None])
        assert np.array_equal(on_device[0].permute(1, 2, 0).numpy(), row)


def test_evaluation_draws_none_and_an_unknown_name_is_refused() -> None:
    assert SampleTransform(Transforms(policy=Policy.trivial).evaluation(), normalise=True).num_draws == 0
    with pytest.raises(ConfigError, match=r"transforms\.policy"):
        Transforms(policy="auto")  # type: ignore[arg-type]
