import json
import logging
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from contracts_of_sources import assert_source_contract
from made_sources import CLASSES, SOURCES, make_manifest, make_shards, make_tree, write

from pipeline.sources import (
    ArraySource,
    FileSource,
    PathTable,
    TarSource,
    open_folder,
    open_manifest,
    open_tar,
)
from pipeline.sources.shards import expand_braces


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    assert_source_contract(partial(SOURCES[kind], tmp_path))


def test_a_files_stamp_changes_with_its_size_and_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    source = FileSource([path], [0])
    stamps = set()
    for data, time_ns in ((b"one", 5), (b"three", 5), (b"three", 6), (b"three", -6), (b"", 6)):
        path.write_bytes(data)
        os.utime(path, ns=(time_ns, time_ns))
        stamps.add(source.stamp(0))
    assert len(stamps) == 5
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        source.stamp(0)


def test_a_tar_samples_stamp_changes_with_its_archive_and_with_its_place_there(tmp_path: Path) -> None:
    source = open_tar(make_shards(tmp_path / "shards"), split="train", val_fraction=0.3)
    before = [source.stamp(id) for id in range(len(source))]
    assert len(set(before)) == len(source)
    first = Path(source.where(0).partition(".tar:")[0] + ".tar")
    os.utime(first, ns=(5, 5))
    changed = [source.stamp(id) != before[id] for id in range(len(source))]
    assert changed == [source.where(id).startswith(str(first)) for id in range(len(source))]
    assert not all(changed)
    first.unlink()
    with pytest.raises(FileNotFoundError):
        source.stamp(0)


def test_the_stamp_of_pixels_in_memory_is_of_that_image_alone() -> None:
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    source = ArraySource(pixels, range(3))
    before = [source.stamp(id) for id in range(3)]
    pixels[1, 2, 3, 0] = 1
    assert [source.stamp(id) == before[id] for id in range(3)] == [True, False, True]


def test_a_fingerprint_tells_order_labels_and_borders_of_names_apart_but_not_roots() -> None:
    def fingerprint(paths: list[str], labels: list[int], root: str | None = None) -> str:
        return FileSource(paths, labels, root=root).fingerprint()

    same = fingerprint(["a", "b"], [0, 1])
    assert same == fingerprint(["a", "b"], [0, 1], root="/elsewhere")
    assert (
        len({same, fingerprint(["b", "a"], [0, 1]), fingerprint(["a", "b"], [1, 0]), fingerprint(["ab", ""], [0, 1])})
        == 4
    )


def test_a_path_table_gives_back_every_kind_of_path_it_was_given() -> None:
    odd = os.fsdecode(b"caf\xe9/\xff.jpg")
    table = PathTable(["plain.jpg", Path("a/b.jpg"), b"bytes.jpg", odd, "é.jpg"])
    assert [table[id] for id in range(len(table))] == ["plain.jpg", "a/b.jpg", "bytes.jpg", odd, "é.jpg"]
    assert list(PathTable(["x", odd])) == ["x", odd]
    assert list(PathTable(Path(name) for name in "xyz")) == ["x", "y", "z"]
    assert list(PathTable([])) == []


def test_a_path_table_does_not_follow_the_list_it_came_from() -> None:
    paths = ["a", "b"]
    table = PathTable(paths)
    paths[0] = "changed"
    assert table[0] == "a"


def test_a_path_table_holds_little_more_than_its_characters() -> None:
    table = PathTable([f"n{number:08d}/{number:012d}.jpg" for number in range(10_000)])
    assert len(pickle.dumps(table)) < 10_000 * (26 + 1 + 8) + 1_000


def test_a_path_table_refuses_what_is_no_sequence_of_paths() -> None:
    with pytest.raises(TypeError, match=r"single path 'a\.jpg'"):
        PathTable("a.jpg")
    with pytest.raises(TypeError, match="int"):
        PathTable(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"path 1 holds a NUL"):
        PathTable(["a", "b\0c"])


