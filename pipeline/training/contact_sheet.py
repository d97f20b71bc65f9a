"""Images side by side in one picture, each with its label beneath, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.training.replacing import replacing

MAX_COLUMNS, MAX_ROWS = 8, 6

# Pixels. 13 of them are 9.75 points on a screen of 96 dots an inch, and so legible at 100 %.
_TEXT, _TITLE = 13, 18
_LINE, _TITLE_LINE = 17, 26
_GAP = 12
_LEAST_SIDE = 112  # a smaller image is enlarged, for a label has to fit under it
_MOST = 2400  # of the whole picture, both ways, unless one image is larger
_LEAST_WIDTH = 640  # for the caption of a few small images

_INK, _FAINT, _FRAME = "#1a1a1a", "#5c5c5c", "#c8c8c8"


@dataclass(frozen=True, slots=True)
class Tile:
    """An image, uint8 (size, size, 3), what it shows, and its number in the source where that is known."""

    pixels: NDArray[np.uint8]
    label: str
    id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where tiles of `size` pixels go, each enlarged `factor` times, `columns` to a row, below `header` pixels."""

    size: int
    factor: int
    columns: int
    rows: int
    header: int = 0

    @classmethod
    def for_size(cls, size: int) -> Layout:
        """As many tiles as are still easily looked at together: `columns` times `rows`."""
        factor = max(1, -(-_LEAST_SIDE // size))
        side = size * factor
        columns = (_MOST - _GAP) // (side + _GAP)
        rows = _MOST // (side + _GAP + 2 * _LINE)
        return cls(
            size=size,
            factor=factor,
            columns=min(MAX_COLUMNS, max(1, columns)),
            rows=min(MAX_ROWS, max(1, rows)),
        )

    @property
    def num_tiles(self) -> int:
        """How many there is room for."""
        return self.columns * self.rows

    @property
    def side(self) -> int:
        """Height and width of a tile in the picture."""
        return self.size * self.factor

    @property
    def width(self) -> int:
        """Of the picture."""
        return max(_LEAST_WIDTH, _GAP + self.columns * (self.side + _GAP))

    @property
    def height(self) -> int:
        """Of the picture."""
        return self.header + self.rows * self._row_height + _GAP

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of tile `number`, counted along the rows."""
        row, column = divmod(number, self.columns)
        return _GAP + column * (self.side + _GAP), self.header + row * self._row_height

    @property
    def _row_height(self) -> int:
        return self.side + 2 * _LINE + _GAP


def draw_contact_sheet(tiles: Sequence[Tile], path: Path, *, title: str, caption: str) -> Layout:
    """Draws `tiles`, at least one and all of one size, as a PNG at `path`, and says where they are in it.

    Raises:
        OSError: it could not be written.
    """
    text, bold = _font("DejaVuSans.ttf", _TEXT), _font("DejaVuSans-Bold.ttf", _TITLE)
    layout = Layout.for_size(tiles[0].pixels.shape[0])
    columns = min(layout.columns, len(tiles))
    layout = replace(layout, columns=columns, rows=-(-len(tiles) // columns))
    lines = _wrapped(caption, text, layout.width - 2 * _GAP)
    layout = replace(layout, header=_GAP + _TITLE_LINE + len(lines) * _LINE + _GAP)

    picture = Image.new("RGB", (layout.width, layout.height), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((_GAP, _GAP), _fitted(title, bold, layout.width - 2 * _GAP), fill=_INK, font=bold)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + _TITLE_LINE + number * _LINE), line, fill=_FAINT, font=text)
    for number, tile in enumerate(tiles):
        _draw_tile(picture, pen, tile, layout, number, text)
    with replacing(path) as file:
        picture.save(file, format="PNG")
    return layout


def _draw_tile(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    tile: Tile,
    layout: Layout,
    number: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    left, top = layout.corner(number)
    side = layout.side
    enlarged = tile.pixels.repeat(layout.factor, axis=0).repeat(layout.factor, axis=1)
    # Around it and not on it: a white image would have no edge on white paper.
    pen.rectangle((left - 1, top - 1, left + side, top + side), outline=_FRAME)
    picture.paste(Image.fromarray(enlarged), (left, top))
    pen.text((left, top + side + 3), _fitted(tile.label, font, side), fill=_INK, font=font)
    if tile.id is not None:
        pen.text((left, top + side + 3 + _LINE), _fitted(f"id {tile.id}", font, side), fill=_FAINT, font=font)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib's own copy is there on every machine, and has Greek, Cyrillic and accents for names of classes.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped(words: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`words` in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_fitted(word, font, width))
    return lines


def _fitted(words: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`words` on one line, cut where that is wider than `width` pixels."""
    line = " ".join(words.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
