"""`samples.png`: the first samples that a run trains on, as the model gets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Augment, Decode, Transforms
from pipeline.loader.batch import Batch
from pipeline.training.contact_sheet import Layout, Tile, draw_contact_sheet


class SamplesSheet:
    """Looks at batches as they go to the model, and draws the first of their images at `path`.

    What is trained cannot change by it: batches pass through as they are, and what is shown is copied.
    """

    def __init__(self, path: Path, *, transforms: Transforms, class_names: Sequence[str], mixes: bool = False) -> None:
        """`transforms` are those of the batches, `class_names` has a name a label, or nothing.

        `mixes`: MixUp or CutMix follows, which would leave no image to look at; the caption says so.
        """
        self._path = path
        self._transforms = transforms
        self._class_names = class_names
        self._mixes = mixes
        self._most_tiles = Layout.for_size(transforms.size).num_tiles
        self._tiles: list[Tile] = []
        self._begins = ""

    @property
    def is_full(self) -> bool:
        """Whether there are as many images as there is room for."""
        return len(self._tiles) >= self._most_tiles

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]], *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields `batches` of epoch number `epoch`, counted from 1.

        Copying its images takes some milliseconds of the time that the loop waits for such a batch.
        """
        for batch in batches:
            if not self.is_full:
                self._take(batch, epoch)
            yield batch
            del batch  # else it would live on while the next one is waited for

    def draw(self) -> None:
        """Writes the picture; nothing where no image came. OSError where it cannot be written."""
        if not self._tiles:
            return
        draw_contact_sheet(
            self._tiles,
            self._path,
            title=f"What the model sees: {self._begins}, {len(self._tiles)} samples",
            caption=in_words(self._transforms) + (", before MixUp and CutMix" if self._mixes else ""),
        )

    def _take(self, batch: tuple[Tensor, Tensor], epoch: int) -> None:
        images, labels = batch
        room = self._most_tiles - len(self._tiles)
        ids = batch.ids[:room].tolist() if isinstance(batch, Batch) else [None] * len(labels)
        if not self._begins:
            step = batch.step if isinstance(batch, Batch) else 0
            self._begins = f"epoch {epoch} from its {'first batch' if step == 0 else f'batch {step + 1}'}"
        pixels = denormalised(images[:room], self._transforms)
        self._tiles += [
            Tile(image, self._name(label), id)
            for image, label, id in zip(pixels, labels[:room].tolist(), ids[: len(pixels)], strict=True)
        ]

    def _name(self, label: int) -> str:
        return self._class_names[label] if label < len(self._class_names) else f"class {label}"


def denormalised(images: Tensor, transforms: Transforms) -> NDArray[np.uint8]:
    """The pixels of normalised `images` (B, 3, H, W) on any device: uint8 (B, H, W, 3), in new memory."""
    levels = images.detach().permute(0, 2, 3, 1).float().cpu().numpy()
    mean, std = (np.asarray(values, np.float32) for values in (transforms.mean, transforms.std))
    pixels: NDArray[np.uint8] = np.clip(np.rint(255 * (levels * std + mean)), 0, 255).astype(np.uint8)
    return pixels


def in_words(transforms: Transforms) -> str:
    """What `transforms` do to an image, in one sentence."""
    options = transforms.resolved()
    size = f"{options.size} x {options.size} pixels (resize={options.resize})"
    parts = [f"transforms={options.augment}"]
    if options.decode is Decode.scaled:
        parts.append("decode=scaled")
    if options.max_side is not None:
        parts.append(f"longest side at most {options.max_side} pixels")
    if options.augment is Augment.none:
        parts.append(f"short side to {round(options.size * options.resize_ratio)}, centre cropped to {size}")
    else:
        parts.append(f"random crop of {_span(options.scale, 100)} % of the area to {size}")
        parts.append(f"width : height of the crop {_span(options.ratio)}")
        parts += [f"flip {100 * options.flip:g} %"] if options.flip else []
        parts += _colours(options)
    return f"{parts[0]}: {', '.join([*parts[1:], 'normalisation undone'])}"


def _colours(options: Transforms) -> list[str]:
    names = ("brightness", "contrast", "saturation")
    strengths = [(name, getattr(options, name)) for name in names]
    words = [f"{name} x {_span([max(0.0, 1 - value), 1 + value])}" for name, value in strengths if value]
    return [*words, f"hue ± {360 * options.hue:g}°"] if options.hue else words


def _span(bounds: Sequence[float], scale: float = 1) -> str:
    least, greatest = (f"{scale * bound:.3g}" for bound in bounds)
    return f"{least} to {greatest}"
