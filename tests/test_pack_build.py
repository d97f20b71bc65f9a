"""Packs being built: by one process, whole or not at all, and of earlier packs where those hold the same."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import pytest
from fakes import write_jpegs
from packs import Watched, packed, rewrite, the_pack, write_files
from watching import environment

from pipeline.cache.load import Sample
from pipeline.config import ConfigError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def assert_builds(source: Watched, directory: Path, caplog: pytest.LogCaptureFixture, *, loads: list[int]) -> None:
    """Open the pack, which loads just `loads` for it and says so; it then has what the source has."""
    source.forget()
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.cache"), packed(source, directory) as load:
        assert sorted(source.loaded) == loads
        said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("packed ")]
        taken_over = len(source) - len(loads)
        assert len(said) == 1
        assert said[0].endswith(
            f"{taken_over} samples taken over from earlier packs, {len(loads)} read from the source"
        )
        assert [load(id) for id in range(len(source))] == [source.read(id) for id in range(len(source))]
    assert sorted(source.loaded) == loads, "an entry was not right and had to be loaded again"


def test_of_many_files_the_one_that_changed_is_read_again(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_files(tmp_path / "images", 50)
    source = Watched(paths)
    assert_builds(source, directory, caplog, loads=list(range(50)))
    rewrite(paths[31], b"new")
    with packed(source, directory) as load:
        load(31)
    assert_builds(source, directory, caplog, loads=[31])
    assert not list(directory.glob("*.stale"))


LISTS: dict[str, tuple[Callable[[list[Path]], list[Path]], list[int]]] = {
    "one added": (lambda paths: [*paths[:3], paths[0].with_name("added.jpg"), *paths[3:]], [3]),
    "one removed": (lambda paths: paths[:3] + paths[4:], []),
    "reordered": (lambda paths: paths[::-1], []),
    "one twice": (lambda paths: [*paths, paths[5]], []),
}


@pytest.mark.parametrize("name", LISTS)
def test_another_list_of_files_is_another_pack_made_of_the_earlier_one(
    name: str, tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relist, loads = LISTS[name]
    paths = write_files(tmp_path / "images", 10)
    (tmp_path / "images" / "added.jpg").write_bytes(b"added")
    with packed(Watched(paths), directory):
        first = the_pack(directory)
    assert_builds(Watched(relist(paths)), directory, caplog, loads=loads)
    assert len(list(directory.glob("*.pack"))) == 2
    with packed(untouchable := Watched(paths), directory):
        assert untouchable.loaded == []
    assert first.exists()


def test_a_file_of_the_same_name_size_and_time_elsewhere_is_not_taken_for_it(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (write_files(tmp_path / name, 4) for name in ("here", "there"))
    there[2].write_bytes(b"z" * here[2].stat().st_size)
    for path, other in zip(here, there, strict=True):
        os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    with packed(Watched(here), directory):
        assert_builds(Watched(there), directory, caplog, loads=[0, 1, 2, 3])


def test_another_max_side_is_another_pack_and_takes_nothing_over(tmp_path: Path, directory: Path) -> None:
    paths = write_jpegs(tmp_path / "images", 3)
    for max_side, shape in ((40, (30, 40, 3)), (20, (15, 20, 3)), (None, (60, 80, 3))):
        source = Watched(paths, decoded=True, max_side=max_side)
        with packed(source, directory) as load:
            assert sorted(source.loaded) == [0, 1, 2]
            assert load(0).shape == shape  # type: ignore[union-attr]
    assert len(list(directory.glob("test-decoded-*.pack"))) == 3


def test_pixels_of_another_decoder_are_not_used(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Watched(write_jpegs(tmp_path / "images", 3), decoded=True)
    for version in ("12.0", "12.1"):
        monkeypatch.setattr(PIL, "__version__", version)
        source.forget()
        with packed(source, directory):
            assert sorted(source.loaded) == [0, 1, 2]
    the_pack(directory)


def test_a_failing_build_leaves_nothing_behind_and_names_its_sample(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 9)
    paths[6].unlink()
    with pytest.raises(FileNotFoundError, match=str(paths[6])) as caught, packed(Watched(paths), directory):
        pass
    assert caught.value.__notes__ == ["while sample id 6 of test was preloaded"]
    assert [path.suffix for path in directory.iterdir()] == [".lock"]


def test_a_broken_image_ends_the_packing_of_pixels_and_is_named(
    jpegs: list[Path], broken_jpeg: Path, directory: Path
) -> None:
    source = Watched([*jpegs[:3], broken_jpeg], decoded=True)
    with pytest.raises(ValueError, match="truncated JPEG") as caught, packed(source, directory):
        pass
    assert f"stage decode, sample id 3, {broken_jpeg}" in caught.value.__notes__
    assert not list(directory.glob("*.pack"))


class ChangedWhileRead(Watched):
    """Its last file is written anew as soon as its bytes have been read."""

    def load(self, id: int) -> Sample:
        sample = super().load(id)
        if id == len(self) - 1:
            rewrite(Path(self.where(id)), b"written while the pack was built")
        return sample


def test_a_file_that_changes_while_it_is_packed_is_not_taken_for_what_it_was(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 3)
    with packed(ChangedWhileRead(paths), directory):
        pass
    with packed(Watched(paths), directory) as load:
        assert load(2) == paths[2].read_bytes()


BUILDER = """
import logging, os, sys
from pathlib import Path
from packs import Watched, packed

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")