def test_labels_must_be_as_many_numbers_as_there_are_samples() -> None:
    with pytest.raises(ValueError, match="3 labels for 2 samples"):
        FileSource(["a", "b"], [0, 1, 2])
    with pytest.raises(TypeError, match="must be numbers"):
        FileSource(["a", "b"], ["cat", "dog"])
    assert FileSource(["a"], [0.5]).labels.dtype == np.float32
    assert FileSource(["a"], [[0.5, 1.0]]).label(0).tolist() == [0.5, 1.0]


def test_a_missing_file_raises_oserror_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.jpg"):
        FileSource([tmp_path / "gone.jpg"], [0]).read(0)


def test_an_array_source_gives_views_that_nobody_can_write_to() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    source = ArraySource(pixels, [0, 1])
    assert np.shares_memory(source.read(1), pixels)
    with pytest.raises(ValueError, match="read-only"):
        source.read(1)[0, 0, 0] = 1
    with pytest.raises(ValueError, match="uint8"):
        ArraySource(pixels.astype(np.float32), [0, 1])


# --- folder


def relative_names(source: FileSource, root: Path) -> list[str]:
    return [os.path.relpath(source.where(id), root) for id in range(len(source))]


def test_a_tree_divides_into_disjoint_splits_that_cover_it_in_sorted_order(tmp_path: Path) -> None:
    make_tree(tmp_path, per_class=100)
    train, val = (open_folder(tmp_path, split=split, val_fraction=0.2) for split in ("train", "val"))
    names = [relative_names(source, tmp_path) for source in (train, val)]
    assert not set(names[0]) & set(names[1])
    assert sorted(names[0] + names[1]) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert names[0] == sorted(names[0])
    assert 30 <= len(val) <= 90
    assert train.class_names == val.class_names == CLASSES
    assert all(name.startswith(CLASSES[label]) for name, label in zip(names[0], train.labels, strict=True))


def test_adding_files_and_moving_the_tree_never_moves_a_file_to_the_other_split(tmp_path: Path) -> None:
    make_tree(tmp_path / "old")
    before = set(relative_names(open_folder(tmp_path / "old", split="val"), tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    for number in range(50):
        write(tmp_path / "new" / "ant" / f"a{number}.jpg")
    after = set(relative_names(open_folder(tmp_path / "new", split="val"), tmp_path / "new"))
    assert before == {name for name in after if not name.startswith("ant/a")}


def test_train_and_val_directories_are_the_splits_and_number_their_classes_alike(tmp_path: Path) -> None:
    write(tmp_path / "train" / "bee" / "1.jpg")
    write(tmp_path / "train" / "ant" / "deep" / "er" / "2.PNG")
    write(tmp_path / "val" / "cow" / "3.webp")
    train, val = (open_folder(tmp_path, split=split) for split in ("train", "val"))
    assert relative_names(train, tmp_path) == ["train/ant/deep/er/2.PNG", "train/bee/1.jpg"]
    assert train.labels.tolist() == [0, 1]
    assert val.labels.tolist() == [2]
    assert train.class_names == val.class_names == CLASSES


def test_files_that_are_no_images_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tree(tmp_path)
    write(tmp_path / "ant" / "notes.txt")
    write(tmp_path / "bee" / ".hidden.jpg")
    write(tmp_path / "readme.md")
    with caplog.at_level(logging.INFO, "pipeline"):
        assert len(open_folder(tmp_path, split="train", val_fraction=0.0)) == 60
    assert "ignored 2 files" in caplog.text
    assert "1 .txt" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.touch(), "no class directories"),
        (lambda root: write(root / "1.jpg"), "no class directories"),
        (lambda root: write(root / "ant" / "notes.txt"), "no image in its class directory 'ant'"),
        (lambda root: (write(root / "train/ant/1.jpg"), write(root / "test/ant/1.jpg")), "not both train/ and val/"),
        (lambda root: (root / "ant").symlink_to(root), "link to a directory that holds it"),
    ],
    ids=["empty", "flat", "empty class", "test instead of val", "cycle"],
)
def test_a_folder_that_cannot_be_meant_is_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, split="train")


