"""CIFAR-10 and CIFAR-100 in the layout they were published in, and fetched from where a server would be."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from made_sources import make_cifar10, make_cifar100, write
from torchvision import datasets

from pipeline.build_source import open_source
from pipeline.config import Cifar100Data, ConfigError
from pipeline.sources import open_cifar10, open_cifar100


def test_cifar10_comes_as_interleaved_pixels_in_file_order(tmp_path: Path) -> None:
    make_cifar10(tmp_path)
    train, val = (open_cifar10(tmp_path, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (20, 4)
    assert train.labels[:4].tolist() == [3, 0, 9, 1]
    with open(tmp_path / "cifar-10-batches-py" / "data_batch_2", "rb") as file:
        planes = pickle.load(file, encoding="bytes")[b"data"][1].reshape(3, 32, 32)
    assert np.array_equal(train.read(5), planes.transpose(1, 2, 0))
    assert open_cifar10(tmp_path / "cifar-10-batches-py", split="val").fingerprint() == val.fingerprint()


def test_missing_cifar10_names_the_two_keys_that_cure_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root.*data\.download=true"):
        open_cifar10(tmp_path, split="train")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    make_cifar10(tmp_path)
    write(tmp_path / "cifar-10-batches-py" / "test_batch", b"cos\nsystem\n(S'exit'\ntR.")
    with pytest.raises(ValueError, match=r"\.system has no place"):
        open_cifar10(tmp_path, split="val")


def test_cifar100_has_its_100_classes_and_when_asked_its_20_superclasses(tmp_path: Path) -> None:
    make_cifar100(tmp_path)
    fine, coarse = (open_cifar100(tmp_path, split="train", coarse=coarse) for coarse in (False, True))
    assert fine.labels.tolist() == [(id * 9) % 100 for id in range(12)]
    assert coarse.labels.tolist() == [(id * 9) % 20 for id in range(12)]
    assert (fine.class_names[99], coarse.class_names[19]) == ("f99", "c19")
    assert (len(fine.class_names), len(coarse.class_names)) == (100, 20)
    assert fine.fingerprint() != coarse.fingerprint()
    with open(tmp_path / "cifar-100-python" / "test", "rb") as file:
        planes = pickle.load(file, encoding="bytes")[b"data"][2].reshape(3, 32, 32)
    val = open_source(Cifar100Data(root=str(tmp_path)), "val")
    assert np.array_equal(val.read(2), planes.transpose(1, 2, 0))


def test_files_of_one_cifar_under_the_names_of_the_other_are_refused(tmp_path: Path) -> None:
    made = make_cifar10(tmp_path) / "cifar-10-batches-py"
    for name, of_other in (("train", "data_batch_1"), ("test", "test_batch"), ("meta", "batches.meta")):
        write(tmp_path / "cifar-100-python" / name, (made / of_other).read_bytes())
    with pytest.raises(ValueError, match=r"cifar-100-python/train does not hold data, fine_labels"):
        open_cifar100(tmp_path, split="train")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive of CIFAR-100 on a server of this machine, which torchvision takes for the published one."""
    folder = make_cifar100(tmp_path / "made") / "cifar-100-python"
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, folder.name)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    published = datasets.CIFAR100
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(published, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(published, "tgz_md5", md5(archive))
    monkeypatch.setattr(published, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(published, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": md5(folder / "meta")})
    yield archive
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_archive_is_downloaded_when_asked_for_and_then_never_again(served: Path, tmp_path: Path) -> None:
    data = Cifar100Data(root=str(tmp_path / "data"), download=True)
    first = open_source(data, "train")
    served.unlink()
    again = open_source(Cifar100Data(root=str(tmp_path / "data")), "train")
    assert first.fingerprint() == again.fingerprint() == open_source(data, "train").fingerprint()
    assert (len(first), len(open_source(data, "val"))) == (12, 6)


def test_an_archive_with_another_checksum_or_none_at_all_is_refused_and_not_unpacked(
    served: Path, tmp_path: Path
) -> None:
    data = Cifar100Data(root=str(tmp_path / "data"), download=True)
    served.write_bytes(served.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"data\.download=true: CIFAR-100 could not be fetched into .*; try again"):
        open_source(data, "train")
    assert not (tmp_path / "data" / "cifar-100-python").exists()
    served.unlink()
    with pytest.raises(ConfigError, match=r"CIFAR-100 could not be fetched"):
        open_source(data, "train")


def test_missing_cifar100_names_the_two_keys_that_cure_it(served: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*cifar-100-python/train does not exist.*data\.download=true"):
        open_cifar100(tmp_path / "data", split="train")
