"""The native kernel: a part of a JPEG has the pixels of the whole, resizing keeps its bound, faults are seen."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import PIL
import pytest
from damage import mutated
from fakes import photo
from numpy.typing import NDArray
from PIL import Image
from watching import SOAK

from pipeline import native
from pipeline.config import ConfigError, Transforms
from pipeline.decode import BadImageError, Scratch, decode, inspect, jpeg
from pipeline.orientation import app1_segments
from pipeline.transforms import SampleTransform, sample
from pipeline.transforms.fused import resize_fused
from pipeline.transforms.geometry import Box, cut, random_resized_crop
from pipeline.transforms.plan import plan_crop
from pipeline.transforms.resize import resize_exact

kernel: Any = native.kernel
pytestmark = pytest.mark.skipif(kernel is None, reason="the native kernel is not built (make native)")

KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {"quality": 90},
    "4:2:2": {"quality": 75, "subsampling": 1},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "progressive": {"quality": 85, "progressive": True},
    "optimised": {"quality": 92, "optimize": True},
    "restarts": {"quality": 85, "restart_marker_blocks": 2},
    "stored as RGB": {"quality": 85, "keep_rgb": True},
    "coarse": {"quality": 8},
    "fine": {"quality": 100},
}


def encoded(pixels: NDArray[np.uint8], mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def parts_of(height: int, width: int, num: int, seed: int) -> list[tuple[int, int, int, int]]:
    choose = np.random.default_rng(seed)
    tops, lefts = choose.integers(0, height, num), choose.integers(0, width, num)
    sizes = [
        (int(choose.integers(1, height - top + 1)), int(choose.integers(1, width - left + 1)))
        for top, left in zip(tops, lefts, strict=True)
    ]
    corners = [(0, 0, height, width), (height - 1, width - 1, 1, 1), (0, 0, 1, 1)]
    return corners + [(int(top), int(left), *size) for top, left, size in zip(tops, lefts, sizes, strict=True)]


@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_has_the_pixels_of_the_whole_to_the_bit(kind: str, mode: str, denominator: int) -> None:
    for seed, (height, width) in enumerate([(93, 125), (64, 64), (17, 200), (1, 40), (33, 1)]):
        data = encoded(photo(seed, height, width), mode, **KINDS[kind])
        whole = decode(data, inspect(data), Scratch(), denominator=denominator)
        for part in parts_of(*whole.shape[:2], 12, seed):
            top, left, rows, columns = part
            inside = np.s_[top : top + rows, left : left + columns]
            for is_libjpegs in (False, True):
                frame = np.full_like(whole, 99)
                assert kernel.decode_region(data, denominator, *part, frame, is_libjpegs)
                assert np.array_equal(frame[inside], whole[inside]), (part, is_libjpegs)


def test_its_huffman_decoder_takes_the_place_of_the_loaded_libjpegs() -> None:
    """Elsewhere libjpeg's decodes the same pixels; here and with the versions that are known it should not have to."""
    assert kernel.replaces_libjpegs


