"""Files that nobody meant: odd names, pipes and devices named as images, no permission, thousands of broken ones."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import digest
from damage import mutated
from fakes import photo
from PIL import Image
from test_image_contract import ARITHMETIC, encoded
from watching import ROOT, SOAK

from pipeline import create_dataloader
from pipeline.build import build_pipeline
from pipeline.config import ConfigError, FolderData, Loader, ManifestData, OnError, PipelineConfig, Transforms
from pipeline.decode import BadImageError, inspect
from pipeline.quarantine import Quarantine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, pipes and sockets in directories")

ODD_NAMES = [
    b"caf\xe9.jpg",
    b"new\nline.jpg",
    b'comma, and "quote".jpg',
    b"-rf.jpg",
    b"%s{0}$(x).jpg",
    "наука-🐜.jpg".encode(),
    b" .jpg",
    b"n" * 251 + b".jpg",
]
WORKERS: dict[str, dict[str, Any]] = {
    "serial": {"num_workers": 0},
    "threads": {"num_workers": 3},
    "processes": {"num_workers": 2, "backend": "processes", "threads_per_worker": 2},
}


@contextmanager
def within(limit_s: int, let_go: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Whatever takes longer fails, also where it waits in the system; `let_go` ends what threads wait for."""

    def late(*_: object) -> None:
        let_go()
        raise AssertionError(f"not done after {limit_s} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def odd_tree(root: Path) -> list[bytes]:
    """A class directory with an odd name, in it images with odd names, and a broken one beside each."""
    directory = os.path.join(os.fsencode(root), b"class \xff")
    os.makedirs(directory)
    for number, name in enumerate(ODD_NAMES):
        image = encoded(Image.fromarray(photo(number, 24, 32)), "JPEG")
        for path, data in ((name, image), (b"x" + name[1:], image[:-40])):
            with open(os.path.join(directory, path), "wb") as file:
                file.write(data)
    return [os.path.join(directory, b"x" + name[1:]) for name in ODD_NAMES]


@pytest.mark.parametrize("workers", WORKERS)
def test_names_of_any_bytes_are_read_and_quarantined_by_those_bytes(workers: str, tmp_path: Path) -> None:
    bad = odd_tree(tmp_path / "data")
    cfg = PipelineConfig(
        data=FolderData(root=str(tmp_path / "data"), val_fraction=1e-9, on_error=OnError["skip"], max_bad_fraction=1.0),
        transforms=Transforms(size=16),
        loader=Loader(batch_size=4, **WORKERS[workers]),
    )
    quarantine = tmp_path / "quarantine.csv"
    with build_pipeline(cfg, quarantine=Quarantine(quarantine)) as pipeline:
        assert sum(len(batch.ids) for batch in pipeline) == len(ODD_NAMES)
    with open(quarantine, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert sorted(os.fsencode(row["path"]) for row in rows) == sorted(bad)
    assert all("truncated JPEG" in row["cause"] for row in rows)
    Quarantine(quarantine)  # reads what is there


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_run_over_odd_names_is_told_of_where_output_takes_ascii_only(on_error: str, tmp_path: Path) -> None:
    odd_tree(tmp_path / "data" / "train")
    odd_tree(tmp_path / "data" / "val")
    command = [sys.executable, str(ROOT / "train.py"), "debug=fast", "data=folder", f"data.root={tmp_path}/data"]
    command += [f"data.on_error={on_error}", "model.width=8", "transforms.size=64", "loader.batch_size=8"]
    command += ["run.device=cpu", "loader.num_workers=2"]
    command += ["data.max_bad_fraction=1.0"] if on_error == "skip" else []
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert "UnicodeEncodeError" not in done.stderr
    assert "Logging error" not in done.stderr
    if on_error == "skip":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert "truncated JPEG" in done.stderr


@pytest.mark.parametrize("workers", WORKERS)
def test_pipes_sockets_and_devices_named_as_images_are_bad_samples_that_nobody_waits_for(
    workers: str, jpegs: list[Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")

    def let_go() -> None:
        os.close(os.open(tmp_path / "pipe.jpg", os.O_WRONLY | os.O_NONBLOCK))

    odd = [tmp_path / f"{name}.jpg" for name in ("pipe", "socket", "zero", "circle")]
    with (
        within(20, let_go),
        create_dataloader(
            [*jpegs[:4], *odd],
            range(8),
            batch_size=4,
            img_size=16,
            shuffle=False,
            on_error="skip",
            max_bad_fraction=1.0,
            cache_size=0,
            **WORKERS[workers],
        ) as loader,
    ):
        assert torch.cat([batch.ids for batch in loader]).tolist() == [0, 1, 2, 3]
        assert loader.bad is not None
        causes = loader.bad.causes
    assert sorted(causes) == [4, 5, 6, 7]
    assert "Not a regular file" in causes[4]
    assert "No such device" in causes[5]
    assert "Not a regular file" in causes[6]
    assert "Too many levels of symbolic links" in causes[7]


WITHOUT_RIGHTS = """
import json, os, sys
from pipeline import create_dataloader
from pipeline.sources import open_folder
root = sys.argv[1]
paths = [os.path.join(root, "cats", name) for name in ("good.jpg", "secret.jpg")]
def read():
    with create_dataloader(paths, [0, 1], batch_size=2, img_size=16, num_workers=2, shuffle=False, on_error="skip",
                           max_bad_fraction=1.0) as loader:
        return [id for batch in loader for id in batch.ids.tolist()], {k: str(v) for k, v in loader.bad.causes.items()}
read()  # imports, while that is still allowed
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
told = read()
try:
    open_folder(root, split="train")
except Exception as error:
    told = [*told, f"{type(error).__name__}: {error}"]
print(json.dumps(told))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_files_and_directories_without_permission_are_named(jpegs: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        for name, mode in (("cats/good.jpg", 0o644), ("cats/secret.jpg", 0o000), ("dogs/a.jpg", 0o644)):
            path = Path(root, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(jpegs[0].read_bytes())
            path.chmod(mode)
        Path(root, "dogs").chmod(0o000)
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_RIGHTS, root], capture_output=True, text=True, timeout=100, check=True
        )
    ids, causes, refusal = json.loads(done.stdout)
    assert ids == [0]
    assert "Permission denied" in causes["1"]
    assert refusal.startswith("PermissionError") or "dogs" in refusal
    assert "dogs" in refusal


def test_a_nul_in_a_name_is_refused_where_the_names_are_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path 1 holds a NUL character"):
        create_dataloader(["a.jpg", "b\0.jpg"], [0, 1])
    (tmp_path / "list.jsonl").write_text('{"path": "a.jpg", "label": 0}\n{"path": "b\\u0000.jpg", "label": 1}\n')
    with pytest.raises(ConfigError, match=r"list\.jsonl:2: path holds a NUL character"):
        build_pipeline(PipelineConfig(data=ManifestData(path=str(tmp_path / "list.jsonl"))))


def test_a_header_of_more_pixels_than_the_file_can_hold_takes_no_memory() -> None:
    whole = encoded(Image.new("L", (8, 8)), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    data = whole[:at] + (13_000).to_bytes(2, "big") * 2 + whole[at + 4 :]
    with pytest.raises(
        BadImageError, match=r"truncated JPEG: .* bytes are too few for the 13,000 x 13,000 pixels announced"
    ):
        inspect(data)
    for flat in (
        encoded(Image.new("L", (4096, 4096)), "JPEG", progressive=True),
        encoded(Image.new("1", (1, 1)), "JPEG"),
    ):
        assert inspect(flat).plain_jpeg


def seeds() -> list[bytes]:
    """Small whole images of every format that is read."""
    import base64

    images = [Image.fromarray(photo(seed, 24, 32)) for seed in range(3)]
    transparent = images[0].convert("RGBA")
    transparent.putalpha(images[1].convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(images[0], "JPEG"),
        encoded(images[1], "JPEG", quality=95, subsampling=0, exif=exif, restart_marker_blocks=2),
        encoded(images[2], "JPEG", progressive=True),
        encoded(images[0].convert("CMYK"), "JPEG"),
        encoded(images[0].convert("L"), "JPEG"),
        base64.b64decode(ARITHMETIC),
        encoded(images[0], "PNG"),
        encoded(transparent, "PNG"),
        encoded(images[1].convert("P"), "PNG", transparency=3),
        encoded(images[1].convert("P"), "GIF"),
        encoded(images[1], "BMP"),
        encoded(images[2], "TIFF"),
        encoded(images[2], "TIFF", compression="tiff_lzw"),
        encoded(images[0], "WEBP"),
        encoded(transparent, "WEBP", lossless=True),
        encoded(images[1], "AVIF"),
    ]


@pytest.mark.soak
# Pillow warns of damaged metadata and of huge images; here that would be an error, in worker processes it is none.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_of_mutated_files_every_backend_makes_the_same_images_and_names_the_same_errors(tmp_path: Path) -> None:
    random, originals = np.random.default_rng(7), seeds()
    paths = []
    for number in range(10_000 if SOAK else 500):
        data = mutated(originals[number % len(originals)], originals[int(random.integers(len(originals)))], random)
        paths.append(tmp_path / f"{number:05d}.jpg")
        paths[-1].write_bytes(data)
    told: dict[str, tuple[list[str], dict[int, str]]] = {}
    more = {
        "a store": {**WORKERS["threads"], "cache_size": len(paths), "store": "decoded"},
        "scaled": {**WORKERS["processes"], "decode": "scaled"},
    }
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, options in (WORKERS | more).items():
        with (
            within(1500 if SOAK else 100),
            create_dataloader(
                paths,
                range(len(paths)),
                batch_size=25,
                img_size=16,
                seed=3,
                on_error="skip",
                max_bad_fraction=1.0,
                **({"cache_size": 0} | options),
            ) as loader,
        ):
            digests = [digest(batch) for batch in loader]
            assert loader.bad is not None
            told[name] = (digests, {id: str(cause) for id, cause in loader.bad.causes.items()})
            assert loader.stats()["worker_deaths"] == 0
    digests, causes = told["serial"]
    for name in ("threads", "processes", "a store"):
        assert told[name][1] == causes, name
        assert told[name][0] == digests, name
    assert told["scaled"][1].keys() == causes.keys()
    assert len(paths) / 3 < len(causes) < len(paths)
    assert all(causes.values())
    # A few images of up to 179 million pixels, three bytes each, and what Pillow has beside them.
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 3 << 20
