"""Indexes beside data: what is found with them is what is there, and no more is read than has changed."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_sources import make_manifest, make_shards, make_tree, write
from watching import ROOT, SOAK

from pipeline.sources import (
    FileSource,
    Remote,
    Source,
    index,
    index_file,
    manifest,
    mounts,
    open_folder,
    open_manifest,
    open_tar,
    tar_index,
    walk,
)
from pipeline.sources.index import identity_of, is_settled
from pipeline.sources.split import IMAGE_SUFFIXES

GRAIN_NS = 50_000_000
"""Longer than the clock of any file system that tests run on."""


@pytest.fixture(autouse=True)
def remembers_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small sets are worth an index here, and changes settle soon."""
    monkeypatch.setattr(walk, "MIN_FILES", 1)
    monkeypatch.setattr(manifest, "MIN_BYTES", 1)
    monkeypatch.setattr(tar_index, "MIN_BYTES", 1)
    monkeypatch.setattr(index, "_SETTLED_NS", GRAIN_NS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users cache"))


def settle(path: Path) -> None:
    """Return when `path` and the directories below it have not changed for as long as the clock's grain."""
    inside = [path, *(found for found in path.rglob("*") if found.is_dir())] if path.is_dir() else [path]
    while not all(is_settled(identity_of(found.stat())) for found in inside):
        time.sleep(0.005)


def count_reads(patch: pytest.MonkeyPatch, module: Any, function: str) -> list[str]:
    """The directories, or files, that `module.function` reads from now on."""
    reads: list[str] = []
    original: Callable[..., Any] = getattr(module, function)

    def counted(*arguments: Any) -> Any:
        reads.append(str(arguments[1] if module is walk else arguments[0]))
        return original(*arguments)

    patch.setattr(module, function, counted)
    return reads


def told(source: Source) -> tuple[list[tuple[str, int]], str]:
    return [(source.where(id), int(source.label(id))) for id in range(len(source))], source.fingerprint()


def walked(root: Path) -> list[tuple[str, int]]:
    """What a tree holds, found without any of the code under test."""

    def below(directory: Path) -> Iterator[str]:
        for entry in sorted(directory.iterdir(), key=lambda found: found.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from below(entry)
            elif entry.suffix[1:].lower() in IMAGE_SUFFIXES:
                yield str(entry)

    classes = sorted(found for found in root.iterdir() if found.is_dir() and not found.name.startswith("."))
    return [(path, number) for number, found in enumerate(classes) for path in below(found)]


def change(root: Path, choose: random.Random, number: int) -> None:
    """Adds, removes, renames, touches or links something below a class."""
    directories = [found for found in root.rglob("*") if found.is_dir() and not found.is_symlink()]
    files = [found for found in root.rglob("*.jpg") if found.is_symlink() or found.is_file()]
    files = [found for found in files if found.name != "stays.jpg"]
    directory = choose.choice(directories)
    what = choose.choice(["add", "add", "remove", "rename", "move", "nest", "unnest", "touch", "link", "other", "swap"])
    if what == "add":
        write(directory / f"{choose.choice('ab')}{number}.jpg")
    elif what == "other":
        write(directory / f"{number}.txt")
    elif what == "nest":
        write(directory / f"{choose.choice('ab')}sub{number}" / "x.jpg")
    elif what == "link":
        (directory / f"link{number}.jpg").symlink_to(choose.choice([*files, *directories[:1], root / "nowhere"]))
    elif what == "unnest" and directory.parent != root:
        shutil.rmtree(directory)
    elif what == "touch":
        os.utime(directory)
    elif files:
        file = choose.choice(files)
        if what == "remove":
            file.unlink()
        elif what == "swap":  # the name of an image becomes a directory's
            file.unlink()
            write(file / "inside.png")
        elif not file.is_symlink():
            file.rename((file.parent if what == "rename" else directory) / f"renamed{number}.jpg")


def test_an_index_finds_what_a_walk_finds_whatever_was_changed_since(tmp_path: Path) -> None:
    for seed in range(20 if SOAK else 3):
        root, choose = make_tree(tmp_path / str(seed), per_class=4), random.Random(seed)
        for name in ("ant", "bee", "cow"):
            write(root / name / "stays.jpg")
        for number in range(60):
            for _ in range(choose.randrange(4)):
                change(root, choose, number * 10 + choose.randrange(10))
            try:
                found = told(open_folder(root, split="train", val_fraction=0.0))[0]
            except ValueError as error:
                assert "is a link to a directory that holds it" in str(error)  # noqa: PT017  # of some trees only
                for link in root.rglob("link*"):
                    link.unlink()
                continue
            assert found == walked(root), f"seed {seed}, change {number}"


def test_both_splits_of_a_warm_start_are_those_of_a_cold_one(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    write(root / "bee" / "2" / "inside.jpg")  # among the files by its name
    settle(root)
    for fraction in (0.0, 0.3, 1.0):
        parts = [told(open_folder(root, split=split, val_fraction=fraction)) for split in ("train",) if fraction < 1]
        parts += [told(open_folder(root, split="val", val_fraction=fraction))] if fraction > 0 else []
        assert sorted(sample for part, _ in parts for sample in part) == sorted(walked(root))
    warm = told(open_folder(root, split="val", val_fraction=0.3))
    (root / ".headrace-index").unlink()
    assert told(open_folder(root, split="val", val_fraction=0.3)) == warm


def test_only_the_directory_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")
    reads = count_reads(monkeypatch, walk, "_read")
    open_folder(root, split="val")
    assert reads == []
    write(root / "bee" / "new.jpg")
    open_folder(root, split="train")
    assert reads == ["bee"]
    settle(root)
    open_folder(root, split="train")  # had changed just before it was read, so that could not be trusted
    open_folder(root, split="train")
    assert reads == ["bee", "bee"]


def test_a_directory_that_goes_leaves_the_index(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    before = len(open_folder(root, split="train", val_fraction=0.0))
    shutil.rmtree(root / "cow")
    source = open_folder(root, split="train", val_fraction=0.0)
    assert (len(source), source.class_names) == (before - 20, ("ant", "bee"))
    assert b"cow" not in (root / ".headrace-index").read_bytes()


def test_directories_of_links_are_walked_without_an_index_and_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_tree(tmp_path / "files")
    for file in files.glob("*/*.jpg"):
        link = tmp_path / "tree" / file.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    settle(tmp_path / "tree")
    monkeypatch.setattr(index_file, "file_lock", None)  # taking it would raise
    assert told(open_folder(tmp_path / "tree", split="train", val_fraction=0.0))[0] == walked(tmp_path / "tree")
    assert not list((tmp_path / "tree").glob(".*"))


def test_directories_whose_file_system_keeps_no_times_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")  # elsewhere, say, and the index came along with the data
    monkeypatch.setattr(mounts, "_KEEP_TIMES", ())
    before = (root / "ant").stat()
    write(root / "ant" / "new.jpg")
    os.utime(root / "ant", ns=(before.st_atime_ns, before.st_mtime_ns))
    same = index.identity_of(before)
    monkeypatch.setattr(walk, "identity_of", lambda _: same)
    reads = count_reads(monkeypatch, walk, "_read")
    assert told(open_folder(root, split="train", val_fraction=0.0))[0] == walked(root)
    assert reads == ["ant", "bee", "cow"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at Linux's own mounts")
def test_the_file_system_that_holds_a_directory_is_the_innermost_one() -> None:
    assert not mounts.keeps_directory_times("/proc/self/fd")
    assert not mounts.keeps_directory_times("/sys")


def test_what_another_process_wrote_meanwhile_is_not_written_again(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    with walk.Walk(root=str(root)) as first:
        for name in ("ant", "bee"):
            first.images(name)
        with pytest.MonkeyPatch.context() as unlocked:  # both are of one process, which would wait for itself
            unlocked.setattr(index_file, "file_lock", lambda *_, **__: contextlib.nullcontext())
            open_folder(root, split="train")
        written = (root / ".headrace-index").stat()
    assert (root / ".headrace-index").stat() == written


def test_a_manifest_that_changed_just_now_is_read_by_each_process_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_SETTLED_NS", 3_600_000_000_000)
    monkeypatch.setattr(index_file, "file_lock", lambda *_, **__: pytest.fail("took the lock"))
    assert open_manifest(make_manifest(tmp_path), split="train").class_names == ("ant", "bee", "cow")
    assert not list(tmp_path.glob(".list*"))


def test_a_disk_that_is_full_keeps_nothing_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(open_folder(root, split="train", val_fraction=0.0)) == 60
    assert [found for found in tmp_path.rglob(".headrace-*") if found.suffix != ".lock"] == []


def test_a_killed_writers_part_is_written_over(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    write(root / ".headrace-index.part", b"half of")
    settle(root)
    open_folder(root, split="train")
    assert sorted(found.name for found in root.glob(".*")) == [".headrace-index", ".headrace-index.lock"]


def test_a_link_to_a_file_that_becomes_a_directory_is_seen(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    target = write(tmp_path / "elsewhere")
    (root / "bee" / "link.jpg").symlink_to(target)
    settle(root)
    assert str(root / "bee" / "link.jpg") in dict(told(open_folder(root, split="train", val_fraction=0.0))[0])
    target.unlink()
    write(target / "1.jpg")
    assert told(open_folder(root, split="train", val_fraction=0.0))[0] == walked(root)


def test_a_directory_whose_time_was_set_back_is_read_again(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")
    before = (root / "ant").stat()
    write(root / "ant" / "unpacked.jpg")
    os.utime(root / "ant", ns=(before.st_atime_ns, before.st_mtime_ns))  # as tar does with what it unpacks
    assert told(open_folder(root, split="train", val_fraction=0.0))[0] == walked(root)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"001.jpg", b"0x1.jpg")),
        lambda path: path.write_bytes(b"[1]\n" + path.read_bytes()),
    ],
    ids=["empty", "something else", "cut", "changed within", "another head"],
)
def test_an_index_that_is_damaged_is_said_to_be_and_made_anew(
    spoil: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")
    spoil(root / ".headrace-index")
    assert told(open_folder(root, split="train", val_fraction=0.0))[0] == walked(root)
    assert "is damaged and is made anew" in caplog.text
    caplog.clear()
    open_folder(root, split="train")
    assert not caplog.text


def test_no_bit_of_an_index_can_be_another_unseen(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", per_class=2)
    settle(root)
    open_folder(root, split="train")
    path, choose = root / ".headrace-index", random.Random(0)
    whole = path.read_bytes()
    for bit in choose.sample(range(len(whole) * 8), 2000 if SOAK else 200):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        assert told(open_folder(root, split="train", val_fraction=0.0))[0] == walked(root), f"bit {bit}"


def test_an_index_of_another_version_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")
    monkeypatch.setattr(index_file, "_RULES", "others")
    reads = count_reads(monkeypatch, walk, "_read")
    with caplog.at_level(logging.INFO):
        open_folder(root, split="train")
    assert reads == ["ant", "bee", "cow"]
    assert "of another version" in caplog.text


def test_where_the_data_cannot_be_written_to_the_index_is_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "tree")
    (root / ".headrace-index").mkdir()  # nothing can be put in its place; root may write anywhere else
    settle(root)
    open_folder(root, split="train")
    assert list((tmp_path / "users cache" / "headrace" / "index").glob("*[!k]"))
    reads = count_reads(monkeypatch, walk, "_read")
    open_folder(root, split="train")
    assert reads == []


def test_the_newer_of_two_indexes_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")
    with monkeypatch.context() as read_only:
        read_only.setattr(os, "replace", refuse_below(root))
        write(root / "ant" / "new.jpg")
        settle(root)
        open_folder(root, split="train")
        reads = count_reads(read_only, walk, "_read")
        open_folder(root, split="train")
        assert reads == [], "from the user's cache, not from the older one beside the data"


def refuse_below(root: Path) -> Callable[[str, str], None]:
    replace = os.replace

    def refuse(source: str, target: str) -> None:
        if target.startswith(str(root)):
            raise PermissionError(target)
        replace(source, target)

    return refuse


def test_without_a_home_directory_the_index_beside_the_data_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    root = make_tree(tmp_path / "tree")
    settle(root)
    open_folder(root, split="train")
    reads = count_reads(monkeypatch, walk, "_read")
    open_folder(root, split="train")
    assert reads == []
    with pytest.raises(ValueError, match=r"data\.remote_cache_dir is needed"):
        Remote()


def test_small_trees_are_walked_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MIN_FILES", 61)
    root = make_tree(tmp_path / "tree")
    open_folder(root, split="train")
    assert [found.name for found in root.iterdir() if found.name.startswith(".")] == []


def open_all(kind: str, root: Path) -> FileSource | Any:
    if kind == "tar":
        return open_tar(str(root / "s-*.tar"), split="train", val_fraction=0.3)
    return open_manifest(root / "list.csv", split="train", val_fraction=0.3)


@pytest.mark.parametrize("kind", ["tar", "manifest"])
def test_a_file_is_read_once_until_it_changes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / ("s-001.tar" if kind == "tar" else "list.csv")
    if kind == "tar":
        make_shards(tmp_path)
    else:
        make_manifest(tmp_path)
    settle(changed)
    module, function = (tar_index, "_read") if kind == "tar" else (manifest, "_read_rows")
    reads = count_reads(monkeypatch, module, function)
    cold = told(open_all(kind, tmp_path))
    assert len(reads) == (3 if kind == "tar" else 1)
    del reads[:]
    warm = open_all(kind, tmp_path)
    assert told(warm) == cold
    assert warm.class_names == ("ant", "bee", "cow")
    assert reads == []
    os.utime(changed)
    assert told(open_all(kind, tmp_path)) == cold
    assert reads == [str(changed)]


@pytest.mark.parametrize("columns", ["path,label,split,weight", "path,label"])
@pytest.mark.parametrize("labels", [("a", "b"), (0, 1), (0.25, 1.5)], ids=["texts", "numbers", "values"])
def test_a_manifest_means_the_same_from_its_index(columns: str, labels: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [f"{n}.jpg,{labels[n % 2]},{('train', 'val')[n % 3 == 0]},{n / 2}" for n in range(40)]
    rows = rows if "split" in columns else [",".join(row.split(",")[:2]) for row in rows]
    path = write(tmp_path / "list.csv", "\n".join([columns, *rows]).encode())
    settle(path)

    def all_of(split: Any) -> tuple[Any, ...]:
        source = open_manifest(path, split=split, val_fraction=0.4)
        weights = None if source.weights is None else source.weights.tolist()
        return list(source.paths), source.labels.tolist(), source.labels.dtype, source.class_names, weights

    cold = [all_of("train"), all_of("val")]
    assert (tmp_path / ".list.csv.headrace-index").exists()
    assert [all_of("train"), all_of("val")] == cold


def test_class_names_of_any_characters_survive_the_index(tmp_path: Path) -> None:
    names = ["a\0b", "a", "\ud800", "\u00e4"]
    rows = [json.dumps({"path": f"{number}.jpg", "label": names[number % 4]}) for number in range(40)]
    path = write(tmp_path / "list.JSONL", "\n".join(rows).encode())
    settle(path)
    for _ in range(2):
        assert open_manifest(path, split="train").class_names == tuple(sorted(names))


def test_decimal_labels_are_values_whatever_case_the_suffix_has(tmp_path: Path) -> None:
    path = write(tmp_path / "list.JSONL", b"".join(b'{"path": "%d.jpg", "label": 0.5}\n' % n for n in range(40)))
    assert open_manifest(path, split="train").class_names == ()


WALKER = """
import json, sys, time
from pipeline.sources import index, open_folder, walk
walk.MIN_FILES, index._SETTLED_NS = 1, 0
read, root, names = walk._read, sys.argv[1], []
def told(*arguments):
    names.append(arguments[1])
    if len(names) == 2 and "first" in sys.argv:  # the lock is taken at the second directory
        print("locked", flush=True)
        sys.stdin.readline()
    return read(*arguments)
walk._read = told
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
print(json.dumps([names, len(open_folder(root, split="train", val_fraction=0.0))]), flush=True)
"""


def start_walk(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", WALKER, str(root), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_with(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if word in line)


@pytest.mark.parametrize("ending", ["finishes", "is killed"])
def test_of_processes_that_start_together_one_walks_and_if_it_is_killed_another_does(
    ending: str, tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "tree")
    settle(root)
    with start_walk(root, "first") as first:
        line_with(first, "locked")
        with start_walk(root) as second:
            line_with(second, "waiting for another process")
            assert first.stdin is not None
            if ending == "is killed":
                first.send_signal(signal.SIGKILL)
            else:
                first.stdin.write("go on\n")
                first.stdin.flush()
                assert json.loads(line_with(first, "["))[1] == 60
            names, count = json.loads(line_with(second, "["))
    assert count == 60
    assert names == (["ant"] if ending == "finishes" else ["ant", "bee", "cow"])
    assert not list(root.glob(".headrace-*.part"))
