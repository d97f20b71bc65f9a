"""Files out of the page cache and back into it, and passes over them; all on real files."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fakes import write_jpegs
from trials import BATCH_SIZE, CPU, NUM_IMAGES, assembled, config

from pipeline.bench import page_cache
from pipeline.bench.peers.headrace import as_contender, open_pipeline, prepare
from pipeline.bench.trial import Trial, measure
from pipeline.config import ConfigError, Preload
from pipeline.sources import ArraySource, FileSource, open_tar

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A directory whose files can be dropped from the page cache."""
    path = tmp_path / "probe"
    path.write_bytes(b"probe")
    try:
        page_cache.drop([str(path)])
    except ConfigError as error:
        pytest.skip(str(error))
    return tmp_path


class Looking(FileSource):
    """Files; what part of each was in the page cache when it was read goes to `found_pct`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths, np.zeros(len(paths)))
        self.found_pct: list[float] = []

    def read(self, id: int) -> bytes:
        self.found_pct.append(page_cache.resident_pct([self.paths[id]]))
        return super().read(id)


def test_cold_passes_read_files_that_are_not_in_the_page_cache_and_others_files_that_are(on_disk: Path) -> None:
    source = Looking(write_jpegs(on_disk / "images", NUM_IMAGES))
    cfg = config(on_disk, bench={"cold": True, "warmup": 1, "batches": 3}, loader={"num_workers": 0})
    with assembled(source, cfg) as pipeline:
        trial = Trial(cfg, as_contender(pipeline, cfg, CPU), pipeline.source)
        trial.run(repeats=2, references=False)
    assert trial.files.stayed_pct == 0
    assert sorted(set(source.found_pct)) == [0, 100]
    assert source.found_pct.count(0) == 2 * 3 * BATCH_SIZE
    assert all(repeat["cold_samples_per_sec"] > 0 for repeat in trial.repeats)


def test_a_pack_is_dropped_although_this_process_maps_it(trial_folder: Path, on_disk: Path) -> None:
    cfg = config(trial_folder, bench={"cold": True, "warmup": 1}, preload=Preload(mode="pack", dir=str(on_disk)))
    result = measure(cfg, repeats=1, references=False)
    assert result["cold_resident_pct"] == 0
    assert result["cold_samples_per_sec"] > 0
    with open_pipeline(cfg, CPU) as contender:
        assert contender.files == [str(path) for path in on_disk.glob("*.pack")]


def test_a_pack_is_made_before_the_clock_starts(trial_folder: Path, tmp_path: Path) -> None:
    prepare(config(trial_folder, bench={}, preload=Preload(mode="pack", dir=str(tmp_path))))
    assert len(list(tmp_path.glob("*.pack"))) == 1


def test_the_files_of_shards_are_those_that_hold_a_sample_of_the_split(jpegs: list[Path], tmp_path: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for path in jpegs[:3]:
                archive.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"0"))
    with closing(open_tar(f"{tmp_path}/{{split}}.tar", split="val")) as source:
        assert list(source.files()) == [str(tmp_path / "val.tar")]


def test_a_pack_that_workers_map_is_refused(trial_folder: Path, on_disk: Path) -> None:
    preload = Preload(mode="pack", dir=str(on_disk))
    cfg = config(trial_folder, bench={"cold": True, "warmup": 1}, preload=preload, loader={"backend": "processes"})
    with pytest.raises(ConfigError, match=r"bench.cold=true cannot drop .*\.pack, which a worker process maps; use"):
        measure(cfg, repeats=1, references=False)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no tmpfs")
def test_files_that_the_system_cannot_drop_are_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        files = [str(path) for path in write_jpegs(Path(directory), 2)]
        with pytest.raises(ConfigError, match=r"bench.cold=true cannot drop .*tmpfs; put the data on a disk"):
            page_cache.drop(files)


def test_cold_files_are_refused_where_none_are_read(trial_folder: Path) -> None:
    cfg = config(trial_folder, bench={"cold": True}, preload=Preload(mode="ram"))
    with pytest.raises(ConfigError, match=r"bench.cold=true has nothing to drop with preload=ram"):
        measure(cfg, repeats=1, references=False)
    source = ArraySource(np.zeros((24, 20, 20, 3), np.uint8), np.zeros(24))
    cfg = config(trial_folder, bench={"cold": True, "warmup": 1})
    with assembled(source, cfg) as pipeline:
        trial = Trial(cfg, as_contender(pipeline, cfg, CPU), pipeline.source)
        with pytest.raises(
            ConfigError, match=r"bench.cold=true has nothing to drop: the samples lie in memory or on a server"
        ):
            trial.run(repeats=1, references=False)


def test_epochs_that_lie_ready_as_a_whole_cannot_be_read_cold(trial_folder: Path) -> None:
    cfg = config(trial_folder, bench={"cold": True, "warmup": 1}, loader={"batch_size": 12})
    with pytest.raises(ConfigError, match=r"bench.cold=true needs epochs of more than the 2 batches .* got 2; lower"):
        measure(cfg, repeats=1, references=False)