class Halting(Watched):
    "Says when it comes to its last sample, and goes on when told."

    def load(self, id):
        if id == len(self) - 1:
            print("nearly done", flush=True)
            sys.stdin.readline()
        return super().load(id)


source = Halting([Path(path) for path in sys.argv[2:]])
with packed(source, Path(sys.argv[1])) as load:
    ids = range(len(source))
    print("stamped", len(source.stamped), "loaded", len(source.loaded), "right", end=" ")
    print([load(id) for id in ids] == [source.read(id) for id in ids])
"""


def builder(directory: Path, paths: list[Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(directory), *map(str, paths)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lines_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """What the process says, up to the line that has `words`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"it ended without a word of {words!r}: {lines}")


def test_a_build_killed_in_the_middle_is_never_taken_for_a_whole_one(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 30)
    with builder(directory, paths) as process:
        lines_until(process, "nearly done")
        process.send_signal(signal.SIGKILL)
    assert not list(directory.glob("*.pack"))
    assert list(directory.glob("*.tmp")), "it was killed before it had written anything"
    source = Watched(paths)
    with packed(source, directory) as load:
        assert sorted(source.loaded) == list(range(30))
        assert [load(id) for id in range(30)] == [path.read_bytes() for path in paths]
    assert not list(directory.glob("*.tmp"))


def test_of_two_processes_one_builds_and_the_other_waits_and_opens_it(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 30)
    with builder(directory, paths) as first:
        lines_until(first, "nearly done")
        with builder(directory, paths) as second:
            lines_until(second, "waiting for another process: it packs")
            assert first.stdin is not None
            first.stdin.write("go on\n")
            first.stdin.flush()
            assert lines_until(first, "stamped")[-1] == "stamped 30 loaded 30 right True\n"
            assert lines_until(second, "stamped")[-1] == "stamped 0 loaded 0 right True\n"


Usage = namedtuple("Usage", "total used free")


def with_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, free_bytes))


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "encoded": ({}, "set preload.dir to another disk or preload=none"),
    "decoded": (
        {"decoded": True},
        "set preload.dir to another disk, cache.store=encoded or transforms.max_side=...",
    ),
    "decoded and reduced": (
        {"decoded": True, "max_side": 70},
        "set preload.dir to another disk, cache.store=encoded or a lower transforms.max_side",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_pack_without_room_is_refused_before_anything_is_loaded(
    kind: str, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, cure = REFUSALS[kind]
    source = Watched(write_jpegs(tmp_path / "images", 3), **options)
    with_free(monkeypatch, 3 * 2**10)
    with pytest.raises(ConfigError) as caught, packed(source, directory):
        pass
    needed = {"encoded": sum(len(source.read(id)) for id in range(3)), "decoded": 3 * 60 * 80 * 3}
    needed_bytes = needed.get(kind, 3 * 52 * 70 * 3) + 104 + 32 * 3 + 8
    assert str(caught.value) == (
        f"preload=pack needs about {needed_bytes / 2**30:.2g} GiB in {directory}, 2.9e-06 GiB are free there; {cure}"
    )
    assert source.loaded == []
    with_free(monkeypatch, needed_bytes)
    with packed(source, directory):
        assert sorted(source.loaded) == [0, 1, 2]


def test_a_stale_pack_stays_in_use_where_there_is_no_room_for_another(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_files(tmp_path / "images", 5)
    source = Watched(paths)
    with packed(source, directory) as load:
        rewrite(paths[3], b"new")
        load(3)
    with_free(monkeypatch, 0)
    caplog.clear()
    source.forget()
    with packed(source, directory) as load:
        assert [load(id) for id in range(5)] == [path.read_bytes() for path in paths]
    assert source.loaded == [3]
    assert "is used as it is, though samples have changed: preload=pack needs about" in caplog.text