def test_a_folder_that_is_not_there_and_an_empty_split_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*not a directory"):
        open_folder(tmp_path / "gone", split="train")
    make_tree(tmp_path)
    with pytest.raises(ValueError, match=r"raise data\.val_fraction"):
        open_folder(tmp_path, split="val", val_fraction=0.0)
    with pytest.raises(ValueError, match=r"data\.val_fraction must be in \[0, 1\], got 1\.5"):
        open_folder(tmp_path, split="val", val_fraction=1.5)


# --- manifest


def test_csv_tsv_and_json_lines_of_the_same_rows_open_alike(tmp_path: Path) -> None:
    rows = [("b.jpg", "dog", "train", 2.0), ("a.jpg", "cat", "val", 1.0), ("sub/c.jpg", "cat", "train", 0.5)]
    header = ("path", "label", "split", "weight")
    for name, delimiter in (("m.csv", ","), ("m.tsv", "\t")):
        (tmp_path / name).write_text("".join(delimiter.join(map(str, row)) + "\n" for row in (header, *rows)))
    lines = (json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    (tmp_path / "m.jsonl").write_text("".join(lines))
    for name in ("m.csv", "m.tsv", "m.jsonl"):
        train = open_manifest(tmp_path / name, split="train")
        assert relative_names(train, tmp_path) == ["b.jpg", "sub/c.jpg"]
        assert train.labels.tolist() == [1, 0]
        assert train.class_names == ("cat", "dog")
        assert train.weights is not None
        assert train.weights.tolist() == [2.0, 0.5]
        assert open_manifest(tmp_path / name, split="val").labels.tolist() == [0]


def test_manifest_paths_are_relative_to_root_or_absolute(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"path,label\na.jpg,0\n{tmp_path}/else/b.jpg,1\n")
    source = open_manifest(tmp_path / "m.csv", root=tmp_path / "base", split="train", val_fraction=0.0)
    assert [source.where(0), source.where(1)] == [f"{tmp_path}/base/a.jpg", f"{tmp_path}/else/b.jpg"]
    assert source.weights is None


@pytest.mark.parametrize(
    ("labels", "dtype", "class_names"),
    [
        (["2", "0"], np.int64, ("0", "1", "2")),
        (["2", "0.5"], np.float32, ()),
        (["x", "7"], np.int64, ("7", "x")),
        (["1_1", "11"], np.int64, ("11", "1_1")),
        (["nan", "bread"], np.int64, ("bread", "nan")),
    ],
    ids=["whole numbers", "decimal numbers", "texts", "numbers to Python alone", "a text that is a number elsewhere"],
)
def test_manifest_labels_are_classes_values_or_names(
    labels: list[str], dtype: type, class_names: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels)))
    source = open_manifest(tmp_path / "m.csv", split="train", val_fraction=0.0)
    assert source.labels.dtype == dtype
    assert source.class_names == class_names


