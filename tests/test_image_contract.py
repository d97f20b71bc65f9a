"""The table of docs/pixels.md, "Decoders": what becomes of every kind of image, beside Pillow's own reading of it."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import photo
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.build import build_pipeline
from pipeline.build_source import open_source, order_fingerprint
from pipeline.config import (
    Cache,
    ConfigError,
    FolderData,
    Loader,
    PipelineConfig,
    Preload,
    SamplerName,
    Transforms,
)
from pipeline.decode import BadImageError, Rendering, Scratch, decode, inspect

PIXELS = photo(3, 60, 80)
IMAGE = Image.fromarray(PIXELS)
ALPHA = Image.fromarray(photo(4, 60, 80)[:, :, 0])
FRAMES = [Image.fromarray(photo(seed, 60, 80)) for seed in (5, 6, 7)]


def more_frames() -> list[Image.Image]:
    """Behind the first; others each time, for Pillow leaves an encoder's options with the images it writes."""
    return [frame.copy() for frame in FRAMES[1:]]


# 24 x 32 in arithmetic coding, baseline and progressive: libjpeg writes it and Pillow cannot ask it to.
ARITHMETIC = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PT
gyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/yQARCAAY
ACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDSpkym9QRRih0QJks49eS+JHpitMh3oc46YEYxwsLH/bkOiX0T5112xH3H/w
AryXG5Lts8inq9HGmiNHsFGkQtkF6VaIBrSTVtc8EdqUZcW71nd1axaRqI6SRhASRXuMinYZuSqo2xPA1Du/mRZHT/AGdfiQ4o6cnGXAmwscPw
i+m/OqqLMUraDQSNKPdz4dbEzz0GxGdbdqfMaZyBd/wNZv/Z
"""
PROGRESSIVE_ARITHMETIC = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PT
gyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/ygARCAAY
ACADASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAdJf1DbDGOBG6qnJdaluJySJX5tzE8d8/8wABBAF/9oACAEBAAEFAgYw6dmX34Ro7S
ubO96jZkomgP/MAAQRBf/aAAgBAwEBPwEmBoASoNS/UOi4JX5k/8wABBEF/9oACAECAQE/ARVTl4KhtPhrmDigURpX4CEK/8wABBAF/9oACAEB
AAY/AlnLAcjA/8wABBAF/9oACAEBAAE/IaYv9wSbrNM29VuVcEORXx4eWhd0TqxA/9oADAMBAAIAAwAAABDCZqD/zAAEEQX/2gAIAQMBAT8QXV
YyLYlb8P/MAAQRBf/aAAgBAgEBPxAY+f8AxLPiPkUTQP/MAAQQBf/aAAgBAQABPxD9fwsLDqCOTEnvKCMNf5eNnBj0SXUOyFiPJ/elDwCw7Mda
lDWTgP/Z
"""


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, **rendering: Any) -> NDArray[np.uint8]:
    return decode(data, inspect(data), Scratch(), rendering=Rendering(**rendering)).copy()


def with_alpha(mode: str) -> Image.Image:
    image = IMAGE.convert(mode)
    image.putalpha(ALPHA)
    return image