def test_a_lossless_jpeg_is_left_to_libjpeg() -> None:
    """It has no AC tables, which libjpeg-turbo 3, decoding it, leaves NULL."""
    frame_header = b"\xff\xc3\x00\x11\x08\x00\x08\x00\x08\x03R\x11\x00G\x11\x00B\x11\x00"
    table = b"\xff\xc4\x00\x14\x00\x01" + bytes(16)  # the code 0: no difference to the sample before
    scan_header = b"\xff\xda\x00\x0c\x03R\x00G\x00B\x00\x01\x00\x00"
    data = b"\xff\xd8" + frame_header + table + scan_header + bytes(8 * 8 * 3 // 8) + b"\xff\xd9"
    assert np.all(decode(data, inspect(data), Scratch()) == 128)
    frame = np.zeros((8, 8, 3), np.uint8)
    if kernel.decode_region(data, 1, 0, 0, 8, 8, frame):
        assert np.all(frame == 128)


@pytest.mark.parametrize("native_too", [True, False])
@pytest.mark.parametrize("denominator", [1, 2, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_of_what_exif_turns_has_the_pixels_of_the_whole(
    orientation: int, denominator: int, native_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(orientation, 93, 126), exif=exif, quality=85)
    info = inspect(data)
    whole = decode(data, info, Scratch(), denominator=denominator)
    assert whole.shape[0] == -(-(93 if orientation < 5 else 126) // denominator)
    if not native_too:
        monkeypatch.setattr(jpeg, "kernel", None)
    for part in parts_of(*whole.shape[:2], 12, orientation):
        top, left, rows, columns = part
        inside = np.s_[top : top + rows, left : left + columns]
        shown = decode(data, info, Scratch(), denominator=denominator, part=part)
        assert shown.shape == whole.shape
        assert np.array_equal(shown[inside], whole[inside]), part


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_range_of_columns_has_the_pixels_of_the_whole(subsampling: int) -> None:
    """Of noise: smooth chroma would hide that it was not interpolated, as libjpeg does not for a narrow crop."""
    for width in [*range(1, 20), 33, 34]:
        noise = np.random.default_rng(width).integers(0, 256, (11, width, 3), dtype=np.uint8)
        data = encoded(noise, quality=95, subsampling=subsampling)
        for denominator in (1, 2):
            whole = decode(data, inspect(data), Scratch(), denominator=denominator)
            height, end = whole.shape[:2]
            for left, right in itertools.combinations(range(end + 1), 2):
                frame = np.full_like(whole, 99)
                assert kernel.decode_region(data, denominator, height // 2, left, 1, right - left, frame)
                row = np.s_[height // 2, left:right]
                assert np.array_equal(frame[row], whole[row]), (width, denominator, left, right)


def test_a_kernel_whose_libjpeg_cannot_be_loaded_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    for name in ("libjpeg.so.62", "libjpeg.so.8"):
        (tmp_path / name).touch()
    code = "from pipeline import native; assert native.kernel is None; print(native.why_not)"
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    assert "not to be loaded here: make native builds it anew" in done.stdout
    assert "libjpeg.so" in done.stdout


def test_it_passes_with_the_libjpeg_that_pillow_brings(tmp_path: Path) -> None:
    """As a rule a newer one than its headers are of: libjpeg-turbo 3, where they are Debian's 2.1."""
    brought = sorted((Path(PIL.__file__).parents[1] / "pillow.libs").glob("libjpeg-*.so.62*"))
    if not brought:
        pytest.skip("this Pillow brings no libjpeg of ABI 62")
    (tmp_path / "libjpeg.so.62").symlink_to(brought[0])
    these = "lossless or takes_the_place or a_part_has or bad_whichever"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", these]
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, check=False, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout


def test_both_huffman_decoders_agree_on_what_fuzzing_found() -> None:
    """Small files, most of them damaged, of which each takes a way through the kernel that the others do not."""
    with ZipFile(Path(__file__).with_name("native_corpus.zip")) as corpus:
        files = [corpus.read(name) for name in corpus.namelist()]
    num_decoded = 0
    for data in files:
        try:
            info = inspect(data)
        except BadImageError:
            continue
        if info.height * info.width > 1 << 16:
            continue
        height, width = (info.height, info.width) if info.orientation < 5 else (info.width, info.height)
        for part in parts_of(height, width, 3, seed=0):
            ours, theirs = np.zeros((2, height, width, 3), np.uint8)
            if kernel.decode_region(data, 1, *part, ours):
                assert kernel.decode_region(data, 1, *part, theirs, True)
                top, left, rows, columns = part
                inside = np.s_[top : top + rows, left : left + columns]
                assert np.array_equal(ours[inside], theirs[inside])
                num_decoded += 1
    assert num_decoded > 50


def crops(data: bytes, *, native_too: bool, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[bytes]:
    """Rows of some crops, or the words of the error."""
    with monkeypatch.context() as patch:
        if not native_too:
            patch.setattr(jpeg, "kernel", None)
        transform = SampleTransform(Transforms(size=32, **options), normalise=False)
        made = []
        for draws in np.random.default_rng(0).random((4, transform.num_draws)):
            row = np.empty(transform.row_shape, np.uint8)
            try:
                transform(data, draws, row, Scratch())
            except BadImageError as error:
                made.append(str(error).encode())
            else:
                made.append(row.tobytes())
        return made


@pytest.mark.parametrize("options", [{}, {"decode": "scaled"}, {"max_side": 100}, {"resize": "exact"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_the_same_with_and_without_it(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photo(3, 301, 402), exif=exif, **KINDS[kind])
        both = [crops(data, native_too=each, monkeypatch=monkeypatch, **options) for each in (True, False)]
        assert both[0] == both[1]


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_mutated_files_are_the_same_images_and_errors_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(11)
    wholes = [encoded(photo(seed, 90, 120), **options) for seed, options in enumerate(KINDS.values())]
    wholes += [encoded(photo(9, 64, 80), "L", quality=80), encoded(photo(10, 300, 40), quality=70)]
    num_errors, num = 0, 10_000 if SOAK else 500
    for number in range(num):
        other = wholes[int(random.integers(len(wholes)))]
        data = mutated(wholes[number % len(wholes)], other, random)
        both = [crops(data, native_too=each, monkeypatch=monkeypatch) for each in (True, False)]
        assert both[0] == both[1], f"file {number}"
        num_errors += both[0][0].startswith((b"damaged", b"truncated"))
    assert num / 5 < num_errors < num * 0.9


def test_a_file_is_bad_whichever_part_of_it_is_looked_at() -> None:
    data = encoded(photo(1, 400, 400), quality=90)
    frame = np.empty((400, 400, 3), np.uint8)
    for end in (len(data) // 2, len(data) - 40, len(data) - 2):
        for part in ((0, 0, 8, 8), (392, 392, 8, 8), (0, 0, 400, 400)):
            assert not kernel.decode_region(data[:end], 1, *part, frame)


@pytest.mark.parametrize("shape", [(375, 500), (90, 120), (1200, 900)])
@pytest.mark.parametrize("size", [224, 64, 9])
def test_fused_is_within_its_bound_of_antialiased(shape: tuple[int, int], size: int) -> None:
    means = []
    for seed in range(12):
        pixels = photo(seed, *shape)
        draws = np.random.default_rng(seed).random(22).tolist()
        box = random_resized_crop(*shape, draws, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
        top, left, height, width = map(int, box)
        view = pixels[top : top + height, left : left + width]
        made, expected = (np.empty((size, size, 3), np.uint8) for _ in range(2))
        resize_fused(view, Box(0, 0, height, width), made)
        resize_exact(view, Box(0, 0, height, width), expected)
        difference = np.abs(made.astype(int) - expected)
        means.append(difference.mean())
        assert difference.max() <= 2
    assert np.mean(means) <= 1
    assert max(means) <= 2


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 33), (31, 2), (64, 67)])
def test_every_processor_resizes_to_the_same_bytes(size: tuple[int, int]) -> None:
    for seed, shape in enumerate([(1, 1), (2, 7), (40, 50), (300, 17)]):
        pixels = photo(seed, *shape)
        for is_mirrored in (False, True):
            best, portable = (np.empty((*size, 3), np.uint8) for _ in range(2))
            kernel.resize(pixels, 0.0, 0.0, *map(float, shape), is_mirrored, best, None, False, False)
            kernel.resize(pixels, 0.0, 0.0, *map(float, shape), is_mirrored, portable, None, False, True)
            assert np.array_equal(best, portable)
            if is_mirrored:
                kernel.resize(pixels[:, ::1], 0.0, 0.0, *map(float, shape), False, portable, None, False, False)
                assert np.array_equal(best[:, ::-1], portable)


def test_a_table_gives_its_floats_in_both_layouts() -> None:
    table = np.random.default_rng(0).random((256, 3)).astype(np.float32)
    pixels = photo(0, 60, 80)
    levels, last = np.empty((24, 20, 3), np.uint8), np.empty((24, 20, 3), np.float32)
    planes = np.empty((3, 24, 20), np.float32)
    kernel.resize(pixels, 1.5, 2.0, 50.0, 70.0, False, levels, None, False, False)
    kernel.resize(pixels, 1.5, 2.0, 50.0, 70.0, False, last, table, False, False)
    kernel.resize(pixels, 1.5, 2.0, 50.0, 70.0, False, planes, table, True, False)
    expected = np.stack([table[levels[..., channel], channel] for channel in range(3)], axis=-1)
    assert np.array_equal(last, expected)
    assert np.array_equal(planes, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, 0, 41, 50), "the region must lie in the frame"),
        ((1, -1, 0, 4, 4), "the region must lie in the frame"),
        ((1, 0, 0, 0, 4), "larger than nothing"),
        ((3, 0, 0, 4, 4), "denominator must be 1, 2, 4 or 8"),
    ],
)
def test_a_region_that_cannot_be_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.decode_region(encoded(photo(0, 40, 50)), *arguments, np.empty((40, 50, 3), np.uint8))


@pytest.mark.parametrize(
    "frame",
    [
        np.empty((40, 50), np.uint8),
        np.empty((40, 50, 4), np.uint8),
        np.empty((40, 50, 3), np.int8),
        np.empty((40, 50, 3), np.float32),
        np.empty((40, 100, 3), np.uint8)[:, ::2],
        np.empty((0, 50, 3), np.uint8),
        np.broadcast_to(np.uint8(0), (40, 50, 3)),
        None,
        b"",
    ],
    ids=lambda frame: f"{type(frame).__name__} {getattr(frame, 'shape', '')} {getattr(frame, 'dtype', '')}",
)
def test_memory_of_another_form_is_refused(frame: Any) -> None:
    with pytest.raises((ValueError, TypeError, BufferError)):
        kernel.decode_region(encoded(photo(0, 40, 50)), 1, 0, 0, 4, 4, frame)
    with pytest.raises((ValueError, TypeError, BufferError)):
        kernel.resize(photo(0, 40, 50), 0.0, 0.0, 4.0, 4.0, False, frame, None, False, False)


@pytest.mark.parametrize(
    "box",
    [
        (-1.0, 0.0, 4.0, 4.0),
        (0.0, 0.0, 41.0, 4.0),
        (0.0, 0.0, 0.0, 4.0),
        (np.nan, 0.0, 4.0, 4.0),
        (0.0, np.inf, 4.0, 4.0),
    ],
)
def test_a_box_outside_of_the_image_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="the box must lie in the image"):
        kernel.resize(photo(0, 40, 50), *box, False, np.empty((4, 4, 3), np.uint8), None, False, False)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_several_encoded_samples_are_to_the_bit_what_each_is_alone(normalise: bool, planes: bool) -> None:
    memory_format = "contiguous" if planes else "channels_last"
    options = Transforms(size=48, resize="fused", decode="scaled", brightness=0.2 if planes else 0.0)
    transform = SampleTransform(options, normalise=normalise, memory_format=memory_format)
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = [
        encoded(photo(0, 200, 150)),
        encoded(photo(1, 90, 130), exif=exif),
        encoded(photo(2, 80, 70), "CMYK"),
        encoded(photo(3, 300, 301), quality=30, progressive=True),
        encoded(photo(4, 64, 64)).replace(b"\xff\xda", b"xx\xff\xda"),  # stray bytes, which the kernel leaves to others
        encoded(photo(5, 50, 60), "L"),
    ]
    draws = np.random.default_rng(0).random((len(samples), transform.num_draws))
    together = np.zeros((len(samples), *transform.row_shape), transform.row_dtype)
    transform.many(samples, draws, together, Scratch())
    alone = np.zeros_like(together)
    for sample_, own, row in zip(samples, draws, alone, strict=True):
        assert transform.takes(sample_)
        transform(sample_, own, row, Scratch())
    assert np.array_equal(together, alone)
    if not normalise:
        for sample_, own, row in zip(samples, draws, alone, strict=True):
            plan = plan_crop(options, inspect(sample_), own, is_scaled=True)
            whole = decode(sample_, plan.info, Scratch(), denominator=plan.denominator)
            expected = np.empty_like(row)
            resize_fused(*cut(whole, plan.box), expected)
            assert np.array_equal(row, expected) or np.array_equal(row, expected[:, ::-1])


GOOD_CROP = (0, encoded(photo(0, 40, 50)), 1, 40, 50, 0.0, 0.0, 40.0, 50.0, False)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 1), (0, -1), (1, None), (2, 3), (3, 0), (3, 2**30), (4, -5), (5, 1.0), (6, np.nan), (7, 0.0), (8, np.inf)],
)
def test_a_crop_that_cannot_be_is_refused(place: int, value: Any) -> None:
    frame, out = np.empty(40 * 50 * 3, np.uint8), np.empty((1, 8, 8, 3), np.uint8)
    assert kernel.crops((GOOD_CROP,), frame, out, None, False)[0] == b"\1"
    assert kernel.crops((), frame, out, None, False)[0] == b""
    bad = (*GOOD_CROP[:place], value, *GOOD_CROP[place + 1 :])
    with pytest.raises((ValueError, TypeError)):
        kernel.crops((GOOD_CROP, bad), frame, out, None, False)
    with pytest.raises(ValueError, match="no room"):
        kernel.crops((GOOD_CROP,), frame[:-1], out, None, False)
    with pytest.raises(ValueError, match="out must be"):
        kernel.crops((GOOD_CROP,), frame, out, None, True)
    with pytest.raises((ValueError, TypeError)):
        kernel.crops(("none",), frame, out, None, False)


def test_segments_that_may_tell_the_orientation_are_found_alike_with_and_without_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(0, 40, 50), exif=exif)
    padded = data[:2] + b"\xff\xff" + data[2:]
    random = np.random.default_rng(0)
    files = [data, padded, data[:30], b"", b"\xff", *(mutated(data, padded, random) for _ in range(300))]
    for file in files:
        assert kernel.app1_segments(file) == list(app1_segments(file))
    assert len(kernel.app1_segments(padded)) == 1


def test_a_frame_of_another_size_than_the_image_is_left_to_the_other_decoder() -> None:
    assert not kernel.decode_region(encoded(photo(0, 40, 50)), 1, 0, 0, 4, 4, np.empty((50, 40, 3), np.uint8))


def test_it_lets_other_threads_run() -> None:
    data = encoded(photo(0, 2000, 2000), quality=95)
    frame, ticks, is_over = np.empty((2000, 2000, 3), np.uint8), [0], threading.Event()

    def count() -> None:
        while not is_over.is_set():
            ticks[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    before = ticks[0]
    for _ in range(3):
        kernel.decode_region(data, 1, 0, 0, 2000, 2000, frame)
    during = ticks[0] - before
    is_over.set()
    counter.join()
    assert during > 100


def test_fused_is_refused_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "kernel", None)
    with pytest.raises(ConfigError, match=r"transforms\.resize=fused needs the native kernel.*use fast or auto"):
        SampleTransform(Transforms(resize="fused"), normalise=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stand_in", "environment", "reason"),
    [
        ("None", {}, "not built: make native"),
        ("types.ModuleType('older')", {}, "built from other sources: make native"),
        ("types.ModuleType('any')", {"HEADRACE_NATIVE": "0"}, "left out by HEADRACE_NATIVE=0"),
    ],
)
def test_the_package_works_without_it_and_says_why_it_is_not_there(
    stand_in: str, environment: dict[str, str], reason: str
) -> None:
    code = (
        f"import sys, types; sys.modules['pipeline.native._kernel'] = {stand_in}\n"
        "from pipeline import native; assert native.kernel is None; print(native.why_not)\n"
        "import pipeline.decode, pipeline.transforms.sample"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HEADRACE_NATIVE"} | environment
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    assert reason in done.stdout
