"""Encoded images to RGB pixels, into memory that a thread uses again and again.

Plain JPEGs (YCbCr, grey or RGB) go through libjpeg-turbo by `simplejpeg`, everything else through Pillow. Both give
upright 8-bit RGB; on plain JPEGs they are bit-identical, so which one was used never shows in a batch.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.orientation import START_OF_SCAN, mirrored_axes, read_orientation, swaps_sides, upright
from pipeline.stats import StageClock

# What libjpeg scales by for less work. It offers other eighths too, which take longer than decoding every pixel.
DENOMINATORS = (1, 2, 4, 8)

MAX_PIXELS = 178_956_970
"""Of an image, whatever decodes it: Pillow's own limit against files that are small and decode to gigabytes."""
PILLOW = "decoded_by_pillow"
"""What `Stats` calls images that Pillow decoded; libjpeg-turbo decoded the others."""

_PLAIN = ("YCbCr", "Gray", "RGB")
_JPEG = b"\xff\xd8"
_ORIENTATION_TAG = 0x0112

# A larger buffer is made for one image and let go: it costs page faults, which vanish beside decoding 20 megapixels,
# and one huge image would otherwise stay as memory in every thread.
_MAX_KEPT_BYTES = 64 << 20

# The one libjpeg warning that leaves the image whole. Any number of places in the header may have such bytes, and one
# place behind it.
_STRAY_BYTES = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_RESTARTS = range(0xD0, 0xD8)


