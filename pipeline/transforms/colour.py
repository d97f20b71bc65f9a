"""Colour jitter as one affine transform a sample, equal to the bit in a worker and on a device.

Brightness, contrast, saturation, hue and greyscale are linear in R, G, B, so in a fixed order they are one 3 x 4
matrix, which also takes in the division by 255 and the normalisation. Its entries are rounded to a power-of-two grid so
coarse that every product with an 8-bit level and every sum is exact in float32. No rounding is left for the order of
additions or for fused multiply-add to change: OpenCV, the native kernel and CUDA give the same floats. The grid itself
costs at most 1/15 of an 8-bit level at the strongest jitter, and 1/400 on average.

This is not torchvision's ColorJitter: the order is fixed, values are clamped once at the end instead of after each
operation, contrast turns around a constant grey instead of the image's own mean, and hue rotates the chroma plane of
YIQ instead of HSV's angle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms

# ITU-R BT.601 luma, as in torchvision's rgb_to_grayscale and in YIQ.
_LUMA = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_QUARTER_TURN = np.array([[0.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # from red to yellow, as torchvision's hue

# Every colour transform of the kinds above is a sum of these: luma to grey, chroma kept, chroma turned by 90 degrees.
_GREY = np.tile(_LUMA, (3, 1))
_CHROMA = np.eye(3) - _GREY
_TURNED = np.linalg.inv(_RGB_TO_YIQ) @ _QUARTER_TURN @ _RGB_TO_YIQ @ _CHROMA

# Float32 holds whole numbers up to 2^24: no sum may have more grid steps, nor after the rounding of its entries, which
# adds less than the margin.
_GRID_BITS = 24
_ROUNDING_MARGIN = 1.0001

_Number = float | NDArray[np.float64]
_Columns = Sequence[float] | NDArray[np.float64]
"""Of one sample a number, of B samples an array (B,); a sample's draws, or those of B samples by column."""


class ColourJitter:
    """Brightness, contrast, saturation, hue, greyscale, in this order, from one draw each; what is off takes none.

    Factors are uniform in [max(0, 1 - value), 1 + value], the turn of hue in [-hue, hue], as torchvision's; `greyscale`
    is the probability of no colour at all.
    `first_column` is where this jitter's `num_draws` begin in a sample's draws.
    """

    def __init__(self, options: Transforms, *, first_column: int) -> None:
        self.num_draws = 0
        self._columns: dict[str, int] = {}
        self._ranges: dict[str, tuple[float, float]] = {}
        for name in ("brightness", "contrast", "saturation", "hue"):
            strength = getattr(options, name)
            if strength > 0 and options.augment != "none":
                self._columns[name] = first_column + self.num_draws
                self._ranges[name] = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
                self.num_draws += 1
        self._greyscale = options.greyscale if options.augment != "none" else 0.0
        self._greyscale_column = first_column + self.num_draws
        self.num_draws += self._greyscale > 0
        self._mean, self._std = np.asarray(options.mean), np.asarray(options.std)
        self._scale = 255 * self._std
        # Of each row of a matrix, as plain numbers: grey, chroma and turned chroma in R, G and B; scale, mean and std.
        parts = np.stack([_GREY, _CHROMA, _TURNED], axis=-1).tolist()
        self._rows = list(zip(parts, self._scale.tolist(), self._mean.tolist(), self._std.tolist(), strict=True))
        # The grey that contrast leaves alone: of the mean, so that a sample's matrix needs nothing but its draws.
        self._pivot = float(self._mean @ _LUMA)
        self.lower: NDArray[np.float32] = ((0 - self._mean) / self._std).astype(np.float32)
        self.upper: NDArray[np.float32] = ((1 - self._mean) / self._std).astype(np.float32)

    def matrices(self, draws: NDArray[np.float64]) -> NDArray[np.float32]:
        """Draws (B, columns) to (B, 3, 4): from R, G, B in 0..255 and a 1 to normalised values, yet to be clamped.

        The bounds of the clamp are `lower` and `upper`, black and white after normalisation.
        """
        if len(draws) == 1:  # the same operations on plain numbers take 7 us, and not 20
            return np.array([self._matrix(draws[0].tolist())], np.float32)
        grey, chroma, turned, offset = (np.reshape(weight, (-1, 1, 1)) for weight in self._weights(draws.T))
        matrices = np.empty((len(draws), 3, 4))
        matrices[:, :, :3] = (grey * _GREY + chroma * _CHROMA + turned * _TURNED) / self._scale[:, None]
        matrices[:, :, 3] = (offset[:, 0] - self._mean) / self._std
        return _on_grid(matrices)

    def _matrix(self, draws: list[float]) -> list[list[float]]:
        """`matrices` of one sample, to the bit."""
        grey, chroma, turned, offset = map(float, self._weights(draws))
        rows = []
        for parts, scale, mean, std in self._rows:
            row = [(grey * g + chroma * c + turned * t) / scale for g, c, t in parts]
            rows.append(_row_on_grid([*row, (offset - mean) / std]))
        return rows

    def _weights(self, draws: _Columns) -> tuple[_Number, _Number, _Number, _Number]:
        """What to take of grey, of chroma and of turned chroma, and the offset before normalisation."""
        brightness, contrast, saturation = (
            self._factor(name, draws, off=1.0) for name in ("brightness", "contrast", "saturation")
        )
        gain = brightness * contrast
        chroma = gain * saturation
        if self._greyscale > 0:
            chroma = chroma * (draws[self._greyscale_column] >= self._greyscale)
        angle = 2 * np.pi * self._factor("hue", draws, off=0.0)
        return gain, chroma * np.cos(angle), chroma * np.sin(angle), (1 - contrast) * self._pivot

    def _factor(self, name: str, draws: _Columns, *, off: float) -> _Number:
        column = self._columns.get(name)
        if column is None:
            return off
        low, high = self._ranges[name]
        return low + (high - low) * draws[column]


def _row_on_grid(row: list[float]) -> list[float]:
    """A row of `_on_grid`."""
    red, green, blue, offset = map(abs, row)
    largest_sum = 255 * (red + green + blue) + offset
    steps = math.ldexp(1.0, _GRID_BITS - math.frexp(_ROUNDING_MARGIN * largest_sum)[1])
    # NumPy's rounding keeps the sign where it leaves nothing else.
    return [math.copysign(round(entry * steps) / steps, entry) for entry in row]


def _on_grid(matrices: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round each row of (B, 3, 4) to a grid on which its sums over 8-bit levels are exact in float32."""
    red, green, blue, offset = np.moveaxis(np.abs(matrices), 2, 0)
    largest_sum = 255 * (red + green + blue) + offset
    steps = np.ldexp(1.0, _GRID_BITS - np.frexp(_ROUNDING_MARGIN * largest_sum)[1])[:, :, None]
    on_grid: NDArray[np.float32] = (np.rint(matrices * steps) / steps).astype(np.float32)
    return on_grid
