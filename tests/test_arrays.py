"""`data=arrays`: images in `.npy` files, which are mapped."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_sources import make_arrays

from pipeline.build import build_pipeline
from pipeline.build_source import open_source
from pipeline.config import ArraysData, Backend, Cache, ConfigError, Data, Loader, PipelineConfig, Preload, Transforms
from pipeline.shared import Arena
from pipeline.sources import open_arrays


def configured(root: Path, **options: object) -> ArraysData:
    images, labels = make_arrays(root, 30)
    return ArraysData(images=str(images), labels=str(labels), **options)  # type: ignore[arg-type]


def maps_of(path: Path) -> int:
    """How often `path` is mapped in this process."""
    return Path("/proc/self/maps").read_text().count(f" {path}\n")


def test_images_and_labels_are_those_of_the_files_in_both_splits(tmp_path: Path) -> None:
    data = configured(tmp_path, val_fraction=0.3)
    pixels, numbers = np.load(data.images), np.load(data.labels)
    seen = []
    for split in ("train", "val"):
        source = open_source(data, split)
        for id in range(len(source)):
            path, _, number = source.where(id).rpartition(":")
            seen.append(int(number))
            assert path == data.images
            assert np.array_equal(source.read(id), pixels[int(number)])
            assert source.label(id) == numbers[int(number)]
        assert source.class_names == ("0", "1", "2")
    assert sorted(seen) == list(range(30))


def test_an_image_added_at_the_end_moves_no_other_to_the_other_split(tmp_path: Path) -> None:
    numbers = []
    for count in (30, 40):
        images, labels = make_arrays(tmp_path, count)
        val = open_arrays(images, labels, split="val", val_fraction=0.3)
        numbers.append({int(val.where(id).rpartition(":")[2]) for id in range(len(val))})
    assert numbers[0] == {number for number in numbers[1] if number < 30}


def test_a_grey_image_has_three_equal_channels(tmp_path: Path) -> None:
    images, labels = make_arrays(tmp_path, shape=(6, 5))
    source = open_arrays(images, labels, split="train", val_fraction=0.0)
    image = source.read(7)
    assert np.array_equal(image, np.stack([np.load(images)[7]] * 3, axis=2))
    assert isinstance(image, np.ndarray)
    assert image.flags.c_contiguous
    assert not image.flags.writeable


def test_a_sample_is_a_view_of_the_mapped_file_that_nobody_can_write_to(tmp_path: Path) -> None:
    images, labels = make_arrays(tmp_path)
    source = open_arrays(images, labels, split="train", val_fraction=0.0)
    assert maps_of(images) == 1
    image = source.read(3)
    assert isinstance(image, np.ndarray)
    assert not image.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0, 0] = 1


def test_close_lets_the_map_go_when_no_sample_is_held_and_a_later_read_maps_again(tmp_path: Path) -> None:
    images, labels = make_arrays(tmp_path)
    source = open_arrays(images, labels, split="train", val_fraction=0.0)
    before = np.array(source.read(0))
    source.close()  # type: ignore[attr-defined]
    assert maps_of(images) == 0
    assert np.array_equal(source.read(0), before)
    assert maps_of(images) == 1


def test_a_pickle_has_no_pixels_and_neither_has_what_workers_share(tmp_path: Path) -> None:
    images, labels = make_arrays(tmp_path, 50, (64, 64, 3))
    source = open_arrays(images, labels, split="train")
    assert len(pickle.dumps(source)) < 5_000 < images.stat().st_size
    arena = Arena()
    try:
        shared = arena.load(arena.store(source))
        assert arena.size_bytes < 5_000
        assert np.array_equal(shared.read(5), source.read(5))
    finally:
        arena.close()


def test_a_file_that_changed_before_another_process_maps_it_is_an_oserror(tmp_path: Path) -> None:
    images, labels = make_arrays(tmp_path)
    sent = pickle.dumps(open_arrays(images, labels, split="train"))
    make_arrays(tmp_path, 19)
    with pytest.raises(OSError, match=r"images\.npy: uint8 \(19, 6, 5, 3\) instead of uint8 \(20, .* changed after"):
        pickle.loads(sent).read(0)
    images.write_bytes(images.read_bytes()[:200])
    with pytest.raises(OSError, match=r"images\.npy: .*changed after"):
        pickle.loads(sent).read(0)
    images.unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.npy"):
        pickle.loads(sent).read(0)


def test_classes_are_numbered_over_both_parts_and_decimal_labels_are_values(tmp_path: Path) -> None:
    (images, labels), (val_images, val_labels) = make_arrays(tmp_path / "train"), make_arrays(tmp_path / "val", 9)
    np.save(val_labels, np.arange(9))
    for split in ("train", "val"):
        source = open_arrays(images, labels, val_images=val_images, val_labels=val_labels, split=split)
        assert source.class_names == tuple("012345678")
    for path, count in ((labels, 20), (val_labels, 9)):
        np.save(path, np.linspace(-1, 1, count))
    source = open_arrays(images, labels, val_images=val_images, val_labels=val_labels, split="val")
    assert (source.class_names, source.labels.dtype, source.label(0)) == ((), np.float32, -1.0)


def archive(root: Path) -> None:
    np.savez(root / "several.npz", np.zeros(3))
    (root / "several.npz").replace(root / "images.npy")


def fortran(root: Path) -> None:
    np.save(root / "images.npy", np.asfortranarray(np.zeros((20, 6, 5, 3), np.uint8)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: np.save(root / "images.npy", np.zeros((20, 6, 5, 3))),
         r"data\.images=.*images\.npy must be uint8 .*, got float64 \(20, 6, 5, 3\); convert it"),
        (lambda root: np.save(root / "images.npy", np.zeros((20, 3, 6, 5), np.uint8)),
         r"data\.images=.*got uint8 \(20, 3, 6, 5\); put the channels last: transpose"),
        (lambda root: np.save(root / "images.npy", np.zeros((20, 5), np.uint8)), r"data\.images=.*got uint8 \(20, 5\)"),
        (lambda root: np.save(root / "images.npy", np.zeros((0, 6, 5, 3), np.uint8)), r"data\.images=.*\(0, 6, 5, 3\)"),
        (fortran, r"data\.images=.* \(20, 6, 5, 3\) lies in Fortran order.*ascontiguousarray"),
        (archive, r"data\.images=.*is not a \.npy file"),
        (lambda root: (root / "images.npy").write_bytes(b""), r"data\.images=.*is not a \.npy file"),
        (lambda root: os.truncate(root / "images.npy", 300), r"data\.images=.*is not a \.npy file"),
        (lambda root: (root / "images.npy").unlink(), r"data\.images=.*cannot be opened \(No such file"),
        (lambda root: np.save(root / "labels.npy", np.zeros(19, int)),
         r"data\.labels=.*19 labels for the 20 images \(20, 6, 5, 3\) of .*images\.npy; give one for each"),
        (lambda root: np.save(root / "labels.npy", np.zeros((20, 1), int)),
         r"data\.labels=.*must be \(n,\), got int64 \(20, 1\); save labels\.reshape\(-1\)"),
        (lambda root: np.save(root / "labels.npy", 5), r"data\.labels=.*must be \(n,\), got int64 \(\)"),
        (lambda root: np.save(root / "labels.npy", np.array(["a"] * 20)), r"data\.labels=.*must be numbers, got <U1"),
        (lambda root: np.save(root / "labels.npy", np.arange(20) - 1), r"data\.labels=.*label 0 is -1; .*from 0 on"),
        (lambda root: np.save(root / "labels.npy", np.full(20, np.nan)), r"data\.labels=.*label 0 is nan; .*finite"),
    ],
    ids=["floats", "planes", "flat", "none", "Fortran", "npz", "empty", "cut short", "gone",
         "too few labels", "column", "one label", "texts", "negative", "nan"],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused_by_key_and_shape(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    images, labels = make_arrays(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_arrays(images, labels, split="train")


def test_what_is_wrong_in_the_evaluation_files_is_said_of_their_keys(tmp_path: Path) -> None:
    images, labels = make_arrays(tmp_path)
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"data\.val_images=.*wrong\.npy must be uint8"):
        open_arrays(images, labels, val_images=wrong, val_labels=labels, split="val")
    with pytest.raises(ValueError, match=r"data\.val_labels=.*wrong\.npy must be \(n,\)"):
        open_arrays(images, labels, val_images=images, val_labels=wrong, split="train")
    np.save(wrong, np.zeros(20))
    with pytest.raises(ValueError, match=r"data\.labels=.* are int64 and data\.val_labels=.* are float64"):
        open_arrays(images, labels, val_images=images, val_labels=wrong, split="train")
    with pytest.raises(ValueError, match=r"data\.val_images is given and data\.val_labels is not"):
        open_arrays(images, labels, val_images=images, split="train")


def test_keys_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.val_labels must be given"):
        ArraysData(images="a.npy", labels="b.npy", val_images="c.npy")
    with pytest.raises(ConfigError, match=r"data\.root has no use for arrays"):
        ArraysData(images="a.npy", labels="b.npy", root="here")


def batches(data: Data, loader: Loader, preload: Preload, cache: Cache) -> list[bytes]:
    transforms = Transforms.named("light", size=8)
    config = PipelineConfig(data=data, loader=loader, preload=preload, cache=cache, transforms=transforms)
    with build_pipeline(config, device="cpu") as pipeline:
        return [images.numpy().tobytes() + labels.numpy().tobytes() for images, labels in pipeline]


@pytest.mark.parametrize(("mode", "store"), [("none", "auto"), ("ram", "auto"), ("pack", "decoded")])
def test_arrays_give_the_same_batches_however_they_are_loaded(mode: str, store: str, tmp_path: Path) -> None:
    data = configured(tmp_path)
    serial = batches(data, Loader(batch_size=8, num_workers=0), Preload(), Cache())
    loader = Loader(batch_size=8, num_workers=2, backend=Backend.processes)
    preload = Preload(mode=mode, dir=str(tmp_path / "packs"))  # type: ignore[arg-type]
    assert batches(data, loader, preload, Cache(store=store)) == serial  # type: ignore[arg-type]
    assert len(set(serial)) == 4
