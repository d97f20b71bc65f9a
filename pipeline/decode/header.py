"""What an encoded image says of itself, and what is refused for it."""

from __future__ import annotations

import io
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.orientation import mirrored_axes, read_orientation, swaps_sides

MAX_PIXELS = 178_956_970
"""Of an image, whatever decodes it: Pillow's own limit against files that are small and decode to gigabytes."""
JPEG = b"\xff\xd8"
"""What a JPEG begins with."""

_MAX_PIXELS_A_BYTE = 512
"""Of a Huffman-coded JPEG: each block of 64 pixels takes at least the one bit of its mean."""
_ARITHMETIC = (b"\xff\xc9", b"\xff\xca")
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_PLAIN = ("YCbCr", "Gray", "RGB")
_ORIENTATION_TAG = 0x0112
_PNG_METADATA = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")


class BadImageError(ValueError):
    """The bytes of a sample are no image that can be read: it is the sample's fault, and always will be."""


class ImageInfo(NamedTuple):
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


def inspect(data: bytes) -> ImageInfo:
    """Read the header of an encoded image.

    Raises:
        BadImageError: `data` is no image that can be read; the message says why.
    """
    if not data:
        raise BadImageError("the file is empty (0 bytes)")
    if data.startswith(_POSTSCRIPT):
        raise BadImageError("PostScript is a program that draws, and is not run; save it as an image")
    if data.startswith(JPEG):
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
                info = _within_limit(ImageInfo(height, width, orientation, plain_jpeg=True))
                _refuse_too_few_bytes(data, info)
                return info
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            # Pillow's TIFF reader reports what is upright by its own tag, and decodes what is by XMP too.
            is_told = image.format == "TIFF" and _ORIENTATION_TAG in getattr(image, "tag_v2", {})
            # To look for it behind the pixels of a PNG, Pillow decodes them.
            has_none = image.format == "PNG" and not any(mark in data for mark in _PNG_METADATA)
            if not is_told and not has_none and swaps_sides(image.getexif().get(_ORIENTATION_TAG, 1)):
                height, width = width, height
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise unreadable(data, error) from error
    return _within_limit(ImageInfo(height, width))


def _within_limit(info: ImageInfo) -> ImageInfo:
    if info.height * info.width > MAX_PIXELS:
        raise BadImageError(
            f"{info.width:,} x {info.height:,} pixels, more than the {MAX_PIXELS:,} that are decoded; "
            "save it smaller beforehand"
        )
    return info


def _refuse_too_few_bytes(jpeg: bytes, info: ImageInfo) -> None:
    """Raise BadImageError before memory is taken for pixels that cannot be there: it could be half a gigabyte."""
    num_pixels = info.height * info.width
    if num_pixels > _MAX_PIXELS_A_BYTE * len(jpeg) and not any(mark in jpeg for mark in _ARITHMETIC):
        raise BadImageError(
            f"truncated JPEG: {len(jpeg):,} bytes are too few for the {info.width:,} x {info.height:,} pixels announced"
        )


def unreadable(data: bytes, error: Exception) -> BadImageError:
    """What to raise for `data`, over which Pillow raised `error`."""
    if isinstance(error, BadImageError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(f"more than the {MAX_PIXELS:,} pixels that are decoded; save it smaller beforehand")
    if isinstance(error, UnidentifiedImageError):
        kind = "a truncated or damaged JPEG header" if data.startswith(JPEG) else "no known image format"
        return BadImageError(f"{kind}: {len(data):,} bytes that begin with {data[:12]!r}")
    return BadImageError(f"unreadable image: {error}")
