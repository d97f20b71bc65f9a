"""Tiny images by number, and a transform that does something before it makes some of them. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from samples import Act

from pipeline.config import Transforms
from pipeline.transforms.sample import SampleTransform

SIZE = 16


def tiny_pixels(id: int) -> np.ndarray:
    """Noise of one of many sizes; the first value is `id`."""
    pixels = np.random.default_rng(id).integers(0, 256, (12 + id % 23, 12 + id % 17, 3), dtype=np.uint8)
    pixels[0, 0, 0] = id
    return pixels


class Tiny:
    """`load(id)` of `tiny_pixels`, but for some ids something odd: encoded, huge, not an image, or it cannot be read.

    `reads` lists the ids asked for.
    """

    def __init__(self, odd: Mapping[int, str] | None = None) -> None:
        self._odd = dict(odd or {})
        self.reads: list[int] = []

    def __call__(self, id: int) -> bytes | np.ndarray:
        self.reads.append(id)
        pixels = tiny_pixels(id)
        match self._odd.get(id):
            case "encoded":
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                return buffer.getvalue()
            case "huge":
                return np.tile(pixels, (20, 20, 1))
            case "no image":
                return pixels[:, :, :2]
            case "unreadable":
                raise OSError(f"the disk has no {id}")
        return pixels


def does_nothing(id: int) -> None:
    """The act of an `Acting` that is only watched."""


class Acting(SampleTransform):
    """Acts on the id of every sample before it is made, alone or together; `groups` lists how many were together."""

    def __init__(self, act: Act = does_nothing) -> None:
        super().__init__(Transforms.named("light", size=SIZE), normalise=True)
        self._act = act
        self.groups: list[int] = []

    def __call__(self, sample: bytes | np.ndarray, *rest: Any) -> None:
        if isinstance(sample, np.ndarray):
            self._act(int(sample[0, 0, 0]))
        super().__call__(sample, *rest)

    def many(self, samples: Sequence[bytes] | Sequence[np.ndarray], *rest: Any) -> None:
        if len(samples) > 1:
            self.groups.append(len(samples))
            for sample in samples:
                assert isinstance(sample, np.ndarray)
                self._act(int(sample[0, 0, 0]))
        super().many(samples, *rest)
