"""Packs in use: opened at once, checked sample by sample, and never giving other bytes than the source would."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from contracts import digest
from fakes import write_jpegs
from packs import Watched, packed, rewrite, the_pack, write_files
from watching import environment

from pipeline.build import build_pipeline
from pipeline.build_loading import build_loading
from pipeline.cache.pack import PackFile
from pipeline.config import Cache, FolderData, Loader, PipelineConfig, Preload, Transforms
from pipeline.sources import ArraySource
from pipeline.stats import Stats


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_pack_gives_back_every_file_and_pickles_as_its_path(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 5)
    with packed(Watched(paths), directory) as load:
        copy = pickle.loads(pickle.dumps(load))
        assert [load(id) for id in range(5)] == [copy(id) for id in range(5)] == [path.read_bytes() for path in paths]
    with pytest.raises(RuntimeError, match=r"close\(\) was already called"):
        load(0)
    assert copy(4) == paths[4].read_bytes()


def test_opening_loads_and_stats_nothing_and_each_sample_is_checked_once(tmp_path: Path, directory: Path) -> None:
    source = Watched(write_files(tmp_path / "images", 6))
    with packed(source, directory):
        assert sorted(source.loaded) == sorted(source.stamped) == list(range(6))
    source.forget()
    with packed(source, directory) as load:
        assert source.stamped == []
        for id in (3, 3, 1, 3):
            load(id)
    assert source.stamped == [3, 1]
    assert source.loaded == []


def test_decoded_samples_are_read_only_views_of_the_file_that_outlive_the_pack(tmp_path: Path, directory: Path) -> None:
    source = Watched(write_jpegs(tmp_path / "images", 3, height=30, width=50), decoded=True, max_side=40)
    with packed(source, directory) as load:
        pixels = [load(id) for id in range(3)]
        assert all(np.shares_memory(pixels[id], load(id)) for id in range(3))
    assert all(np.array_equal(pixels[id], source.load(id)) for id in range(3))
    assert pixels[0].shape == (24, 40, 3)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0][0] = 0


def test_a_changed_file_comes_from_the_source_and_is_told_once(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_files(tmp_path / "images", 9)
    source = Watched(paths)
    with packed(source, directory):
        source.forget()
    rewrite(paths[4], b"new")
    rewrite(paths[6], paths[5].read_bytes() + b"longer")
    with packed(source, directory) as load:
        for _ in range(2):
            assert [load(id) for id in range(9)] == [path.read_bytes() for path in paths]
    assert source.loaded == [4, 6, 4, 6]
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"{paths[4]} has changed since it was packed")
    assert [path.name for path in directory.glob("*.stale")] == [the_pack(directory).name + ".stale"]


def test_a_file_touched_or_swapped_for_one_of_its_size_has_changed_too(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 3)
    source = Watched(paths)
    with packed(source, directory):
        source.forget()
    rewrite(paths[2], b"y" * paths[2].stat().st_size)
    with packed(source, directory) as load:
        assert load(2) == paths[2].read_bytes()


def test_a_missing_file_raises_what_the_source_raises_until_it_is_back(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 3)
    source = Watched(paths)
    with packed(source, directory):
        source.forget()
    away = paths[1].rename(tmp_path / "away")
    with packed(source, directory) as load:
        with pytest.raises(FileNotFoundError, match=str(paths[1])):
            load(1)
        away.rename(paths[1])
        source.forget()
        assert load(1) == paths[1].read_bytes()
    assert source.loaded == []
    assert not list(directory.glob("*.stale"))


def test_a_mark_that_was_meant_for_an_earlier_pack_does_not_count(tmp_path: Path, directory: Path) -> None:
    paths = write_files(tmp_path / "images", 3)
    source = Watched(paths)
    with packed(source, directory):
        earlier = PackFile(the_pack(directory))
    rewrite(paths[1], b"new")
    with packed(source, directory) as load:
        load(1)
    with packed(source, directory):
        assert not the_pack(directory).with_suffix(".pack.stale").exists()
    with earlier:
        earlier.mark_stale()
        assert earlier(1) != b"new", "the earlier file is still mapped"
    source.forget()
    with packed(source, directory) as load:
        assert load(1) == b"new"
    assert (source.loaded, source.stamped) == ([], [1]), "it was built again"


def damage(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("place", [0, 8, 12, 16, 24, 60, 90, 110, 200, 104 + 32 * 9 + 7])
def test_a_pack_whose_header_or_index_is_damaged_is_built_again(place: int, tmp_path: Path, directory: Path) -> None:
    source = Watched(write_files(tmp_path / "images", 9))
    with packed(source, directory) as load:
        key = PackFile(the_pack(directory)).key
    damage(the_pack(directory), place)
    with pytest.raises(ValueError, match=str(the_pack(directory))):
        PackFile(the_pack(directory), key)
    source.forget()
    with packed(source, directory) as load:
        assert sorted(source.loaded) == list(range(9))
        assert [load(id) for id in range(9)] == [source.read(id) for id in range(9)]


@pytest.mark.parametrize("left", [0, 10, 104, 300, 400, 1000])
def test_a_pack_that_was_cut_is_built_again(left: int, tmp_path: Path, directory: Path) -> None:
    source = Watched(write_files(tmp_path / "images", 9))
    with packed(source, directory):
        os.truncate(the_pack(directory), left)
    with pytest.raises(ValueError, match=str(the_pack(directory))):
        PackFile(the_pack(directory))
    with packed(source, directory) as load:
        assert load(8) == source.read(8)


READER = """
import os, sys
from pathlib import Path
from packs import Watched, packed

