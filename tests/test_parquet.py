"""`data=parquet`: encoded images in a column, read by row groups."""

from __future__ import annotations

import csv
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sources import CLASSES, make_parquet

from pipeline.build import build_pipeline
from pipeline.build_source import open_source
from pipeline.config import (
    ConfigError,
    Data,
    Loader,
    ManifestData,
    OnError,
    ParquetData,
    PipelineConfig,
    Preload,
    Transforms,
)
from pipeline.quarantine import Quarantine
from pipeline.sources import open_parquet, parquet, parquet_table
from pipeline.sources.parquet import ParquetSource

arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def opened(pattern: str, **options: Any) -> ParquetSource:
    """All rows but the few of the other split."""
    return open_parquet(pattern, split="train", **({"val_fraction": 0.0} | options))


def count_loads(patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The row groups that are read from now on."""
    loads: list[tuple[int, int]] = []
    load = ParquetSource._load

    def counted(self: ParquetSource, file: int, group: int) -> Any:
        loads.append((file, group))
        return load(self, file, group)

    patch.setattr(ParquetSource, "_load", counted)
    return loads


@pytest.mark.parametrize("struct", [False, True], ids=["binary", "struct"])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "use_dictionary": ["label"]}], ids=["plain", "zstd"])
def test_rows_come_in_the_order_of_files_and_rows_with_their_labels(
    struct: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    source = opened(make_parquet(tmp_path, struct=struct, **options))
    assert len(source) == 24
    for id in range(24):
        file, row = divmod(id, 12)
        assert source.read(id) == f"image {file} {row}".encode() * 50
        assert source.where(id) == str(tmp_path / f"part-{file:05d}.parquet:{row}")
        assert source.label(id) == row % 3
    assert source.class_names == CLASSES


def test_numbers_are_classes_that_datasets_names_and_decimal_numbers_are_values(tmp_path: Path) -> None:
    plain = opened(make_parquet(tmp_path / "numbers", labels="numbers"))
    named = opened(make_parquet(tmp_path / "named", labels="numbers", struct=True))
    values = opened(make_parquet(tmp_path / "values", labels="values"))
    assert plain.class_names == ("0", "1", "2")
    assert named.class_names == CLASSES
    assert values.class_names == ()
    assert values.labels.dtype == np.float32
    assert values.label(5) == 0.5


def test_rows_added_at_the_end_move_no_other_to_the_other_split(tmp_path: Path) -> None:
    def val(per_file: int) -> set[str]:
        source = open_parquet(make_parquet(tmp_path, 1, per_file), split="val", val_fraction=0.4)
        return {source.where(id) for id in range(len(source))}

    few, many = val(20), val(30)
    assert few == {where for where in many if int(where.rpartition(":")[2]) < 20}


def test_what_is_read_in_order_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 0)
    source = opened(make_parquet(tmp_path))
    for id in range(len(source)):
        source.read(id)
    assert loads == [(file, group) for file in range(2) for group in range(3)]


def test_row_groups_are_kept_up_to_a_bound_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(make_parquet(tmp_path, 1, 20))
    group_bytes = source._load(0, 0).nbytes
    monkeypatch.setattr(parquet, "_KEPT_BYTES", int(2.5 * group_bytes))
    loads = count_loads(monkeypatch)
    for id in (0, 5, 0, 10, 0, 5):  # groups 0, 1, 0, 2 for which 1 goes, 0, 1
        source.read(id)
    assert loads == [(0, 0), (0, 1), (0, 2), (0, 1)]


def test_threads_that_ask_for_one_row_group_have_it_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    source = opened(make_parquet(tmp_path))
    barrier = threading.Barrier(5)

    def read(id: int) -> bytes:
        barrier.wait()
        return source.read(id)

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(read, range(5))) == [f"image 0 {row}".encode() * 50 for row in range(5)]
    assert loads == [(0, 0)]


def test_a_row_group_that_could_not_be_read_is_asked_for_again(tmp_path: Path) -> None:
    source = opened(make_parquet(tmp_path, 1))
    path = tmp_path / "part-00000.parquet"
    path.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        source.read(0)
    (tmp_path / "away").rename(path)
    assert source.read(0) == b"image 0 0" * 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_waits_for_no_thread_of_its_parent(tmp_path: Path) -> None:
    source = opened(make_parquet(tmp_path))
    source._groups._lock.acquire()  # as a thread that reads holds it, which the child does not have
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(int(source.read(0) != b"image 0 0" * 50))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_pickled_source_carries_no_images(tmp_path: Path) -> None:
    source = opened(make_parquet(tmp_path, per_file=200))
    before = len(pickle.dumps(source))
    source.read(0)
    assert len(pickle.dumps(source)) == before


def test_a_row_without_an_image_is_a_bad_sample_that_is_named(jpegs: list[Path], tmp_path: Path) -> None:
    small_jpeg = jpegs[0].read_bytes()
    images = [{"bytes": small_jpeg}] * 5 + [{"bytes": None}] + [None] + [{"bytes": small_jpeg}] * 5
    pq.write_table(arrow.table({"image": images, "label": [0, 1] * 6}), tmp_path / "t.parquet", row_group_size=3)
    data = ParquetData(
        pattern=str(tmp_path / "*.parquet"), on_error=OnError["skip"], max_bad_fraction=1.0, val_fraction=1e-9
    )
    cfg = PipelineConfig(
        data=data, transforms=Transforms(size=16), loader=Loader(batch_size=4, num_workers=0, sampler="sequential")
    )
    bad = tmp_path / "bad.csv"
    with build_pipeline(cfg, quarantine=Quarantine(bad)) as pipeline:
        ids = [id for batch in pipeline for id in batch.ids.tolist()]
    assert ids == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    with open(bad, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["path"]) for row in rows] == [(str(n), f"{tmp_path}/t.parquet:{n}") for n in (5, 6)]
    assert all("no bytes in the column image.bytes" in row["cause"] for row in rows)


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(arrow.table(columns), path / "t.parquet", **options)
    return str(path / "t.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [b"x"], "label": [0]}, r"data\.image=image: .*t\.parquet has no such column, but img, label"),
        ({"image": [b"x"], "y": [0]}, r"data\.label=label: .* has no such column, but image, y"),
        ({"image": ["text"], "label": [0]}, r"data\.image=image: .* has string there; it must be binary"),
        ({"image": [b"x", b"y"], "label": [0, None]}, r"t\.parquet:1: label is missing"),
        ({"image": [b"x"], "label": [-1]}, r"t\.parquet:0: label -1 must be a class number"),
        ({"image": arrow.array([], arrow.binary()), "label": arrow.array([], arrow.int64())}, "1 files hold no row"),
    ],
    ids=["no image", "no label", "texts as images", "a label left out", "a negative class", "no row"],
)
def test_a_file_that_cannot_be_meant_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        opened(write(tmp_path, columns))


def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet: "):
        opened(str(tmp_path / "*.parquet"))


def test_row_groups_too_large_to_hold_are_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_table, "MAX_GROUP_BYTES", 1000)
    for name in ("image", "image.png"):
        pattern = write(tmp_path, {name: [os.urandom(300)] * 8, "label": [0] * 8}, use_dictionary=False)
        with pytest.raises(ValueError, match=r"row group 0 has .* in 8 rows.*row_group_size=100"):
            opened(pattern, image=name)


def test_a_file_of_both_splits_is_refused(tmp_path: Path) -> None:
    make_parquet(tmp_path, 2)
    with pytest.raises(ValueError, match=r"val_pattern=.* names files that data\.pattern=.* such as .*part-00001"):
        opened(str(tmp_path / "*.parquet"), val_pattern=str(tmp_path / "part-00001.parquet"))


def test_files_of_several_layouts_are_refused(tmp_path: Path) -> None:
    make_parquet(tmp_path, 1, struct=False)
    table = arrow.table({"image": [{"bytes": b"x"}], "label": [0]})
    pq.write_table(table, tmp_path / "part-1.parquet")
    with pytest.raises(ValueError, match=r"bytes in one of .*part-00000.* and .*part-1.* structs in the other"):
        opened(str(tmp_path / "*.parquet"))


def test_a_file_that_is_written_anew_while_it_is_read_ends_the_run_by_its_name(tmp_path: Path) -> None:
    pattern = write(tmp_path, {"image": [b"x", b"y"], "label": [0, 1]})
    source = opened(pattern)
    write(tmp_path, {"image": [b"x"], "label": [0]})
    with pytest.raises(OSError, match=r"written anew since this run began.*t\.parquet") as raised:
        source.read(1)
    assert raised.value.errno == errno.ESTALE, "which no data.on_error passes over"


def test_files_that_name_classes_differently_are_refused(tmp_path: Path) -> None:
    make_parquet(tmp_path, 1, struct=True, labels="numbers")
    table = arrow.table({"image": [{"bytes": b"x"}], "label": [0]})
    pq.write_table(table, tmp_path / "part-1.parquet")
    with pytest.raises(ValueError, match=r"part-1\.parquet names its classes otherwise than .*part-00000\.parquet"):
        opened(str(tmp_path / "*.parquet"))


def test_a_damaged_page_raises_under_its_files_name_and_is_never_a_sample(tmp_path: Path) -> None:
    pattern = write(
        tmp_path,
        {"image": [b"x" * 5000, b"y" * 5000], "label": [0, 1]},
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    data = bytearray(Path(pattern).read_bytes())
    place = data.find(b"y" * 5000)
    data[place + 2500] ^= 1
    Path(pattern).write_bytes(data)
    with pytest.raises(OSError, match=r"t\.parquet: row group 0 cannot be read"):
        opened(pattern).read(0)


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_damaged_page_of_labels_is_refused_by_its_files_name(has_checksums: bool, tmp_path: Path) -> None:
    labels = [f"label {number:04d}" for number in range(200)]
    columns = {"image": [b"x"] * 200, "label": labels}
    pattern = write(tmp_path, columns, write_page_checksum=has_checksums, compression="snappy", use_dictionary=False)
    whole = Path(pattern).read_bytes()
    place = whole.find(b"label 0000")
    class_names, told = {tuple(labels)}, set()
    for bit in range(8 * 40):
        damaged = bytearray(whole)
        damaged[place + bit // 8] ^= 1 << bit % 8
        Path(pattern).write_bytes(damaged)
        try:
            class_names.add(opened(pattern).class_names)
        except ValueError as error:
            told.add(str(error).replace(pattern, "FILE").split(":")[0])
    assert "FILE cannot be read as Parquet" in told
    assert all("FILE" in words for words in told)
    assert not has_checksums or class_names == {tuple(labels)}


def test_without_pyarrow_the_install_line_is_told(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pipeline.sources import open_parquet\n"
        "try: open_parquet('x', split='train')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'headrace[parquet]'" in done.stdout


@pytest.mark.parametrize(
    ("backend", "preload"), [("serial", "none"), ("threads", "none"), ("processes", "none"), ("threads", "pack")]
)
def test_batches_are_those_of_the_same_images_in_files(
    backend: str, preload: str, images: Path, tmp_path: Path
) -> None:
    files = sorted(images.glob("*/*.jpg"))
    names = sorted({file.parent.name for file in files})
    pattern = write(
        tmp_path,
        {"image": [file.read_bytes() for file in files], "label": [names.index(file.parent.name) for file in files]},
        row_group_size=7,
    )
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{file},{names.index(file.parent.name)}\n" for file in files)
    )

    def batches(data: Data, **loader: Any) -> list[tuple[bytes, list[int]]]:
        cfg = PipelineConfig(
            data=data,
            transforms=Transforms(size=32),
            loader=Loader(batch_size=8, **loader),
            preload=Preload(mode=preload, dir=str(tmp_path / "packs")) if preload != "none" else Preload(),
        )
        with build_pipeline(cfg) as pipeline:
            return [(batch.images.numpy().tobytes(), batch.labels.tolist()) for batch in pipeline]

    one = {"val_fraction": 1e-9}
    workers = {"num_workers": 0} if backend == "serial" else {"num_workers": 2, "backend": backend}
    mine = batches(ParquetData(pattern=pattern, **one), **workers)
    assert mine == batches(ManifestData(path=str(tmp_path / "list.csv"), **one), num_workers=0)


def test_a_mistake_in_the_configuration_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root has no use for parquet"):
        ParquetData(pattern="x", root="y")
    with pytest.raises(ConfigError, match=r"data\.val_pattern=.*no.*: there is no file"):
        open_source(ParquetData(pattern=make_parquet(tmp_path), val_pattern=f"{tmp_path}/no*.parquet"), "train")