def test_a_manifest_without_splits_divides_by_path_whatever_its_order(tmp_path: Path) -> None:
    path = make_manifest(tmp_path)
    before = {open_manifest(path, split="val", val_fraction=0.3).where(id) for id in range(3)}
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows), "new.jpg,ant"]) + "\n")
    val = open_manifest(path, split="val", val_fraction=0.3)
    assert before <= {val.where(id) for id in range(len(val))}
    train = open_manifest(path, split="train", val_fraction=0.3)
    assert len(train) + len(val) == 31


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "path,lable\na.jpg,1\n", r"m\.csv:\d: the column 'label' is missing"),
        ("m.csv", "path,label,label\na.jpg,1,1\n", r"m\.csv:1: a column stands twice"),
        ("m.csv", "path,label\na.jpg,1\nb.jpg\n", r"m\.csv:3: 1 fields, but the header has 2"),
        ("m.csv", "path,label\na.jpg,1\n\nc.jpg,\n", r"m\.csv:4: label is missing"),
        ("m.jsonl", '{"path": "a", "label": 1}\n\n[1]\n', r"m\.jsonl:3: each line must be an object"),
        ("m.csv", "path,label\na.jpg,1\n,1\n", r"m\.csv:3: path is missing"),
        ("m.csv", 'path,label\n"a\nb.jpg",1\nc.jpg,\n', r"m\.csv:4: label is missing"),
        (
            "m.csv",
            "path,label,split\na.jpg,1,train\nb.jpg,1,test\n",
            r"m\.csv:3: split must be train or val, got 'test'",
        ),
        ("m.csv", "path,label,weight\na.jpg,1,-1\n", r"m\.csv:2: weight must be .* got '-1'"),
        ("m.csv", "path,label\na.jpg,0\nb.jpg,-1\n", r"m\.csv:3: label -1 must be a class number"),
        ("m.csv", "path,label\na.jpg,0.5\nb.jpg,nan\n", r"m\.csv:3: label nan must be a finite"),
        ("m.csv", f"path,label\na.jpg,0\nb.jpg,{'9' * 5000}\n", r"m\.csv:3: label inf must be a finite"),
        ("m.jsonl", f'{{"path": "a", "label": {"9" * 400}}}', r"m\.jsonl:1: label 9+\.\.\.9+ must be a class"),
        ("m.jsonl", f'{{"path": "a", "label": {"9" * 5000}}}', r"m\.jsonl:1: not JSON: Exceeds the limit"),
        ("m.csv", "path,label\n", r"no rows"),
        ("m.jsonl", '{"path": "a", "label": 1}\n{"path": "b"\n', r"m\.jsonl:2: not JSON"),
        ("m.jsonl", '{"path": "a", "label": 1}\n[1]\n', r"m\.jsonl:2: each line must be an object"),
        ("m.jsonl", '{"path": "a", "label": 1}\n{"path": "b", "label": "x"}\n', r"m\.jsonl:2: label 'x' is str"),
        (
            "m.jsonl",
            '{"path": "a", "label": 1}\n{"path": "b\\ud800", "label": 1}\n',
            r"m\.jsonl:2: path cannot be the name of a file",
        ),
        (
            "m.jsonl",
            '{"path": "a", "label": 1}\n{"path": "b", "label": 1, "weight": 2}\n',
            r"m\.jsonl:2: weight is given",
        ),
        ("m.txt", "path,label\n", r"must end in \.csv"),
    ],
)
def test_a_mistake_in_a_manifest_is_refused_with_its_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_manifest(tmp_path / name, split="train", val_fraction=0.0)


# --- tar


@pytest.mark.parametrize("label", ["cls", "json"])
def test_a_tar_source_gives_the_same_bytes_and_labels_as_the_files_in_it(label: str, tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "shards", label=label)
    unpacked = tmp_path / "unpacked"
    for shard in sorted((tmp_path / "shards").iterdir()):
        with tarfile.open(shard) as archive:
            archive.extractall(unpacked, filter="data")
    total = 0
    for split in ("train", "val"):
        source = open_tar(pattern, split=split, val_fraction=0.3)
        total += len(source)
        for id in range(len(source)):
            member = source.where(id).partition(".tar:")[2]
            assert source.read(id) == (unpacked / member).read_bytes()
            assert CLASSES[source.label(id)] in (unpacked / member).with_suffix(f".{label}").read_text()
    assert total == 30