def png(bit_depth: int, colour_type: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG of one width that Pillow does not write: rows of raw samples, and chunks before them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width = 8 * len(rows[0]) // (bit_depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type])
    head = struct.pack(">IIBBBBB", width, len(rows), bit_depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    between = b"".join(chunk(part[:4], part[4:]) for part in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def rgb(width: int, height: int) -> Image.Image:
    return Image.fromarray(photo(8, height, width))


KINDS: dict[str, bytes] = {
    "jpeg": encoded(IMAGE, "JPEG"),
    "progressive jpeg": encoded(IMAGE, "JPEG", progressive=True),
    "arithmetic jpeg": base64.b64decode(ARITHMETIC),
    "progressive arithmetic jpeg": base64.b64decode(PROGRESSIVE_ARITHMETIC),
    "jpeg 4:4:4": encoded(IMAGE, "JPEG", subsampling=0),
    "jpeg 4:2:2": encoded(IMAGE, "JPEG", subsampling=1),
    "jpeg with restarts": encoded(IMAGE, "JPEG", restart_marker_blocks=2),
    "jpeg kept as rgb": encoded(IMAGE, "JPEG", keep_rgb=True),
    "grey jpeg": encoded(IMAGE.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(IMAGE.convert("CMYK"), "JPEG"),
    "jpeg with more behind its end": encoded(IMAGE, "JPEG") + b"\0" * 300 + b"more",
    "jpeg of several pictures": encoded(FRAMES[0], "MPO", save_all=True, append_images=more_frames()),
    "jpeg of one pixel": encoded(rgb(1, 1), "JPEG"),
    "jpeg of one column": encoded(rgb(1, 37), "JPEG"),
    "png": encoded(IMAGE, "PNG"),
    "grey png": encoded(IMAGE.convert("L"), "PNG"),
    "1-bit png": encoded(IMAGE.convert("1"), "PNG"),
    "palette png": encoded(IMAGE.convert("P"), "PNG"),
    "png of 2-bit grey": png(2, 0, [bytes([0b00011011])] * 3),
    "png of 4-bit grey": png(4, 0, [bytes([0x0F, 0x84])] * 3),
    "png of 16-bit colour": png(16, 2, [PIXELS[0].astype(">u2").tobytes()] * 2),
    "png with a gamma": png(8, 2, [PIXELS[0].tobytes()] * 2, b"gAMA" + struct.pack(">I", 100000)),
    "animated png": encoded(FRAMES[0], "PNG", save_all=True, append_images=more_frames()),
    "gif": encoded(IMAGE.convert("P"), "GIF"),
    "animated gif": encoded(FRAMES[0], "GIF", save_all=True, append_images=more_frames()),
    "webp": encoded(IMAGE, "WEBP"),
    "lossless webp": encoded(IMAGE, "WEBP", lossless=True),
    "animated webp": encoded(FRAMES[0], "WEBP", save_all=True, append_images=more_frames()),
    "avif": encoded(IMAGE, "AVIF"),
    "bmp": encoded(IMAGE, "BMP"),
    "palette bmp": encoded(IMAGE.convert("P"), "BMP"),
    "1-bit bmp": encoded(IMAGE.convert("1"), "BMP"),
    "tiff": encoded(IMAGE, "TIFF"),
    "lzw tiff": encoded(IMAGE, "TIFF", compression="tiff_lzw"),
    "deflate tiff": encoded(IMAGE, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg in tiff": encoded(IMAGE, "TIFF", compression="jpeg"),
    "cmyk tiff": encoded(IMAGE.convert("CMYK"), "TIFF"),
    "tiff of several pages": encoded(FRAMES[0], "TIFF", save_all=True, append_images=more_frames()),
}
TRANSPARENT: dict[str, bytes] = {
    "rgba png": encoded(with_alpha("RGB"), "PNG"),
    "grey png with alpha": encoded(with_alpha("L"), "PNG"),
    "palette png with transparency": encoded(IMAGE.convert("P"), "PNG", transparency=7),
    "grey png with a transparent level": png(8, 0, [PIXELS[0].tobytes()] * 2, b"tRNS" + struct.pack(">H", 100)),
    "gif with transparency": encoded(IMAGE.convert("P"), "GIF", transparency=7),
    "webp with alpha": encoded(with_alpha("RGB"), "WEBP", lossless=True),
    "avif with alpha": encoded(with_alpha("RGB"), "AVIF"),
    "rgba tiff": encoded(with_alpha("RGB"), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_kind_are_pillows(kind: str) -> None:
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        assert np.array_equal(decoded(KINDS[kind]), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", TRANSPARENT)
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)], ids=str)
def test_transparent_pixels_of_every_kind_lie_over_the_background(kind: str, background: tuple[int, int, int]) -> None:
    with Image.open(io.BytesIO(TRANSPARENT[kind])) as image:
        layers = np.asarray(image.convert("RGBA")).astype(np.float64)
    opacity = layers[:, :, 3:] / 255
    expected = layers[:, :, :3] * opacity + np.array(background) * (1 - opacity)
    assert np.abs(decoded(TRANSPARENT[kind], background=background) - expected).max() <= 1


def test_16_bit_grey_keeps_its_levels_until_they_are_rounded_to_8() -> None:
    levels = np.arange(0, 65536, 97, dtype=np.uint16)[None].repeat(2, axis=0)
    for data in (png(16, 0, [row.astype(">u2").tobytes() for row in levels]), encoded(Image.fromarray(levels), "TIFF")):
        assert np.array_equal(decoded(data)[:, :, 1], np.round(levels / 257).astype(np.uint8))


@pytest.mark.parametrize("kind", [*KINDS, *TRANSPARENT])
def test_a_file_that_was_cut_anywhere_is_refused_or_as_if_it_were_whole(kind: str) -> None:
    data = (KINDS | TRANSPARENT)[kind]
    whole = decoded(data)
    num_refused = 0
    for end in sorted({len(data) * part // 40 for part in range(40)}):
        try:
            pixels = decoded(data[:end])
        except BadImageError:
            num_refused += 1
        else:
            assert np.array_equal(pixels, whole), f"cut at {end} of {len(data)}"
    assert num_refused > 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_orientation_is_applied_once_whatever_the_format(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    half = Image.new("RGB", (80, 48), (0, 0, 0))
    half.paste((255, 255, 255), (0, 0, 40, 24))  # the corner where rows and columns begin
    pixels = decoded(encoded(half, format, exif=exif)).astype(int)
    assert pixels.shape == ((48, 80, 3) if orientation <= 4 else (80, 48, 3))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    corners = {(y, x): pixels[y, x].mean() > 128 for y in (0, -1) for x in (0, -1)}
    assert [place for place, is_white in corners.items() if is_white] == [corner[orientation]]


def swapped() -> bytes:
    """A profile of colours in which red and blue are exchanged; sRGB's otherwise."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12)
    }
    red, blue = (profile[tags[name] + 4 : tags[name] + 12] for name in (b"rXYZ", b"bXYZ"))
    profile[tags[b"rXYZ"] + 4 : tags[b"rXYZ"] + 12], profile[tags[b"bXYZ"] + 4 : tags[b"bXYZ"] + 12] = blue, red
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")


SWAPPED = swapped()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_a_colour_profile_is_applied_if_that_is_asked_for(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format in ("JPEG", "AVIF") else {}
    plain = encoded(IMAGE, format, **options)
    data = encoded(IMAGE, format, icc_profile=SWAPPED, **options)
    assert np.array_equal(decoded(data), decoded(plain)), "ignored unless asked for"
    converted = decoded(data, converts_profiles=True).astype(int)
    assert np.abs(converted - decoded(plain)[:, :, ::-1].astype(int)).max() <= 2
    assert np.array_equal(decoded(plain, converts_profiles=True), decoded(plain)), "there is none to apply"


def test_a_profile_is_applied_below_transparency_and_not_to_the_background() -> None:
    data = encoded(with_alpha("RGB"), "PNG", icc_profile=SWAPPED)
    opacity = np.asarray(ALPHA)[:, :, None] / 255
    expected = PIXELS[:, :, ::-1] * opacity + np.array([10, 200, 90]) * (1 - opacity)
    assert np.abs(decoded(data, background=(10, 200, 90), converts_profiles=True) - expected).max() <= 2


def test_a_profile_is_told_by_its_colours_and_not_by_its_name() -> None:
    named = SWAPPED.replace("swap".encode("utf-16-be"), "sRGB".encode("utf-16-be")).replace(b"swap", b"sRGB")
    data = encoded(IMAGE, "PNG", icc_profile=named)
    assert np.abs(decoded(data, converts_profiles=True).astype(int) - PIXELS[:, :, ::-1]).max() <= 2


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_an_orientation_that_only_xmp_tells_turns_a_tiff_and_its_size(compression: str | None) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(IMAGE, "TIFF", tiffinfo={700: xmp}, **({} if compression is None else {"compression": compression}))
    info = inspect(data)
    assert decoded(data).shape == (info.height, info.width, 3)


def test_pillow_may_not_be_told_to_show_truncated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="passes half images off as whole ones"):
        decoded(KINDS["png"][:-60])


def test_postscript_is_not_run() -> None:
    with pytest.raises(BadImageError, match="PostScript is a program"):
        inspect(encoded(IMAGE, "EPS"))


def test_a_profile_that_says_it_is_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(IMAGE, "JPEG", icc_profile=profile)
    assert np.array_equal(decoded(data, converts_profiles=True), decoded(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (
            lambda: (IMAGE, b"no profile at all"),
            "its ICC profile of 17 bytes cannot be read; use transforms.icc=ignore",
        ),
        (lambda: (IMAGE, SWAPPED[:300]), "its ICC profile cannot be applied to pixels of mode RGB"),
        (lambda: (IMAGE.convert("L"), SWAPPED), "its ICC profile cannot be applied to pixels of mode L"),
    ],
    ids=["something else", "cut", "of another kind of pixels"],
)
def test_a_profile_that_cannot_be_applied_makes_a_bad_sample(
    make: Callable[[], tuple[Image.Image, bytes]], cause: str, format: str
) -> None:
    image, profile = make()
    data = encoded(image, format, icc_profile=profile)
    decoded(data)
    with pytest.raises(BadImageError, match=cause):
        decoded(data, converts_profiles=True)


def batches(root: Path, transforms: Transforms, **groups: Any) -> list[bytes]:
    cfg = PipelineConfig(
        data=FolderData(root=str(root), val_fraction=1e-9),
        transforms=transforms,
        loader=Loader(batch_size=4, num_workers=groups.pop("num_workers", 0)),
        **groups,
    )
    with build_pipeline(cfg, num_epochs=2) as pipeline:
        return [batch.images.numpy().tobytes() for _ in range(2) for batch in pipeline]


CHANGES: list[dict[str, Any]] = [{"background": [0, 0, 0]}, {"icc": "convert"}]


@pytest.mark.parametrize("change", CHANGES, ids=["background", "icc"])
def test_caches_and_packs_keep_the_pixels_that_are_asked_for(change: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "images"
    for number in range(4):
        (root / "one").mkdir(parents=True, exist_ok=True)
        (root / "one" / f"{number}.png").write_bytes(encoded(with_alpha("RGB"), "PNG", icc_profile=SWAPPED))
    usual, other = Transforms(size=32), Transforms(size=32, **change)
    expected, changed = batches(root, usual), batches(root, other)
    assert expected != changed
    lru, in_pack = (Cache(policy=policy, store="decoded") for policy in ("lru", "none"))  # type: ignore[arg-type]
    pack = Preload(mode="pack", dir=str(tmp_path / "packs"))  # type: ignore[arg-type]
    for transforms, wanted in ((usual, expected), (other, changed), (usual, expected)):
        assert batches(root, transforms, cache=lru, num_workers=2) == wanted
        assert batches(root, transforms, cache=in_pack, preload=pack) == wanted
    source = open_source(FolderData(root=str(root), val_fraction=1e-9), "train")
    prints = {order_fingerprint(source, SamplerName.shuffle, options, None) for options in (usual, other)}
    assert len(prints) == 2
    evaluated = other.evaluation()
    assert (evaluated.background, evaluated.icc) == (other.background, other.icc)


@pytest.mark.parametrize("background", [[0, 0], [0, 0, 256], [0, 0, -1], [0.5, 0, 0]], ids=str)
def test_a_background_that_is_no_colour_is_refused(background: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"transforms\.background must be"):
        Transforms(background=background)
