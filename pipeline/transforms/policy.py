"""TrivialAugment and RandAugment: torchvision's on PIL to the bit, by operations of Pillow's, drawn for each image.

Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021, its wide space;
Cubuk and others, "RandAugment: Practical Automated Data Augmentation", NeurIPS 2020, with two operations of magnitude 9
of 30.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.config import Policy, Transforms

_NUM_BINS = 31
_RAND_OPERATIONS, _RAND_BIN = 2, 9

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Operation:
    """From output to input, in pixels; black outside."""

    def apply(image: Image.Image, magnitude: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(magnitude), Image.Resampling.NEAREST)

    return apply


# In torchvision's order. A magnitude of an enhancement is what is added to the factor 1.
_OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "shear_x": _affine(lambda slope: (1, slope, 0, 0, 1, 0)),
    "shear_y": _affine(lambda slope: (1, 0, 0, slope, 1, 0)),
    "translate_x": _affine(lambda pixels: (1, 0, -int(pixels), 0, 1, 0)),
    "translate_y": _affine(lambda pixels: (1, 0, 0, 0, 1, -int(pixels))),
    "rotate": lambda image, degrees: image.rotate(degrees),
    "brightness": lambda image, more: ImageEnhance.Brightness(image).enhance(1 + more),
    "color": lambda image, more: ImageEnhance.Color(image).enhance(1 + more),
    "contrast": lambda image, more: ImageEnhance.Contrast(image).enhance(1 + more),
    "sharpness": lambda image, more: ImageEnhance.Sharpness(image).enhance(1 + more),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}
_WITHOUT_MAGNITUDE = frozenset({"identity", "autocontrast", "equalize"})
_NAMES = tuple(_OPERATIONS)
_SIGNED = frozenset(_NAMES) - _WITHOUT_MAGNITUDE - {"posterize", "solarize"}


def _magnitude(name: str, policy: Policy, size: int, number: int) -> float:
    """The magnitude in bin `number` of `_NUM_BINS`, without its sign."""
    is_wide = policy is Policy.trivial
    if name in _WITHOUT_MAGNITUDE:
        return 0.0
    if name == "posterize":
        return 8 - round(number / (_NUM_BINS - 1) * (6 if is_wide else 4))
    if name == "solarize":
        return _spaced(255.0, 0.0, number)
    if name.startswith("translate"):
        most = 32.0 if is_wide else 150.0 / 331.0 * size
    elif name == "rotate":
        most = 135.0 if is_wide else 30.0
    elif name.startswith("shear"):
        most = 0.99 if is_wide else 0.3
    else:
        most = 0.99 if is_wide else 0.9
    return _spaced(0.0, most, number)


def _spaced(first: float, last: float, number: int) -> float:
    """One of `_NUM_BINS` values from `first` to `last`, to the bit as torch.linspace has them in float32.

    That counts from the nearer end, and multiplies and adds with one rounding, as all but very old processors do. A
    level, or a pixel of a translation, depends on it: in the middle of 0 to 32 are 15.999999 and not 16.
    """
    first, last = float(np.float32(first)), float(np.float32(last))
    step = float(np.float32(last - first) / np.float32(_NUM_BINS - 1))
    is_early = number < _NUM_BINS // 2
    return float(np.float32(first + step * number if is_early else last - step * (_NUM_BINS - 1 - number)))


class DrawnPolicy:
    """Applies `policy` of the options to crops, by `num_draws` draws of each from `first_column` on; none when off.

    TrivialAugment: which operation, how much, which sign. RandAugment: which and which sign, twice.
    """

    def __init__(self, options: Transforms, *, first_column: int) -> None:
        self._policy = options.policy
        self._size = options.size
        is_on = options.policy is not Policy.none and options.augment != "none"
        per_policy = {Policy.trivial: 3, Policy.rand: 2 * _RAND_OPERATIONS}
        self.num_draws = per_policy[options.policy] if is_on else 0
        self._columns = slice(first_column, first_column + self.num_draws)

    def chosen(self, draws: NDArray[np.float64]) -> list[tuple[str, float]]:
        """Returns the operations that a sample's draws stand for, in order, with their magnitudes."""
        own = draws[self._columns].tolist()
        if self._policy is Policy.trivial:
            which, much, sign = own
            return [self._one(which, int(much * _NUM_BINS), sign)]
        return [self._one(which, _RAND_BIN, sign) for which, sign in zip(own[::2], own[1::2], strict=True)]

    def __call__(self, pixels: NDArray[np.uint8], draws: NDArray[np.float64]) -> None:
        """Do to `pixels` (H, W, 3) in place what `draws` stand for."""
        image = before = Image.fromarray(pixels)
        for name, magnitude in self.chosen(draws):
            image = _OPERATIONS[name](image, magnitude)
        if image is not before:
            pixels[:] = np.asarray(image)

    def _one(self, which: float, number: int, sign: float) -> tuple[str, float]:
        name = _NAMES[int(which * len(_NAMES))]
        magnitude = _magnitude(name, self._policy, self._size, number)
        return name, math.copysign(magnitude, sign - 0.5) if name in _SIGNED else magnitude
