"""Samples that cannot be read: what becomes of their batches, the same whoever makes them, and what is told of them."""

from __future__ import annotations

import csv
import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import digest
from fakes import write_jpegs
from PIL import Image
from runs import command, run, summary

from pipeline import create_dataloader
from pipeline.api import TooManyBadError
from pipeline.loader.read import TimedRead
from pipeline.quarantine import Quarantine
from pipeline.stats import Stats

NUM_IMAGES, BATCH_SIZE = 60, 8
BACKENDS: dict[str, dict[str, Any]] = {
    "serial": {"num_workers": 0},
    "threads": {"num_workers": 3},
    "processes": {"num_workers": 2, "backend": "processes", "threads_per_worker": 2},
    "a cache": {"num_workers": 2, "cache_size": 100, "cache_policy": "pinned"},
    "processes and a cache": {"num_workers": 2, "backend": "processes", "cache_size": 100},
    "preloaded": {"num_workers": 2, "preload": "ram"},
    "a pack": {"num_workers": 2, "preload": "pack"},
    "a pack of pixels": {"num_workers": 2, "preload": "pack", "store": "decoded"},
    "prefetched": {"num_workers": 2, "prefetch_device": "cpu"},
}


def png_with_a_wrong_checksum(path: Path) -> None:
    Image.new("RGB", (16, 16), (90, 10, 30)).save(path, "png")
    data = path.read_bytes()
    at = data.index(b"IDAT") + 6
    path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


