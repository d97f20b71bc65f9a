"""Every image that is no plain JPEG, through Pillow, and colour profiles."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from pipeline.decode.header import JPEG, BadImageError, unreadable


@dataclass(frozen=True, slots=True)
class Rendering:
    """How pixels of every kind become RGB."""

    background: tuple[int, int, int] = (255, 255, 255)
    """R, G, B in 0..255 that transparent pixels are laid over."""
    converts_profiles: bool = False
    """Whether an embedded ICC profile is applied, so that pixels are sRGB; else it is ignored."""


def decode_generally(data: bytes, denominator: int, rendering: Rendering) -> NDArray[np.uint8]:
    """Decode `data`, whatever Pillow knows, at 1/`denominator`: upright RGB (H, W, 3).

    Raises:
        BadImageError: the image is truncated or damaged, or has no 8-bit meaning; the message says how.
        RuntimeError: Pillow was told to show truncated images.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which passes half images off as whole ones; leave it False"
        )
    try:
        if data.startswith(JPEG):
            _refuse_damaged_cmyk(data)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            profile = _profile_of(image) if rendering.converts_profiles else None
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _as_rgb(image, rendering.background, profile)
            if denominator > 1:
                rgb = rgb.reduce(denominator)
            return np.asarray(rgb)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise unreadable(data, error) from error


def convert_profile(data: bytes, pixels: NDArray[np.uint8]) -> None:
    """Bring `pixels`, RGB (H, W, 3) that `data` gave, to sRGB in place, if `data` has a profile of other colours.

    Raises:
        BadImageError: the profile cannot be read, or is for pixels of another kind.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            profile, is_grey = _profile_of(header), header.mode == "L"
        if profile is not None:
            image = Image.fromarray(pixels)
            pixels[:] = np.asarray(_to_srgb(image.getchannel(0) if is_grey else image, profile))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise unreadable(data, error) from error


def _profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of `image` that has to be applied; None where there is none, or it is sRGB's."""
    profile: bytes | None = image.info.get("icc_profile")
    return None if not profile or _is_srgb(profile) else profile


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB pixels of `image`, grey, RGB or CMYK, whose colours are those of `profile`, relative colorimetric."""
    from PIL import ImageCms  # seldom wanted, and memory in every worker

    try:
        converted = ImageCms.applyTransform(image, _transform(profile, image.mode))
    except (ImageCms.PyCMSError, ValueError) as error:
        raise BadImageError(
            f"its ICC profile cannot be applied to pixels of mode {image.mode} ({error}); use transforms.icc=ignore"
        ) from error
    assert converted is not None, "the transform was to make an image"
    return converted


@lru_cache(maxsize=32)
def _is_srgb(profile: bytes) -> bool:
    """Whether `profile` moves no colour by more than a level: its name would not tell, linear ones have sRGB in theirs.

    BadImageError where it cannot be read.
    """
    if _opened(profile).profile.xcolor_space.strip() != "RGB":
        return False
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, len(steps), 3)
    try:
        converted = np.asarray(_to_srgb(Image.fromarray(colours), profile))
    except BadImageError:
        return False  # said when it is applied
    return bool(np.abs(converted.astype(int) - colours).max() <= 1)


@lru_cache(maxsize=32)
def _opened(profile: bytes) -> Any:
    """The profile. BadImageError where it cannot be read."""
    from PIL import ImageCms

    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError) as error:
        raise BadImageError(
            f"its ICC profile of {len(profile):,} bytes cannot be read; use transforms.icc=ignore"
        ) from error


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        _opened(profile),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.NOCACHE,  # threads share it
    )


def _refuse_damaged_cmyk(data: bytes) -> None:
    """Raise libjpeg's ValueError for a damaged CMYK JPEG: Pillow would show what it can and say nothing."""
    try:
        is_cmyk = simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("CMYK", "YCCK")
    except (ValueError, KeyError):
        return  # nothing that libjpeg-turbo's interface can judge
    if is_cmyk:
        simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)


def _as_rgb(image: Image.Image, background: tuple[int, int, int], profile: bytes | None) -> Image.Image:
    if image.mode in ("I", "F"):
        raise BadImageError(f"pixels of mode {image.mode} have no fixed range that 8 bits could stand for")
    if image.mode.startswith("I;16"):
        # convert() would clip at 255 and leave a white image
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return _opaque_rgb(image, profile)
    is_grey = image.mode in ("LA", "La", "L", "1")
    image = image.convert("LA" if is_grey and profile is not None else "RGBA")
    alpha = image.getchannel("A")
    colours = _opaque_rgb(image.convert("L" if image.mode == "LA" else "RGB"), profile)
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), colours).convert("RGB")


def _opaque_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is None:
        return image.convert("RGB")
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return _to_srgb(image, profile)
