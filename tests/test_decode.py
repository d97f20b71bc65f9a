"""decode.py: bytes to upright RGB, and damaged bytes to an error that says what is wrong."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from pipeline.decode import BadImageError, Scratch, decode, inspect


def photo(height: int = 93, width: int = 125, seed: int = 0) -> Image.Image:
    """Smooth shading, an edge and fine texture, with colours that vary over the image."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[:, width // 3 :] //= 2
    pixels += rng.integers(-12, 13, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes, denominator: int = 1) -> NDArray[np.uint8]:
    info = inspect(data)
    pixels = decode(data, info, Scratch(), denominator=denominator)
    assert pixels.shape == (-(-info.height // denominator), -(-info.width // denominator), 3)
    assert pixels.dtype == np.uint8
    return pixels


def with_orientation(image: Image.Image, orientation: int, format: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a maker"  # an entry before the one looked for
    exif[0x0112] = orientation
    return encoded(image, format, exif=exif, **options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"quality": 90}, id="4:2:0"),
        pytest.param({"quality": 75, "subsampling": 1}, id="4:2:2"),
        pytest.param({"quality": 95, "subsampling": 0}, id="4:4:4"),
        pytest.param({"quality": 85, "progressive": True}, id="progressive"),
        pytest.param({"quality": 85, "keep_rgb": True}, id="stored as RGB"),
        pytest.param({"quality": 85, "restart_marker_blocks": 2}, id="restart markers"),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpegs_are_bit_identical_to_pillow(mode: str, options: dict[str, Any]) -> None:
    data = encoded(photo().convert(mode), **options)
    assert inspect(data).plain_jpeg
    np.testing.assert_array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("mode", "format", "plain"), [("RGB", "JPEG", True), ("CMYK", "JPEG", False), ("RGB", "PNG", False)]
)
def test_every_orientation_is_undone_by_both_decoders(orientation: int, mode: str, format: str, plain: bool) -> None:
    data = with_orientation(photo().convert(mode), orientation, format)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    info = inspect(data)
    assert (info.height, info.width, info.plain_jpeg) == (*expected.shape[:2], plain)
    np.testing.assert_array_equal(decoded(data), expected)


def test_a_tiff_is_turned_once() -> None:
    data = with_orientation(photo(), 6, "TIFF")
    np.testing.assert_array_equal(decoded(data), np.rot90(np.asarray(photo()), -1))


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_of_an_animation_the_first_frame_is_seen(format: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    np.testing.assert_array_equal(decoded(data), np.asarray(frames[0]))


def test_an_image_of_too_many_pixels_is_refused_by_its_header_whatever_would_decode_it() -> None:
    jpeg, png = bytearray(encoded(photo())), bytearray(encoded(photo(), "PNG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = (30_000).to_bytes(2, "big") * 2
    png[16:24] = (30_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    for data in (jpeg, png):
        with pytest.raises(BadImageError, match=r"more than the 178,956,970.* decoded; save it smaller beforehand"):
            inspect(bytes(data))


@pytest.mark.parametrize("orientation", [0, 9, 700])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    data = with_orientation(photo(), orientation)
    assert inspect(data).orientation == 1
    assert decoded(data).shape == (93, 125, 3)


def with_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def with_xmp(xmp: bytes, exif: bytes = b"") -> bytes:
    return encoded(photo(), **({"exif": exif} if exif else {}), xmp=xmp)


@pytest.mark.parametrize("written", [b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"])
def test_an_orientation_that_only_xmp_tells_counts_as_it_does_for_pillow(written: bytes) -> None:
    data = with_xmp(b"<x:xmpmeta><rdf:Description %b/></x:xmpmeta>" % written)
    info = inspect(data)
    assert (info.orientation, info.plain_jpeg) == (6, True)
    assert np.array_equal(decoded(data), with_pillow(data))
    exif = Image.Exif()
    exif[0x0112] = 3
    assert inspect(with_xmp(written, exif.tobytes())).orientation == 3, "EXIF's counts"
    exif = Image.Exif()
    exif[0x0131] = "a program"
    assert inspect(with_xmp(written, exif.tobytes())).orientation == 6, "this EXIF tells none"


def test_an_orientation_of_32_bits_counts_too() -> None:
    plain = encoded(photo())
    for order, tiff in (("<", b"II\x2a\0"), (">", b"MM\0\x2a")):
        exif = b"Exif\0\0" + tiff + struct.pack(f"{order}IHHHIII", 8, 1, 0x0112, 4, 1, 8, 0)
        data = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
        assert inspect(data).orientation == 8
        assert np.array_equal(decoded(data), with_pillow(data))


def test_a_png_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow looks for an orientation behind its pixels, so that asking for it would decode them."""
    data, loads = encoded(photo(), "PNG"), []
    load = PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: (loads.append(1), load(image))[1])
    inspect(data)
    assert loads == []


def test_orientation_is_found_behind_other_segments_and_in_either_byte_order() -> None:
    plain = encoded(photo())
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    exif = b"Exif\0\0MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry
    comment = b"\xff\xfe\x00\x0aExif\0\0\0\0"  # the word where it means nothing
    data = plain[:2] + comment + b"\xff\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    assert inspect(data).orientation == 6


@pytest.mark.parametrize("num_zeros", [1, 4, 10, 24, 40])
def test_a_damaged_exif_is_no_orientation_and_no_crash(num_zeros: int) -> None:
    data = with_orientation(photo(), 6)
    start = data.index(b"Exif") + 6
    assert inspect(data[:start] + b"\0" * num_zeros + data[start + num_zeros :]).orientation == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_scaled_decoding_gives_each_pixel_the_mean_of_its_square(
    denominator: int, format: str, orientation: int
) -> None:
    data = with_orientation(photo(250, 331), orientation, format, **({"quality": 95} if format == "JPEG" else {}))
    full, small = decoded(data), decoded(data, denominator).astype(int)
    top, left = inspect(data).corner(denominator)
    assert 0 <= top < 1
    assert 0 <= left < 1
    # the squares that stick out repeat the edge
    before = round(top * denominator), round(left * denominator)
    after = (-(full.shape[0] + before[0]) % denominator, -(full.shape[1] + before[1]) % denominator)
    squares = np.pad(full, [*zip(before, after, strict=True), (0, 0)], mode="edge")
    means = np.asarray(Image.fromarray(squares).reduce(denominator))
    assert means.shape == small.shape
    assert np.abs(small - means).mean() < 1.5


@pytest.mark.parametrize("denominator", [0, 3, 5, 6, 7, 16])
def test_other_denominators_are_refused(denominator: int) -> None:
    data = encoded(photo())
    with pytest.raises(ValueError, match="denominator must be one of"):
        decode(data, inspect(data), Scratch(), denominator=denominator)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_other_kinds_of_pixels_become_rgb(mode: str) -> None:
    grey = photo().convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    pixels = decoded(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    if mode == "1":
        assert set(np.unique(pixels)) == {0, 255}
    else:
        np.testing.assert_array_equal(pixels, np.asarray(grey.convert("RGB")))


def test_transparent_pixels_lie_over_white() -> None:
    image = photo().convert("RGBA")
    image.putalpha(0)
    assert (decoded(encoded(image, "PNG")) == 255).all()


def test_pixels_without_a_fixed_range_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(ValueError, match="mode F have no fixed range"):
        decoded(data)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", r"no known image format: 28 bytes that begin with b'<!DOCTYPE ht'"),
        (b"\xff\xd8", "damaged JPEG header"),
        (encoded(photo())[:100], "damaged JPEG header|unreadable image: "),
        (encoded(photo(), "PNG")[:20], "unreadable image|no known image"),
    ],
    ids=["empty", "html", "two bytes of a jpeg", "part of a jpeg's header", "part of a png's header"],
)
def test_bytes_that_are_no_image_are_refused_with_the_reason(data: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        inspect(data)


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "WEBP", {}),
    ],
)
@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_a_truncated_image_is_an_error_and_never_half_grey(
    mode: str, format: str, options: dict[str, Any], part: float
) -> None:
    data = encoded(photo(375, 500).convert(mode), format, **options)
    with pytest.raises(ValueError, match=r"truncated|unreadable|Premature end"):
        decoded(data[: int(len(data) * part)])


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_damaged_scan_is_an_error_where_pillow_would_show_it(mode: str) -> None:
    data = bytearray(encoded(photo(375, 500).convert(mode)))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd3"  # a restart marker where none belongs
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        decoded(bytes(data))


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc4", b"\xff\xda", b"\xff\xd9"])
def test_stray_bytes_before_a_marker_are_accepted(marker: bytes) -> None:
    data = encoded(photo(), progressive=True)
    position = data.rindex(marker)
    stray = data[:position] + b"stray" + data[position:]
    np.testing.assert_array_equal(decoded(stray), decoded(data))


def test_stray_bytes_in_several_places_are_accepted() -> None:
    data = encoded(photo())
    stray = data.replace(b"\xff\xdb", b"12\xff\xdb").replace(b"\xff\xc4", b"345\xff\xc4")
    np.testing.assert_array_equal(decoded(stray), decoded(data))


def test_stray_bytes_do_not_hide_another_fault() -> None:
    data = encoded(photo())
    position = data.index(b"\xff\xdb")
    stray = data[:position] + b"stray" + data[position:]
    with pytest.raises(ValueError, match="truncated JPEG: Premature end"):
        decoded(stray[:-300])


@pytest.mark.parametrize("orientation", [1, 5])
def test_a_threads_scratch_is_used_again(orientation: int) -> None:
    scratch, address = Scratch(), set()
    for seed in range(3):
        data = with_orientation(photo(93 - seed, 125, seed), orientation)
        pixels = decode(data, inspect(data), scratch)
        address.add(pixels.__array_interface__["data"][0])
    assert len(address) == 1


def test_scratch_grows_and_does_not_keep_a_huge_buffer() -> None:
    scratch = Scratch()
    small = scratch.pixels("a", (4, 5, 3))
    assert scratch.floats("a", (4, 5, 3)).shape == (4, 5, 3)
    assert not np.may_share_memory(small, scratch.pixels("a", (4, 5, 3)))
    kept = scratch.pixels("a", (10,))
    assert not np.may_share_memory(kept, scratch.pixels("a", (5000, 5000, 3)))
    assert np.may_share_memory(kept, scratch.pixels("a", (10,)))


def test_one_scratch_serves_images_of_many_sizes_and_kinds() -> None:
    scratch = Scratch()
    for height, width, mode in [(40, 60, "RGB"), (93, 125, "CMYK"), (300, 200, "L"), (8, 8, "RGB"), (1, 1, "RGB")]:
        data = encoded(photo(height, width).convert(mode))
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode(data, inspect(data), scratch), expected)
