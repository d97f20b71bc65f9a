import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.lock import file_lock
from pipeline.sources import FileSource, generate_synthetic, generation, open_folder, open_synthetic, synthetic
from pipeline.sources.motifs import motif_names
from pipeline.sources.pictures import BITS_PER_PIXEL, SIZE, SIZE_SPREAD, encode, fractal, paint

NUM_IMAGES, NUM_CLASSES = 24, 4


def generate(root: Path, **changes: int) -> Path:
    return generate_synthetic(root, **{"num_images": NUM_IMAGES, "num_classes": NUM_CLASSES, **changes})


def hashes(directory: Path) -> dict[str, str]:
    """Content of every file below, by name."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds one complete set; tests must not change it."""
    root = tmp_path_factory.mktemp("synthetic")
    generate(root)
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The same set, for a test to damage."""
    return Path(shutil.copytree(root, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(generate(root).rglob("*.jpg"))]


def test_pictures_are_baseline_420_jpegs_of_a_photographs_entropy(pictures: list[bytes]) -> None:
    low, high = BITS_PER_PIXEL
    bits_per_pixel = []
    for data in pictures:
        image = Image.open(BytesIO(data))
        assert image.format == "JPEG"
        assert "progressive" not in image.info
        assert [component[1:3] for component in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
        bits_per_pixel.append(8 * len(data) / (image.width * image.height))
    assert low <= min(bits_per_pixel)
    assert max(bits_per_pixel) <= high
    assert 2.3 < np.median(bits_per_pixel) < 4.0


def test_sizes_vary_around_500_by_375_in_both_orientations(pictures: list[bytes]) -> None:
    sizes = np.array([Image.open(BytesIO(data)).size for data in pictures])
    assert len(set(map(tuple, sizes.tolist()))) > NUM_IMAGES / 2
    for sides, middle in zip(np.sort(sizes, axis=1).T, SIZE, strict=True):
        assert (np.abs(sides - middle) <= SIZE_SPREAD * middle + 1).all()
    assert 0 < (sizes[:, 0] < sizes[:, 1]).sum() < NUM_IMAGES / 2


def test_textures_have_equal_energy_in_every_octave() -> None:
    field = fractal(np.random.default_rng(0), 512, 512, finest_octave=1)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(field - field.mean()))) ** 2
    y, x = np.mgrid[-256:256, -256:256]
    octave = np.floor(np.log2(np.maximum(np.hypot(x, y), 1))).astype(int)
    energy = np.array([spectrum[octave == number].sum() for number in range(3, 7)])
    assert energy.max() < 3 * energy.min()


def test_noise_too_rich_and_a_flat_area_too_plain_are_told_from_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    assert 8 * len(encode(noise)) / 320**2 <= BITS_PER_PIXEL[1]
    with pytest.raises(AssertionError):
        encode(np.zeros((320, 320, 3), np.uint8))


def test_classes_are_not_told_by_colour() -> None:
    colours = np.array([paint(1, index, index % 2).mean(axis=(0, 1)) for index in range(40)])
    first, second = colours[::2], colours[1::2]
    standard_error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 4 * standard_error).all()


def test_a_hundred_classes_have_a_hundred_names_in_their_order() -> None:
    names = motif_names(100)
    assert len({name.partition("-")[2] for name in names}) == 100
    assert list(names) == sorted(names)
    ten = [name.split("-")[1:] for name in motif_names(10)]
    assert len({shape for shape, _ in ten}) == len({coat for _, coat in ten}) == 10


def test_the_number_of_workers_changes_no_byte(root: Path, tmp_path: Path) -> None:
    expected = hashes(generate(root))
    for num_workers in (1, 5):
        assert hashes(generate(tmp_path / str(num_workers), num_workers=num_workers)) == expected


def test_another_seed_gives_other_pictures_in_another_directory(root: Path, tmp_path: Path) -> None:
    first, second = generate(root), generate(tmp_path, seed=1)
    assert (first.name, second.name) == ("n24-c4-s0-v1", "n24-c4-s1-v1")
    same_names = hashes(first).keys() & hashes(second).keys() - {"manifest.json"}
    assert len(same_names) == NUM_IMAGES
    assert not any(hashes(first)[name] == hashes(second)[name] for name in same_names)


def test_sets_of_one_root_do_not_touch_each_other(copy: Path) -> None:
    before = hashes(copy)
    generate(copy, num_images=8)
    after = hashes(copy)
    assert before.items() <= after.items()
    assert len(list(copy.glob("n8-c4-s0-v1/*/*.jpg"))) == 8


def test_a_complete_set_is_left_alone_and_opens_without_the_painter(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    code = (
        "import sys; from pipeline.sources import open_synthetic\n"
        f"open_synthetic({str(copy)!r}, num_images={NUM_IMAGES}, num_classes={NUM_CLASSES}, split='train').read(0)\n"
        "assert 'cv2' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_an_interrupted_set_goes_on_to_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_painted = 0

    def paint_until_interrupted(seed: int, index: int, motif: int) -> np.ndarray:
        nonlocal num_painted
        num_painted += 1
        if num_painted > 16:
            raise KeyboardInterrupt
        return paint(seed, index, motif)

    monkeypatch.setattr(generation, "paint", paint_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, num_workers=1)
    monkeypatch.undo()
    directory = tmp_path / "n24-c4-s0-v1"
    made = {path: path.stat().st_mtime_ns for path in directory.rglob("*.jpg")}
    assert 0 < len(made) < NUM_IMAGES
    assert not (directory / "manifest.json").exists()

    generate(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert hashes(directory) == hashes(generate(root))


def test_cut_files_and_leftovers_are_repaired_when_a_set_goes_on(copy: Path) -> None:
    directory = generate(copy)
    expected = hashes(directory)
    (directory / "manifest.json").unlink()
    first, second, third, *_ = sorted(directory.rglob("*.jpg"))
    os.truncate(first, first.stat().st_size - 100)
    second.write_bytes(b"")
    third.unlink()
    (third.parent / f".{third.name}.part").write_bytes(b"half")
    generate(copy)
    assert hashes(directory) == expected


def test_a_disk_without_room_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match=r"data\.root=.*24 images need about 0\.00 GB .*has 0\.00 GB free: choose"):
        generate(tmp_path)
    assert not list(tmp_path.rglob("*.jpg"))


def test_the_log_says_what_is_to_come_and_then_each_tenth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        generate(tmp_path, num_images=20)
    lines = caplog.messages
    assert lines[0].startswith("generating 20 synthetic images in ")
    assert "0.00 GB and 0.0 minutes" in lines[0]
    assert lines[1:] == [f"generated {number} of 20 images" for number in range(2, 21, 2)]


def test_the_manifest_describes_the_files(root: Path, pictures: list[bytes]) -> None:
    manifest = json.loads((generate(root) / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("version", "num_images", "num_classes", "seed")} == {
        "version": synthetic.VERSION,
        "num_images": NUM_IMAGES,
        "num_classes": NUM_CLASSES,
        "seed": 0,
    }
    assert manifest["total_bytes"] == sum(map(len, pictures))
    assert manifest["width"][0] == min(Image.open(BytesIO(data)).width for data in pictures)


@pytest.mark.parametrize("content", ["{", '{"version": 0}'], ids=["cut", "another version"])
def test_a_manifest_that_does_not_fit_is_refused_with_the_cure(content: str, copy: Path) -> None:
    (generate(copy) / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"remove .*n24-c4-s0-v1 and let it be generated again"):
        generate(copy)


def test_a_second_process_waits_for_the_first_one(copy: Path) -> None:
    directory = generate(copy)
    (directory / "manifest.json").rename(copy / "kept")
    code = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from pipeline.sources import generate_synthetic\n"
        f"generate_synthetic({str(copy)!r}, num_images={NUM_IMAGES}, num_classes={NUM_CLASSES})\n"
    )
    with file_lock(f"{directory}.lock", waiting_for="the test"):
        second = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "waiting for another process" in second.stderr.readline()
        (copy / "kept").rename(directory / "manifest.json")
    # It finds the set complete, and generates nothing.
    assert second.communicate(timeout=60)[1] == ""
    assert second.returncode == 0


@pytest.fixture(params=[0.1, 0.2])
def splits(root: Path, request: pytest.FixtureRequest) -> tuple[FileSource, ...]:
    return tuple(
        open_synthetic(root, num_images=NUM_IMAGES, num_classes=NUM_CLASSES, split=split, val_fraction=request.param)
        for split in ("train", "val")
    )


def test_the_splits_are_disjoint_balanced_and_together_everything(root: Path, splits: tuple[FileSource, ...]) -> None:
    train, val = splits
    names = [{source.where(id) for id in range(len(source))} for source in splits]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {str(path) for path in generate(root).rglob("*.jpg")}
    assert len(set(np.bincount(val.labels).tolist())) == 1
    assert len(set(np.bincount(train.labels).tolist())) == 1
    for source in splits:
        assert all(f"/{source.class_names[source.label(id)]}/" in source.where(id) for id in range(len(source)))


def test_a_set_is_also_a_folder_of_class_directories(root: Path) -> None:
    source = open_folder(generate(root), split="train", val_fraction=0.0)
    assert len(source) == NUM_IMAGES
    assert source.class_names == motif_names(NUM_CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, r"data\.num_classes must be in 2\.\.100, got 1"),
        ({"num_classes": 101}, r"data\.num_classes must be in 2\.\.100, got 101"),
        ({"num_images": 7}, r"data\.num_images must be >= 8.*got 7"),
        ({"seed": -1}, r"data\.seed must be .* got -1"),
    ],
)
def test_a_request_out_of_range_is_refused_by_its_key(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