def spoil(paths: list[Path]) -> dict[int, str]:
    """Makes eight of `paths` bad, each in a way of its own; their ids, with a word of what is said of each."""
    half = paths[3].read_bytes()
    paths[3].write_bytes(b"")
    paths[7].write_bytes(b"<html><body>404 Not Found</body></html>")
    paths[17].write_bytes(half[: len(half) // 2])
    png_with_a_wrong_checksum(paths[22])
    paths[31].unlink()
    paths[31].mkdir()
    paths[32].unlink()
    paths[32].symlink_to(paths[32].with_name("gone"))
    paths[44].unlink()
    paths[59].write_bytes(half[:2])
    return {
        3: "the file is empty",
        7: "no known image format",
        17: "truncated JPEG",
        22: "unreadable image",
        31: "Is a directory",
        32: "No such file",
        44: "No such file",
        59: "JPEG header",
    }


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[int, str]]:
    paths = write_jpegs(tmp_path_factory.mktemp("spoilt"), NUM_IMAGES)
    return paths, spoil(paths)


@pytest.fixture(autouse=True)
def packs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loader_of(paths: list[Path], on_error: str, **options: Any) -> Any:
    usual: dict[str, Any] = {"img_size": 16, "batch_size": BATCH_SIZE, "cache_size": 0, "seed": 5}
    labels = np.arange(len(paths)) * 10
    return create_dataloader(paths, labels, **(usual | {"on_error": on_error, "max_bad_fraction": 0.5} | options))


def epochs(loader: Any, count: int = 2) -> list[list[Any]]:
    return [list(loader) for _ in range(count)]


@pytest.mark.parametrize("name", BACKENDS)
def test_skip_leaves_out_bad_samples_alone_and_every_batch_has_its_place(
    spoilt: tuple[list[Path], dict[int, str]], name: str
) -> None:
    paths, bad = spoilt
    with loader_of(paths, "skip", **BACKENDS[name]) as loader:
        assert len(loader) == 8
        for batches in epochs(loader):
            assert [batch.step for batch in batches] == list(range(8))
            ids = torch.cat([batch.ids for batch in batches]).tolist()
            assert sorted(ids) == sorted(set(range(NUM_IMAGES)) - set(bad))
            for images, labels in batches:
                assert len(images) == len(labels)
            assert all(torch.equal(batch[1], batch.ids * 10) for batch in batches)
        assert loader.bad is not None
        assert {id for id, cause in loader.bad.causes.items() if bad[id] in cause} == set(bad)


@pytest.mark.parametrize("name", BACKENDS)
def test_replace_puts_another_in_its_place_with_its_own_label(
    spoilt: tuple[list[Path], dict[int, str]], name: str
) -> None:
    paths, bad = spoilt
    with loader_of(paths, "replace", **BACKENDS[name]) as loader:
        replacements = []
        for batches in epochs(loader):
            assert [len(batch.ids) for batch in batches] == [8] * 7 + [4]
            ids = torch.cat([batch.ids for batch in batches]).tolist()
            assert not set(ids) & set(bad)
            assert set(range(NUM_IMAGES)) - set(bad) <= set(ids)
            assert all(torch.equal(batch[1], batch.ids * 10) for batch in batches)
            replacements.append(sorted((Counter(ids) - Counter(set(ids))).elements()))
    assert replacements[0] != replacements[1], "every epoch has others in their place"


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_batches_are_the_same_bytes_whoever_makes_them(
    spoilt: tuple[list[Path], dict[int, str]], on_error: str
) -> None:
    paths, _ = spoilt
    seen = {}
    for name in ("serial", "threads", "processes", "a cache", "preloaded", "a pack of pixels", "prefetched"):
        with loader_of(paths, on_error, **BACKENDS[name]) as loader:
            seen[name] = [[digest(batch) for batch in batches] for batches in epochs(loader)]
    assert all(digests == seen["serial"] for digests in seen.values()), seen


def test_the_good_samples_of_a_shorter_batch_are_what_they_are_without_bad_ones(
    spoilt: tuple[list[Path], dict[int, str]],
) -> None:
    paths, bad = spoilt
    with loader_of(paths, "skip", num_workers=2) as skipping, loader_of(paths, "replace", num_workers=2) as replacing:
        for shorter, full in zip(skipping, replacing, strict=True):
            rows = [row for row, id in enumerate(full.ids.tolist()) if id in set(shorter.ids.tolist())]
            rows = [rows[[full.ids[row].item() for row in rows].index(id)] for id in shorter.ids.tolist()]
            assert torch.equal(full[0][rows], shorter[0])
            assert not set(shorter.ids.tolist()) & set(bad)


@pytest.mark.parametrize("name", ["serial", "threads", "processes"])
def test_a_state_is_continued_where_a_batch_was_shorter(spoilt: tuple[list[Path], dict[int, str]], name: str) -> None:
    paths, _ = spoilt
    with loader_of(paths, "skip", **BACKENDS[name]) as whole:
        expected = [digest(batch) for batch in whole]
    with loader_of(paths, "skip", **BACKENDS[name]) as first:
        batches = iter(first)
        found = [digest(next(batches)) for _ in range(3)]
        state = first.state_dict()
    with loader_of(paths, "skip", **BACKENDS["serial"]) as second:
        second.load_state_dict(state)
        assert found + [digest(batch) for batch in second] == expected


@pytest.mark.parametrize("name", ["serial", "threads", "processes"])
def test_a_batch_may_be_left_with_none(spoilt: tuple[list[Path], dict[int, str]], name: str) -> None:
    paths, bad = spoilt
    some = [paths[id] for id in bad]
    options = {**BACKENDS[name], "batch_size": 4, "max_bad_fraction": 1.0}
    with loader_of(some, "skip", **options) as loader:
        assert [tuple(images.shape) for images, _ in loader] == [(0, 3, 16, 16)] * 2
    with loader_of(some, "replace", **options) as loader, pytest.raises(ValueError, match="stage"):
        list(loader)


def test_a_bad_sample_goes_into_the_quarantine_once(spoilt: tuple[list[Path], dict[int, str]], tmp_path: Path) -> None:
    paths, bad = spoilt
    path = tmp_path / "quarantine.csv"
    for on_error in ("skip", "replace"):
        with loader_of(paths, on_error, num_workers=2, quarantine=path) as loader:
            epochs(loader)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["id"]) for row in rows) == sorted(bad)
    assert {row["split"] for row in rows} == {"images"}
    for row in rows:
        assert row["path"] == str(paths[int(row["id"])])
        assert bad[int(row["id"])] in row["cause"]


def test_a_file_that_is_no_quarantine_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(ValueError, match="is no quarantine of bad samples; move it away"):
        Quarantine(path)


@pytest.mark.parametrize("name", ["serial", "threads", "processes", "prefetched"])
def test_more_bad_samples_than_may_be_end_the_loop_and_are_named(
    spoilt: tuple[list[Path], dict[int, str]], name: str
) -> None:
    paths, bad = spoilt
    with (
        loader_of(paths, "skip", **{**BACKENDS[name], "max_bad_fraction": 0.1}) as loader,
        pytest.raises(TooManyBadError, match=r"7 of 60 samples of images are bad, more than data.max_bad_fraction"),
    ):
        list(loader)
    assert loader.bad is not None
    assert set(loader.bad.causes) <= set(bad)