class BadImageError(ValueError):
    """The bytes of a sample are no image that can be read: it is the sample's fault, and always will be."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an encoded image's header says."""

    height: int
    """Rows as a person sees them, that is after EXIF orientation."""
    width: int
    """Columns as a person sees them."""
    orientation: int = 1
    """EXIF orientation that the fast decoder has to undo; Pillow undoes it by itself."""
    plain_jpeg: bool = False
    """Whether libjpeg-turbo decodes it; Pillow otherwise."""

    def corner(self, denominator: int) -> tuple[float, float]:
        """Where the top left corner of the image lies in what is decoded at 1/`denominator`, in its pixels: (y, x).

        libjpeg's squares start at the corner of the stored image. Where that is not the corner seen, the squares that
        stick out of the image come first, and the corner is a part of a pixel inside.
        """
        mirrored_y, mirrored_x = mirrored_axes(self.orientation)
        return (
            -(-self.height // denominator) - self.height / denominator if mirrored_y else 0.0,
            -(-self.width // denominator) - self.width / denominator if mirrored_x else 0.0,
        )


class Scratch:
    """One thread's working memory: buffers by name that grow to the largest image seen and are used again.

    A view stays valid until the same name is asked for again.
    """

    __slots__ = ("_buffers",)

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def pixels(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Uint8 memory of `shape`, contents undefined."""
        return self._bytes(name, prod(shape)).reshape(shape)

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Float32 memory of `shape`, contents undefined."""
        return self._bytes(name, 4 * prod(shape)).view(np.float32).reshape(shape)

    def _bytes(self, name: str, num_bytes: int) -> NDArray[np.uint8]:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < num_bytes:
            buffer = np.empty(num_bytes, np.uint8)
            if num_bytes <= _MAX_KEPT_BYTES:
                self._buffers[name] = buffer
        return buffer[:num_bytes]


class ThreadScratch(threading.local):
    """`scratch`, another one for every thread that asks. Its memory does not travel: a pickled one begins anew."""

    def __init__(self) -> None:
        self.scratch = Scratch()

    def __reduce__(self) -> tuple[type[ThreadScratch], tuple[()]]:
        return ThreadScratch, ()


def inspect(data: bytes) -> ImageInfo:
    """Read the header of an encoded image.

    Raises:
        BadImageError: `data` is no image that can be read; the message says why.
    """
    if not data:
        raise BadImageError("the file is empty (0 bytes)")
    if data.startswith(_JPEG):
        try:
            # Warnings wait for `decode`, which tells harmless from harmful; here they would hide the size.
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError):  # KeyError(-1) is its word for a subsampling that it does not know
            pass  # arithmetic coding, 12 bits, an unusual subsampling, or damage: Pillow decides which
        else:
            if colours in _PLAIN:
                orientation = read_orientation(data)
                if swaps_sides(orientation):
                    height, width = width, height
                return _within_limit(ImageInfo(height, width, orientation, plain_jpeg=True))
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            # Pillow's TIFF reader reports and decodes upright by itself.
            if image.format != "TIFF" and swaps_sides(image.getexif().get(_ORIENTATION_TAG, 1)):
                height, width = width, height
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise _unreadable(data, error) from error
    return _within_limit(ImageInfo(height, width))


def _within_limit(info: ImageInfo) -> ImageInfo:
    if info.height * info.width > MAX_PIXELS:
        raise BadImageError(
            f"{info.width:,} x {info.height:,} pixels, more than the {MAX_PIXELS:,} that are decoded; "
            "save it smaller beforehand"
        )
    return info


def decode(data: bytes, info: ImageInfo, scratch: Scratch, *, denominator: int = 1) -> NDArray[np.uint8]:
    """Decode `data`, whose header gave `info`, at 1/`denominator` (1, 2, 4 or 8) of its height and width.

    Returns uint8 RGB of (ceil(height / denominator), ceil(width / denominator), 3): usually a view of `scratch`,
    valid until the next decode with it. Each pixel covers a square of `denominator` pixels a side; `info.corner` says
    where the first one begins. Formats without scaled decoding are decoded whole and averaged. Transparent pixels are
    laid over white.

    Raises:
        BadImageError: the image is truncated or damaged; the message says how.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator}")
    if not info.plain_jpeg:
        return _decode_with_pillow(data, denominator)
    height, width = -(-info.height // denominator), -(-info.width // denominator)
    stored = (width, height, 3) if swaps_sides(info.orientation) else (height, width, 3)
    buffer = scratch.pixels("decoded", stored)
    pixels = _decode_jpeg(data, buffer, denominator)
    if pixels.shape != stored or not np.may_share_memory(pixels, buffer):
        raise RuntimeError(f"the JPEG decoder gave {pixels.shape} at 1/{denominator}, expected {stored} in place")
    if info.orientation == 1:
        return pixels
    return upright(pixels, info.orientation, scratch.pixels("upright", (height, width, 3)))


def count_decoded(clock: StageClock, info: ImageInfo, spent_s: float) -> None:
    """Count an image that was decoded in `spent_s`, and by which decoder."""
    clock.add("decode", spent_s)
    if not info.plain_jpeg:
        clock.tally(PILLOW)


def _decode_jpeg(data: bytes, buffer: NDArray[np.uint8], denominator: int) -> NDArray[np.uint8]:
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


def _decode_with_pillow(data: bytes, denominator: int) -> NDArray[np.uint8]:
    try:
        if data.startswith(_JPEG):
            _refuse_damaged_cmyk(data)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _as_rgb(image)
            if denominator > 1:
                rgb = rgb.reduce(denominator)
            return np.asarray(rgb)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise _unreadable(data, error) from error


def _refuse_damaged_cmyk(data: bytes) -> None:
    """Raise libjpeg's ValueError for a damaged CMYK JPEG: Pillow would show what it can and say nothing."""
    try:
        is_cmyk = simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("CMYK", "YCCK")
    except (ValueError, KeyError):
        return  # nothing that libjpeg-turbo's interface can judge
    if is_cmyk:
        simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise BadImageError(f"pixels of mode {image.mode} have no fixed range that 8 bits could stand for")
    if image.mode.startswith("I;16"):
        # convert() would clip at 255 and leave a white image
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _unreadable(data: bytes, error: Exception) -> BadImageError:
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(f"more than the {MAX_PIXELS:,} pixels that are decoded; save it smaller beforehand")
    if isinstance(error, UnidentifiedImageError):
        kind = "a truncated or damaged JPEG header" if data.startswith(_JPEG) else "no known image format"
        return BadImageError(f"{kind}: {len(data):,} bytes that begin with {data[:12]!r}")
    return BadImageError(f"unreadable image: {error}")
