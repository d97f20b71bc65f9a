"""EXIF orientation: which way up a camera held its picture, read from the JPEG header and applied to pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.native import kernel

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_ORIENTATION_TAG = 0x0112
_NUM_BYTES = {3: 2, 4: 4}
"""Of TIFF's field types SHORT, which the tag has by the standard, and LONG, which some write."""
_APP1, START_OF_SCAN = 0xE1, 0xDA

# What brings the stored rows upright; 5 and 7 are a transposition, alone or followed by a half turn.
_ROTATIONS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
_FLIPS = {2: 1, 4: 0}


Part = tuple[int, int, int, int]
"""Of an image in pixels: top, left, height, width."""


def swaps_sides(orientation: int) -> bool:
    """Whether an image stored with `orientation` is seen with width and height exchanged."""
    return orientation >= 5


def mirrored_axes(orientation: int) -> tuple[bool, bool]:
    """Whether rows and columns, as seen, run against the stored axis that they come from."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def stored_part(part: Part, orientation: int, height: int, width: int) -> Part:
    """Where `part` of an upright image of `height` x `width` is stored."""
    top, left, num_rows, num_columns = part
    is_upside_down, is_mirrored = mirrored_axes(orientation)
    top = height - top - num_rows if is_upside_down else top
    left = width - left - num_columns if is_mirrored else left
    return (left, top, num_columns, num_rows) if swaps_sides(orientation) else (top, left, num_rows, num_columns)


def read_orientation(jpeg: bytes) -> int:
    """Orientation 1 to 8 from the header of `jpeg`; 1 when there is none or it cannot be read.

    EXIF's counts, and where that tells none XMP's.
    """
    xmp = b""
    for start, stop in app1_segments(jpeg) if kernel is None else kernel.app1_segments(jpeg):
        if jpeg.startswith(_EXIF, start):
            told = _tiff_orientation(jpeg[start + len(_EXIF) : stop])
            if told is not None:
                return told
        elif jpeg.startswith(_XMP, start):
            xmp = jpeg[start:stop]
    in_xmp = _IN_XMP.search(xmp)
    return _known(int(in_xmp[1])) if in_xmp else 1


def app1_segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Where the payloads of application segments 1 of the header of `jpeg` begin and end, for EXIF and XMP are such.

    The kernel's of that name gives the same, in far less time.
    """
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker == START_OF_SCAN:
            break
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        stop = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if marker == _APP1:
            yield position + 4, stop
        position = stop


def _known(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_orientation(tiff: bytes) -> int | None:
    """The orientation entry of the first directory of `tiff`, EXIF's payload; None where there is none."""
    order: Any = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return None

    def number(start: int, num_bytes: int) -> int:
        return int.from_bytes(tiff[start : start + num_bytes], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 > len(tiff):
            break
        if number(entry, 2) == _ORIENTATION_TAG:
            num_bytes = _NUM_BYTES.get(number(entry + 2, 2), 0)
            return _known(number(entry + 8, num_bytes))
    return None


def upright(pixels: NDArray[np.uint8], orientation: int, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write the stored `pixels` (H, W, 3), turned and mirrored as `orientation` 2 to 8 says, into `out`.

    `out` is uint8, (W, H, 3) for 5 to 8 and (H, W, 3) otherwise, and shares no memory with `pixels`.
    """
    if orientation in _ROTATIONS:
        turned = cv2.rotate(pixels, _ROTATIONS[orientation], dst=out)
    elif orientation in _FLIPS:
        turned = cv2.flip(pixels, _FLIPS[orientation], dst=out)
    else:
        turned = cv2.transpose(pixels, dst=out)
        if orientation == 7:
            turned = cv2.flip(out, -1, dst=out)
    assert np.may_share_memory(turned, out), "OpenCV did not write into the buffer that it was given"
    return out