if os.geteuid() == 0:  # who may write anywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
paths, directory = [Path(path) for path in sys.argv[2:]], Path(sys.argv[1])
with packed(Watched(paths), directory) as load:
    assert [load(id) for id in range(len(paths))] == [path.read_bytes() for path in paths]
"""


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that a user without rights can reach, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def read_without_rights(directory: Path, paths: list[Path]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", READER, str(directory), *map(str, paths)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def test_nothing_fails_where_a_stale_pack_cannot_be_written(open_to_all: Path) -> None:
    paths, directory = write_files(open_to_all / "images", 4), open_to_all / "packs"
    with packed(Watched(paths), directory) as load:
        rewrite(paths[2], b"new")
        directory.chmod(0o555)
        before = sorted(path.name for path in directory.iterdir())
        unmarked = read_without_rights(directory, paths)
        assert unmarked.returncode == 0, unmarked.stderr
        assert f"{paths[2]} has changed" in unmarked.stderr
        assert sorted(path.name for path in directory.iterdir()) == before
        directory.chmod(0o755)
        assert load(2) == b"new"
        directory.chmod(0o555)
    assert PackFile(the_pack(directory)).is_stale()
    marked = read_without_rights(directory, paths)
    directory.chmod(0o755)
    assert marked.returncode == 0, marked.stderr


def test_a_pack_that_cannot_be_written_anywhere_names_its_key(open_to_all: Path) -> None:
    paths, directory = write_files(open_to_all / "images", 4), open_to_all / "packs"
    directory.mkdir(0o555)
    finished = read_without_rights(directory, paths)
    assert finished.returncode != 0
    assert "ConfigError: preload.dir cannot be written: [Errno 13] Permission denied" in finished.stderr


def test_pixels_in_memory_are_packed_and_checked_by_what_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)

    def loaded() -> list[np.ndarray]:
        with ExitStack() as resources:
            loading = build_loading(
                ArraySource(pixels, range(4)),
                Cache(store="decoded"),  # type: ignore[arg-type]
                Preload(mode="pack", dir=str(tmp_path)),  # type: ignore[arg-type]
                Transforms(size=16),
                num_threads=2,
                name="test",
                stats=Stats(),
                resources=resources,
            )
            return [np.asarray(loading.load(id)) for id in range(4)]

    assert np.array_equal(loaded(), pixels)
    pixels[2] += 1
    assert np.array_equal(loaded(), pixels)


WORKERS = {
    "serial": {"num_workers": 0},
    "threads": {"backend": "threads", "num_workers": 2},
    "processes": {"backend": "processes", "num_workers": 2},
}


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("store", ["encoded", "decoded"])
def test_a_packed_run_gives_the_bytes_of_an_unpacked_one_also_when_files_change(
    store: str, workers: str, tmp_path: Path, directory: Path
) -> None:
    paths = write_jpegs(tmp_path / "train" / "a", 12) + write_jpegs(tmp_path / "val" / "a", 1)

    def run(mode: str) -> tuple[list[str], dict[str, float]]:
        config = PipelineConfig(
            data=FolderData(root=str(tmp_path)),
            cache=Cache(store=store),  # type: ignore[arg-type]
            preload=Preload(mode=mode, dir=str(directory)),  # type: ignore[arg-type]
            loader=Loader(batch_size=5, **WORKERS[workers]),  # type: ignore[arg-type]
            transforms=Transforms(size=16, max_side=40),
        )
        with build_pipeline(config, num_epochs=2) as pipeline:
            return [digest(batch) for _ in range(2) for batch in pipeline], pipeline.stats()

    unpacked, _ = run("none")
    assert run("pack")[0] == unpacked
    digests, stats = run("pack")
    assert digests == unpacked
    assert (stats["read_count"], stats["decode_count"]) == ((0, 0) if store == "decoded" else (24, 24))
    rewrite(paths[3], paths[7].read_bytes())
    changed, _ = run("none")
    assert changed != unpacked
    digests, stats = run("pack")
    assert digests == changed
    if store == "decoded":
        assert stats["read_count"] == stats["decode_count"] == 2, "only the changed file is read, in both epochs"
    assert run("pack")[0] == changed
    assert not list(directory.glob("*.stale"))