def test_a_tar_sample_keeps_its_split_when_the_shards_are_packed_anew(tmp_path: Path) -> None:
    make_shards(tmp_path / "many")
    with tarfile.open(tmp_path / "one.tar", "w") as target:
        for shard in sorted((tmp_path / "many").iterdir(), reverse=True):
            with tarfile.open(shard) as archive:
                for member in archive:
                    target.addfile(member, archive.extractfile(member))
    members = []
    for pattern in ("many/*.tar", "one.tar"):
        source = open_tar(str(tmp_path / pattern), split="val", val_fraction=0.3)
        members.append({source.where(id).partition(".tar:")[2] for id in range(len(source))})
    assert members[0] == members[1]


def test_a_pattern_with_the_splits_name_in_it_divides_by_shard(tmp_path: Path) -> None:
    make_shards(tmp_path, num_shards=3)
    (tmp_path / "s-000.tar").rename(tmp_path / "val-0.tar")
    for number in (1, 2):
        (tmp_path / f"s-00{number}.tar").rename(tmp_path / f"train-{number}.tar")
    pattern = str(tmp_path / "{split}-*.tar")
    assert [len(open_tar(pattern, split=split)) for split in ("train", "val")] == [20, 10]
    assert "val-0.tar:dir/0000.jpg" in open_tar(pattern, split="val").where(0)


def test_close_frees_the_descriptors_twice_over_and_a_later_read_opens_again(tmp_path: Path) -> None:
    source = open_tar(make_shards(tmp_path), split="train", val_fraction=0.0)
    before = set(os.listdir("/dev/fd"))
    data = [source.read(id) for id in range(len(source))]
    assert len(set(os.listdir("/dev/fd")) - before) == 3
    source.close()
    source.close()
    assert set(os.listdir("/dev/fd")) == before
    assert source.read(0) == data[0]
    source.close()


def test_more_shards_than_descriptors_are_read_just_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_tar(make_shards(tmp_path), split="train")
    data = [source.read(id) for id in range(len(source))]
    source.close()
    monkeypatch.setattr("pipeline.sources.tar._MAX_OPEN_SHARDS", 2)
    before = os.listdir("/dev/fd")
    assert [source.read(id) for id in range(len(source))] == data
    assert os.listdir("/dev/fd") == before


def test_an_archive_that_shrank_raises_oserror(tmp_path: Path) -> None:
    source: TarSource = open_tar(make_shards(tmp_path), split="train", val_fraction=0.0)
    os.truncate(tmp_path / "s-002.tar", 1_000)
    with pytest.raises(OSError, match=r"s-002\.tar:dir/2009\.jpg.*changed after it was indexed"):
        source.read(len(source) - 1)
    source.close()


def add_members(path: Path, names: list[str], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            archive.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg"], "sample 'a' has no label"),
        (["a.cls"], "sample 'a' has no image"),
        (["a.jpg", "a.png", "a.cls"], "two images, a.jpg and a.png"),
        (["a.jpg", "a.json"], r"bad\.tar:a\.json"),
        ([], "hold no sample"),
    ],
)
def test_an_incomplete_sample_in_a_tar_is_refused_by_name(names: list[str], message: str, tmp_path: Path) -> None:
    add_members(tmp_path / "bad.tar", names)
    with pytest.raises(ValueError, match=message):
        open_tar(str(tmp_path / "bad.tar"), split="train")


def test_compressed_and_missing_shards_are_refused(tmp_path: Path) -> None:
    add_members(tmp_path / "z.tar", ["a.jpg", "a.cls"], "w:gz")
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        open_tar(str(tmp_path / "z.tar"), split="train")
    with pytest.raises(ValueError, match=r"data\.pattern=.*there is no file .*s-001\.tar"):
        open_tar(str(tmp_path / "s-{001..002}.tar"), split="train")


def test_braces_count_with_their_width_and_nest_with_lists() -> None:
    assert expand_braces("s{08..11}.tar") == ["s08.tar", "s09.tar", "s10.tar", "s11.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain*.tar") == ["plain*.tar"]


def test_importing_the_sources_loads_neither_torch_nor_opencv() -> None:
    code = "import sys, pipeline.sources; print([m for m in ('torch', 'cv2', 'simplejpeg') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