@pytest.mark.parametrize("on_error", ["raise", "skip", "replace"])
def test_a_mistake_of_a_transform_is_no_bad_sample(jpegs: list[Path], on_error: str) -> None:
    def wrong(image: Image.Image) -> torch.Tensor:
        raise ValueError(f"a mistake at {image.size}")

    def late(image: Image.Image) -> torch.Tensor:
        return wrong(image) if late.calls > 1 else count(image)  # type: ignore[attr-defined]

    def count(image: Image.Image) -> torch.Tensor:
        late.calls += 1  # type: ignore[attr-defined]
        return torch.zeros(3, 8, 8)

    late.calls = 0  # type: ignore[attr-defined]
    options: dict[str, Any] = {"transform": late, "on_error": on_error, "cache_size": 0}
    with (
        create_dataloader(jpegs, [0] * len(jpegs), 4, 0, **options) as loader,
        pytest.raises(ValueError, match="a mistake at"),
    ):
        list(loader)


@pytest.mark.parametrize(("code", "num_tries"), [(errno.EIO, 3), (errno.ESTALE, 3), (errno.ENOENT, 1)])
def test_what_may_be_the_weather_is_tried_again_and_then_raises(code: int, num_tries: int) -> None:
    tries: list[int] = []

    def read(id: int) -> bytes:
        tries.append(id)
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=os.strerror(code)):
        TimedRead(read, Stats())(4)
    assert tries == [4] * num_tries


def test_a_disk_that_answers_at_the_second_try_has_answered() -> None:
    answers: Iterator[bytes | OSError] = iter([OSError(errno.ESTALE, "stale"), b"bytes"])

    def read(_: int) -> bytes:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert TimedRead(read, Stats())(0) == b"bytes"


def test_a_disk_that_fails_raises_under_every_policy(jpegs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.sources import files

    def fail(source: files.FileSource, id: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), source.where(id))

    monkeypatch.setattr(files.FileSource, "read", fail)
    with loader_of(jpegs, "skip", num_workers=0) as loader, pytest.raises(OSError, match="Input/output error"):
        list(loader)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; of 17 images to train on two are bad, of 7 to evaluate one."""
    root = tmp_path / "images"
    for name in ("cats", "dogs"):
        write_jpegs(root / name, 12)
    return root


def quarantined(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "quarantine.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_names_what_it_passed_over_and_one_that_raised_goes_on_with_skip(
    folder: Path, faults: Path, tmp_path: Path
) -> None:
    for path in sorted(folder.rglob("*.jpg"))[::8]:
        path.write_bytes(b"")
    part = command(folder, "run.name=r", "loader.num_workers=2", "run.save_every_steps=1", "schedule.epochs=3")
    stopped = run(part, cwd=tmp_path, faults=faults)
    assert stopped.returncode == 1
    assert "the file is empty (0 bytes)" in stopped.stderr
    tolerant = ["data.on_error=skip", "data.max_bad_fraction=0.5", "resume=auto"]
    done = run([*part, *tolerant], cwd=tmp_path, faults=faults)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "outputs/train/r"
    rows = quarantined(run_dir)
    assert sorted(row["path"] for row in rows) == [str(path) for path in sorted(folder.rglob("*.jpg"))[::8]]
    num_bad = Counter(row["split"] for row in rows)
    assert summary(run_dir)["eval_num_samples"] == 7 - num_bad["val"]


def test_ranks_with_unequal_shares_of_bad_samples_end_together_and_write_one_file(
    folder: Path, faults: Path, tmp_path: Path
) -> None:
    for path in sorted(folder.rglob("*.jpg"))[::4]:
        path.write_bytes(b"")
    two = ["dist.nproc=2", "loader.batch_size=4", "loader.num_workers=1", "data.on_error=skip"]
    done = run(command(folder, *two, "data.max_bad_fraction=0.6", "run.name=r"), cwd=tmp_path, faults=faults)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "outputs/train/r"
    assert len(quarantined(run_dir)) == 6
    assert [path.name for path in run_dir.glob("quarantine*")] == ["quarantine.csv"]
    stopped = run(command(folder, *two, "data.max_bad_fraction=0.1", "run.name=s"), cwd=tmp_path, faults=faults)
    assert stopped.returncode == 1
    assert stopped.stderr.count("more than data.max_bad_fraction=0.1 allows") == 1, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert summary(tmp_path / "outputs/train/s")["status"] == "failed"
