"""Data at URLs: a server that fails, stalls and cuts, a cache on disk with a bound, the same samples as locally."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from contracts_of_sources import assert_source_contract
from made_sources import make_manifest, make_parquet, make_shards, make_tree
from watching import ROOT
from web import Web, web

from pipeline.build import build_pipeline
from pipeline.build_source import open_source
from pipeline.config import (
    ConfigError,
    FolderData,
    Loader,
    ManifestData,
    ParquetData,
    PipelineConfig,
    TarData,
    Transforms,
)
from pipeline.doctor.__main__ import main as doctor
from pipeline.sources import Remote, Source
from pipeline.sources.disk_cache import DiskCache

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
asyn = pytest.importorskip("fsspec.asyn")

asyn.get_loop()  # fsspec's thread and its descriptors stay for as long as the process

BODY = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users cache"))
    monkeypatch.setattr("pipeline.sources.remote._FIRST_PAUSE_S", 0.001)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Web, str]]:
    root = tmp_path / "site"
    root.mkdir()
    (root / "a.bin").write_bytes(BODY)
    with web(root) as served:
        yield served


@pytest.fixture
def impatient() -> Iterator[Callable[..., Remote]]:
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(Remote(**({"timeout_s": 0.5, "num_tries": 3} | options)))


@pytest.mark.parametrize("fault", [500, 503, 429, "stall", "stall inside", "cut", "slow"])
def test_what_the_network_does_wrong_twice_is_tried_again(
    fault: Any, site: tuple[Web, str], impatient: Callable[..., Remote]
) -> None:
    served, url = site
    served.faults["/a.bin"] = [fault, fault]
    assert impatient().read(f"{url}/a.bin") == BODY
    assert served.asked["/a.bin"] == 3
    served.faults["/a.bin"] = [fault, fault]
    assert impatient().read(f"{url}/a.bin", start=100, size=1000) == BODY[100:1100]
    assert served.num_waited_for == 0


@pytest.mark.parametrize("fault", [500, "stall", "stall inside", "cut", "slow"])
def test_what_it_does_wrong_every_time_is_an_error_with_the_cause_and_without_secrets(
    fault: Any, site: tuple[Web, str], impatient: Callable[..., Remote]
) -> None:
    served, url = site
    served.faults["/a.bin"] = [fault] * 9
    secret = url.replace("http://", "http://me:hidden@") + "/a.bin?token=hidden"
    with pytest.raises(OSError, match="not read in 3 tries, at last: ") as caught:
        impatient().read(secret)
    assert served.asked["/a.bin"] == 3
    assert f"{url}/a.bin" in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, FileNotFoundError), (403, PermissionError), (401, PermissionError), (410, OSError)]
)
def test_what_the_server_says_of_the_file_is_not_asked_again(
    status: int, kind: type[OSError], site: tuple[Web, str], impatient: Callable[..., Remote]
) -> None:
    served, url = site
    served.faults["/a.bin"] = [status]
    with pytest.raises(kind):
        impatient().read(f"{url}/a.bin")
    assert served.asked["/a.bin"] == 1


def test_a_server_that_takes_no_ranges_is_found_out(site: tuple[Web, str], impatient: Callable[..., Remote]) -> None:
    served, url = site
    served.faults["/a.bin"] = ["no range"] * 9
    with pytest.raises(OSError, match="takes no ranges"):
        impatient().read(f"{url}/a.bin", start=100, size=1000)


def test_a_range_behind_the_end_is_no_data(site: tuple[Web, str], impatient: Callable[..., Remote]) -> None:
    _, url = site
    with pytest.raises(OSError, match="240 of 1,000 bytes came"):
        impatient().read(f"{url}/a.bin", start=10_000, size=1000)


def test_what_was_read_is_not_asked_for_again_by_any_process_nor_given_for_another_version(
    site: tuple[Web, str], impatient: Callable[..., Remote]
) -> None:
    served, url = site
    remote = impatient()
    for reader in (remote, remote, pickle.loads(pickle.dumps(remote)), impatient()):
        assert reader.read(f"{url}/a.bin", version="1") == BODY
    assert served.asked["/a.bin"] == 1
    remote.read(f"{url}/a.bin", version="2")
    assert served.asked["/a.bin"] == 2


def test_a_disk_that_keeps_nothing_is_said_once_and_fails_no_read(
    site: tuple[Web, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, impatient: Callable[..., Remote]
) -> None:
    _, url = site
    (tmp_path / "full").write_bytes(b"a file in the place of the cache's directory")
    remote = impatient(cache_dir=str(tmp_path / "full"))
    for _ in range(3):
        assert remote.read(f"{url}/a.bin") == BODY
    assert caplog.text.count("is not kept in") == 1


def test_many_threads_read_at_once(site: tuple[Web, str], impatient: Callable[..., Remote]) -> None:
    _, url = site
    remote = impatient(timeout_s=20)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: remote.read(f"{url}/a.bin", start=at, size=64), range(0, 6400, 64)))
    assert b"".join(parts) == BODY[:6400]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_connections_of_its_own(site: tuple[Web, str], impatient: Callable[..., Remote]) -> None:
    _, url = site
    remote = impatient(timeout_s=20)
    remote.read(f"{url}/a.bin")
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(int(remote.read(f"{url}/a.bin", start=5, size=5) != BODY[5:10]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_a_cache_keeps_its_bound_and_what_was_used_last(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 10_000)
    cache.put("kept", b"k" * 1000)
    for number in range(50):
        os.utime(cache._path("kept"), (2e9, 2e9))  # used later than all others
        cache.put(str(number), bytes(1000))
        assert size_of(tmp_path) <= 10_000
    assert cache.get("kept") == b"k" * 1000
    assert cache.get("0") is None
    cache.put("too large for all of it", bytes(10_000))
    assert cache.get("too large for all of it") is None


def test_two_caches_of_one_directory_keep_one_bound(tmp_path: Path) -> None:
    caches = [DiskCache(str(tmp_path), 20_000) for _ in range(2)]
    for number in range(60):
        caches[number % 2].put(str(number), bytes(900))
    assert size_of(tmp_path) <= 20_000
    assert caches[0].get("59") == bytes(900)


@pytest.mark.parametrize("spoil", [b"", b"something else", bytes(116)], ids=["empty", "other", "zeros"])
def test_a_damaged_blob_counts_as_not_there(spoil: bytes, tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 10_000)
    cache.put("a", b"a" * 100)
    Path(cache._path("a")).write_bytes(spoil)
    assert cache.get("a") is None
    cache.put("a", b"b" * 100)
    assert cache.get("a") == b"b" * 100


def test_a_process_that_is_killed_while_it_writes_leaves_a_cache_that_works(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pipeline.sources import disk_cache\n"
        "disk_cache.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "disk_cache.DiskCache(sys.argv[1], 10_000).put('a', bytes(500))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    cache = DiskCache(str(tmp_path), 10_000)
    assert cache.get("a") is None
    (part,) = tmp_path.rglob(".part-*")
    os.utime(part, (0, 0))  # an hour later
    for number in range(30):
        cache.put(str(number), bytes(1000))
    assert cache.get("29") == bytes(1000)
    assert not part.exists()


def told(source: Source) -> list[tuple[bytes, Any]]:
    return [(bytes(source.read(id)), source.label(id)) for id in range(len(source))]


def both_splits(data: Any) -> list[Any]:
    parts = []
    for split in ("train", "val"):
        with ExitStack() as opened:
            source = open_source(data, split)
            if hasattr(source, "close"):
                opened.enter_context(closing(source))
            parts.append((told(source), tuple(source.class_names), source.fingerprint()))
    return parts


@pytest.mark.parametrize("kind", ["manifest", "manifest of urls", "local manifest", "tar", "divided tar", "parquet"])
def test_samples_at_urls_are_those_of_the_same_files_here(kind: str, site: tuple[Web, str]) -> None:
    served, url = site
    served.faults["*"] = [500, "cut", 503]
    if kind == "parquet":
        make_parquet(served.root)
        here, there = (ParquetData(pattern=f"{place}/part-{{00000..00001}}.parquet") for place in (served.root, url))
        assert both_splits(there) == both_splits(here)
        return
    if "tar" in kind:
        make_shards(served.root)
        if kind == "divided tar":
            (served.root / "s-002.tar").rename(served.root / "val-000.tar")
            (served.root / "s-000.tar").rename(served.root / "train-000.tar")
        pattern = "s-{000..002}.tar" if kind == "tar" else "{split}-000.tar"
        here, there = TarData(pattern=f"{served.root}/{pattern}"), TarData(pattern=f"{url}/{pattern}")
        assert both_splits(there) == both_splits(here)
        return
    path = make_manifest(served.root)
    here = ManifestData(path=str(path), val_fraction=0.3)
    if kind == "manifest of urls":
        rows = path.read_text().splitlines()
        (served.root / "urls.csv").write_text("\n".join([rows[0], *(f"{url}/{row}" for row in rows[1:])]))
        there = ManifestData(path=f"{url}/urls.csv", val_fraction=0.3)
        samples = [sample for split in both_splits(there) for sample in split[0]]
        assert sorted(samples) == sorted(sample for split in both_splits(here) for sample in split[0])
        return
    there = ManifestData(path=f"{url}/list.csv" if kind == "manifest" else str(path), root=url, val_fraction=0.3)
    assert both_splits(there) == both_splits(here)


def test_a_tree_in_a_bucket_is_that_of_a_local_copy(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "bee" / "nested" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "bee" / "nested" / "deep" / "x.png").write_bytes(b"x")
    (tmp_path / "tree" / "bee" / ".hidden.jpg").write_bytes(b"x")
    (tmp_path / "tree" / "bee" / "notes.txt").write_bytes(b"x")
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "tree"), "/bucket/tree", recursive=True)
    try:
        for fraction in (0.1, 0.5):
            here = FolderData(root=str(tmp_path / "tree"), val_fraction=fraction)
            there = FolderData(root="memory://bucket/tree", val_fraction=fraction)
            assert both_splits(there) == both_splits(here)
        system.put(str(tmp_path / "tree"), "/bucket/parts/train", recursive=True)
        system.put(str(tmp_path / "tree" / "ant"), "/bucket/parts/val/ant", recursive=True)
        train, val = both_splits(FolderData(root="memory://bucket/parts"))
        assert (len(train[0]), len(val[0]), val[1]) == (61, 20, ("ant", "bee", "cow"))
    finally:
        system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "files",
    [
        ["train/ant/1.jpg", "validation/ant/1.jpg"],
        ["train/ant/1.jpg"],
        ["ant/1.jpg", "bee/notes.txt"],
        ["ant/1.jpg", "bee/.hidden.jpg"],
        ["notes.txt", ".git/1.jpg"],
        ["train/ant/1.jpg", "train/bee/2.jpg", "val/cow/.hidden", "val/bee/3.png", "other/dog/4.jpg"],
        ["train/ant/1.jpg", "val/notes.txt"],
        ["train/1.jpg", "val/ant/1.jpg", "val/bee/2.jpg"],
        ["1.jpg", "ant/1.jpg", "ant/b/1.jpg", "ant/b.jpg", "bee/.dir/1.jpg", "bee/c/d/2.JPEG", ".cow/3.jpg"],
    ],
)
def test_a_tree_of_any_shape_in_a_bucket_is_taken_or_refused_as_a_local_copy(files: list[str], tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name in files:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        system.pipe_file(f"/shapes/tree/{name}", name.encode())

    def outcome(root: str, split: Any) -> Any:
        try:
            source = open_source(FolderData(root=root, val_fraction=0.3), split)
        except ConfigError as error:
            return str(error).replace(root, "ROOT")
        return told(source), tuple(source.class_names)

    try:
        for split in ("train", "val"):
            there = outcome("memory://shapes/tree", split)
            assert there == outcome(str(tmp_path / "tree"), split)
    finally:
        system.rm("/shapes", recursive=True)


def test_paths_start_from_the_place_of_a_manifest_whatever_its_query_is(site: tuple[Web, str]) -> None:
    served, url = site
    here = ManifestData(path=str(make_manifest(served.root)), val_fraction=0.3)
    there = ManifestData(path=f"{url}/list.csv?signed=a/b", val_fraction=0.3)
    assert both_splits(there) == both_splits(here)


def test_rows_stay_in_their_split_when_urls_are_signed_anew(site: tuple[Web, str]) -> None:
    served, url = site
    make_parquet(served.root)
    here = ParquetData(pattern=f"{served.root}/part-00000.parquet", val_fraction=0.5)
    for signature in ("a", "b/c"):
        there = ParquetData(pattern=f"{url}/part-00000.parquet?signature={signature}", val_fraction=0.5)
        assert both_splits(there) == both_splits(here)


@pytest.mark.parametrize("kind", ["manifest", "queries", "tar", "parquet", "tree"])
def test_sources_at_urls_keep_the_contract(kind: str, site: tuple[Web, str]) -> None:
    served, url = site
    data: Any = ManifestData(path=f"{url}/list.csv", val_fraction=0.3)
    make_manifest(served.root)
    if kind == "queries":
        rows = "".join(f"{url}/a.bin?part={number},0\n" for number in range(30))
        (served.root / "list.csv").write_text(f"path,label\n{rows}")
    elif kind == "tar":
        make_shards(served.root)
        data = TarData(pattern=f"{url}/s-{{000..002}}.tar", val_fraction=0.3)
    elif kind == "parquet":
        make_parquet(served.root)
        data = ParquetData(pattern=f"{url}/part-{{00000..00001}}.parquet", val_fraction=0.3)
    elif kind == "tree":
        system = fsspec.filesystem("memory")
        system.put(str(make_tree(served.root / "tree")), "/contract/tree", recursive=True)
        data = FolderData(root="memory://contract/tree", val_fraction=0.3)
    assert_source_contract(lambda split: open_source(data, split))


def test_an_error_in_a_manifest_names_its_url(site: tuple[Web, str]) -> None:
    served, url = site
    (served.root / "list.csv").write_text("path,label\na.bin,\n")
    with pytest.raises(ConfigError, match=rf"^{url}/list\.csv:2: label is missing"):
        open_source(ManifestData(path=f"{url}/list.csv"), "train")


def test_what_is_kept_of_shards_has_no_query_in_it(site: tuple[Web, str], tmp_path: Path) -> None:
    served, url = site
    make_shards(served.root)
    data = TarData(pattern=f"{url}/s-{{000..002}}.tar?signature=hidden")
    assert both_splits(data) == both_splits(data)
    kept = [path.read_bytes() for path in (tmp_path / "users cache").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"hidden" in content for content in kept)


def test_the_doctor_says_that_samples_lie_on_a_server(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{file.relative_to(images)},{file.parent.name}\n" for file in sorted(images.rglob("*.jpg")))
    (images / "rows.csv").write_text("path,label\n" + rows)
    with web(images) as (_, url):
        doctor(["data=manifest", f"data.path={url}/rows.csv"])
    (images / "rows.csv").unlink()
    assert "disk           the samples lie on a server, or in the cache of what was read:" in capsys.readouterr().out


def test_names_of_files_are_no_syntax_of_urls(site: tuple[Web, str]) -> None:
    served, url = site
    names = ["a", "a#1.jpg", "a?b.jpg", "a%20b.jpg", "a b.jpg", "ü.jpg"]
    for name in names:
        (served.root / name).write_bytes(f"content of {name}".encode())
    (served.root / "list.csv").write_text("path,label\n" + "".join(f"{name},0\n" for name in names))
    here = ManifestData(path=str(served.root / "list.csv"), val_fraction=0.3)
    assert both_splits(ManifestData(path=f"{url}/list.csv", val_fraction=0.3)) == both_splits(here)


@pytest.mark.parametrize("tells_etag", [True, False])
def test_shards_are_indexed_once_and_again_when_they_change(tells_etag: bool, site: tuple[Web, str]) -> None:
    served, url = site
    served.tells_etag = tells_etag
    make_shards(served.root)
    data = TarData(pattern=f"{url}/s-{{000..002}}.tar")
    before = both_splits(data)
    asked = sum(served.asked.values())
    assert both_splits(data) == before
    assert sum(served.asked.values()) == asked, "everything lies in the index and in the cache"
    shard = served.root / "s-001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"image dir/1000", b"other dir/1000"))
    os.utime(shard, (2e9, 2e9))  # web servers tell whole seconds
    after = both_splits(data)
    assert after != before
    assert served.asked["/s-000.tar"] == served.asked["/s-002.tar"]
    assert any(b"other dir/1000" in image for split in after for image, _ in split[0])


@pytest.mark.parametrize(
    "workers", [{"num_workers": 0}, {"num_workers": 3}, {"num_workers": 2, "backend": "processes"}]
)
def test_batches_are_those_of_the_files_whoever_reads_them(
    workers: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    files = sorted(images.glob("*/*.jpg"))
    rows = "".join(f"{file.relative_to(images)},{file.parent.name}\n" for file in files)
    (images / "rows.csv").write_text("path,label\n" + rows)

    def batches(path: str) -> list[bytes]:
        cfg = PipelineConfig(
            data=ManifestData(path=path, val_fraction=1e-9),
            transforms=Transforms(size=16),
            loader=Loader(batch_size=4, **workers),
        )
        with build_pipeline(cfg) as pipeline:
            return [batch.images.numpy().tobytes() for batch in pipeline]

    with web(images) as (served, url):
        served.faults["*"] = [500, "cut"]
        assert batches(f"{url}/rows.csv") == batches(str(images / "rows.csv"))
    (images / "rows.csv").unlink()


def test_a_web_server_has_no_directories_and_a_missing_manifest_is_named(site: tuple[Web, str]) -> None:
    _, url = site
    with pytest.raises(ConfigError, match="a web server lists no files; use data=manifest or data=tar"):
        open_source(FolderData(root=url), "train")
    with pytest.raises(ConfigError, match=r"no\.csv"):
        open_source(ManifestData(path=f"{url}/no.csv"), "train")


def test_a_file_system_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[s3\]'"):
        open_source(FolderData(root="s3://bucket/tree"), "train")
    with pytest.raises(ConfigError, match="use http, https, s3 or gs"):
        open_source(FolderData(root="nothing://bucket/tree"), "train")
