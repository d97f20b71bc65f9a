"""Plain JPEGs through libjpeg-turbo. Of its warnings one is harmless, and any other makes an image bad."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.decode.header import BadImageError
from pipeline.native import kernel
from pipeline.orientation import START_OF_SCAN, Part

# The one libjpeg warning that leaves the image whole. Any number of places in the header may have such bytes, and one
# place behind it.
_STRAY_BYTES = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_RESTARTS = range(0xD0, 0xD8)


def decode_jpeg(data: bytes, buffer: NDArray[np.uint8], denominator: int) -> NDArray[np.uint8]:
    """Decode a plain JPEG into `buffer`, accepting stray bytes before a marker and no other fault."""
    height, width = buffer.shape[:2]

    def decoded(jpeg: bytes) -> NDArray[np.uint8]:
        # Not the fast DCT and upsampling: only the accurate ones are bit-identical to Pillow. `min_factor` alone
        # would allow any eighth; together with the exact size it leaves one choice.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            jpeg,
            fastdct=False,
            fastupsample=False,
            min_height=height,
            min_width=width,
            min_factor=denominator,
            buffer=buffer,
            strict=True,
        )
        return pixels

    try:
        return decoded(data)
    except ValueError as error:
        fault, stray = error, _STRAY_BYTES.search(str(error))
    if stray:
        # libjpeg stops at its first warning. Taking the stray bytes out shows whether a graver one follows.
        mended, scans_start = _without_stray_bytes_in_header(data)
        for candidate in itertools.chain([mended], _without_stray_bytes(mended, scans_start, stray)):
            try:
                return decoded(candidate)
            except ValueError as error:
                fault = error if candidate is mended else fault
    truncated = "Premature end of JPEG file" in str(fault)
    raise BadImageError(f"{'truncated' if truncated else 'damaged'} JPEG: {fault}") from fault


def decode_part(data: bytes, frame: NDArray[np.uint8], denominator: int, part: Part) -> bool:
    """Decode `part` of a plain JPEG, (top, left, height, width), into its place in `frame`.

    Around it the frame may hold anything then. The pixels are those of `decode_jpeg`, to the bit. Returns False where
    there is no native kernel, and where libjpeg has anything to say about the file: `decode_jpeg` is to decide then.
    """
    return kernel is not None and bool(kernel.decode_region(data, denominator, *part, frame))


def _without_stray_bytes_in_header(jpeg: bytes) -> tuple[bytes, int]:
    """`jpeg` with nothing between the segments of its header, and where the header ends in it."""
    segments, position = [jpeg[:2]], 2
    while (start := jpeg.find(b"\xff", position)) >= 0 and start + 4 <= len(jpeg):
        if jpeg[start + 1] in (0x00, 0xFF):  # no marker; padding
            position = start + 1
            continue
        position = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        segments.append(jpeg[start:position])
        if jpeg[start + 1] == START_OF_SCAN:
            break
    header = b"".join(segments)
    return header + jpeg[position:], len(header)


def _without_stray_bytes(jpeg: bytes, scans_start: int, stray: re.Match[str]) -> Iterator[bytes]:
    """`jpeg` without what libjpeg called `stray`, taken out before each of the markers behind the header in turn."""
    num_stray, marker = int(stray[1]), int(stray[2], 16)
    if marker in _RESTARTS:
        return  # inside a scan, what looks stray is what a damaged decoder could not use
    position = jpeg.find(bytes((0xFF, marker)), scans_start + num_stray)
    while position >= 0:
        yield jpeg[: position - num_stray] + jpeg[position:]
        position = jpeg.find(bytes((0xFF, marker)), position + 1)
