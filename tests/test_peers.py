"""Other loaders do the work that the configuration asks for, or say what they do not do."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_child import BATCH_SIZE, ID_OFFSET, ID_STEP, config, measure
from PIL import Image

import pipeline
from pipeline.bench import peers
from pipeline.bench.peers.build import build
from pipeline.bench.peers.build import main as install
from pipeline.bench.peers.environments import READY, RECIPES, Recipe
from pipeline.bench.peers.prepared import prepare_file, prepared_path, read_jpeg
from pipeline.bench.peers.task import read_file_task, read_task
from pipeline.config import Cache, ConfigError, Loader, ManifestData, Prefetch, Preload, TarData, Transforms
from pipeline.config.bench import ContenderName
from pipeline.sources import FileSource

ROOT = Path(pipeline.__file__).parents[1]
TESTS = Path(__file__).parent
NUM_IMAGES = 23
DARK, LIGHT = 170, 250
JITTER = Transforms.named("standard", size=32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """23 JPEGs of 96x72, each brightest in channel id % 3 and lighter there from left to right."""
    directory = tmp_path_factory.mktemp("images")
    paths = []
    for id in range(NUM_IMAGES):
        image = np.full((72, 96, 3), ID_OFFSET + ID_STEP * id, np.uint8)
        image[..., id % 3] = np.linspace(DARK, LIGHT, 96)
        paths.append(directory / f"{id:02d}.jpg")
        Image.fromarray(image).save(paths[-1], quality=95, subsampling=0)
    return paths


@pytest.fixture(scope="module")
def manifest(images: list[Path]) -> Path:
    """Every image with its number for a label, all of them for training."""
    rows = [f"{path},{id},train" for id, path in enumerate(images)]
    path = images[0].parent / "manifest.csv"
    path.write_text("\n".join(["path,label,split", *rows, f"{images[0]},0,val", ""]))
    return path


def in_a_process(name: ContenderName, manifest: Path, directory: Path) -> dict[str, Any]:
    """What `peer_child.py` saw of the contender, in the Python that has it."""
    python = peers.interpreter(name)
    if python is None:
        pytest.skip(peers.why_not(name))
    finished = subprocess.run(
        [python, "-P", str(TESTS / "peer_child.py"), name, str(manifest)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    seen: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return seen


OTHERS = [name for name in ContenderName if name is not ContenderName.headrace]


@pytest.mark.parametrize("name", OTHERS)
def test_a_contender_does_the_same_work_epoch_after_epoch(name: ContenderName, manifest: Path, tmp_path: Path) -> None:
    seen = in_a_process(name, manifest, tmp_path)
    for batches in seen["epochs"]:
        assert [len(batch) for batch in batches] == [6, 6, 6, 5]
        assert sorted(image["label"] for batch in batches for image in batch) == list(range(NUM_IMAGES))
    samples = [image for batches in seen["epochs"] for batch in batches for image in batch]
    # a wrong order of labels, a wrong order of channels, a wrong normalisation
    assert [image["shown_id"] for image in samples] == [image["label"] for image in samples]
    assert all(image["brightest"] == image["label"] % 3 for image in samples)
    middle = (DARK + LIGHT) / 2 / 255
    assert np.mean([image["brightness"] for image in samples]) == pytest.approx(middle, abs=0.02)
    # flips and crops
    slopes = np.array([image["slope"] for image in samples])
    assert 0.25 < np.mean(slopes > 0) < 0.75
    assert len(np.unique(np.abs(slopes).round(4))) > len(slopes) / 3
    # the order
    orders = {tuple(image["label"] for batch in batches for image in batch) for batches in seen["epochs"]}
    assert len(orders) == len(seen["epochs"])
    assert tuple(range(NUM_IMAGES)) not in orders
    # what it says of itself
    assert (seen["dtype"], seen["shape"]) == ("torch.float32", [NUM_IMAGES % BATCH_SIZE, 3, 32, 32])
    assert seen["says_layout"] == seen["layout"]
    assert seen["num_samples"] == NUM_IMAGES
    assert seen["prepared_again"] == seen["prepared"]
    assert seen["processes"] == 0, "it left worker processes behind"
    check_that_bytes_were_kept(seen["prepared"], tmp_path, manifest)


def check_that_bytes_were_kept(prepared: dict[str, int], directory: Path, manifest: Path) -> None:
    """Whatever was made of the files holds them as they are."""
    originals = [path.read_bytes() for path in sorted(manifest.parent.glob("*.jpg"))]
    for path in (directory / name for name in prepared):
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                assert [archive.extractfile(member).read() for member in archive] == originals  # type: ignore[union-attr]
        elif path.suffix == ".beton":
            written = path.read_bytes()
            assert all(data in written for data in originals)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an order of its own": (
        {"loader": Loader(sampler="sequential")},
        "loader.sampler=sequential is not there for bench.contender=dali; use shuffle",
    ),
    "another type": (
        {"prefetch": Prefetch(dtype="float16")},
        "prefetch.dtype=float16 is not there for bench.contender=dali; use float32",
    ),
    "smaller images": (
        {"transforms": Transforms(size=32, max_side=64)},
        "transforms.max_side=64 is not there for bench.contender=dali; use null",
    ),
    "a part of the samples": (
        {"data": ManifestData(path="list.csv", max_samples=4)},
        "data.max_samples=4 is not there for bench.contender=dali; use null",
    ),
    "colours": (
        {"transforms": Transforms.named("standard")},
        "transforms.augment=standard jitters colours, which bench.contender=dali does not do as torchvision does; "
        "use transforms=light",
    ),
    "no batch": (
        {"loader": Loader(batch_size=NUM_IMAGES + 1, drop_last=True)},
        "loader.drop_last leaves no batch of 23 samples; use a smaller batch",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_another_loader_cannot_do_is_refused_by_its_key(
    changes: dict[str, Any], message: str, manifest: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_file_task(config("dali", str(manifest), **changes))
    assert str(refused.value) == message


def test_only_torch_takes_samples_that_are_no_files(images: list[Path], manifest: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for id, path in enumerate(images):
            label = tmp_path / f"{id}.cls"
            label.write_text(str(id % 3))
            shard.add(path, f"{id}.jpg")
            shard.add(label, f"{id}.cls")
    data = TarData(pattern=str(tmp_path / "shard.tar"))
    assert 0 < len(read_task(config("torch", str(manifest), data=data)).source) < NUM_IMAGES
    with pytest.raises(ConfigError, match=r"bench\.contender=spdl reads .* not data\.pattern=.*; use data=folder"):
        read_file_task(config("spdl", str(manifest), data=data))


def test_what_is_left_out_is_said(manifest: Path) -> None:
    groups = {
        "cache": Cache(policy="lru", max_images=5),
        "preload": Preload(mode="ram"),
        "transforms": Transforms(size=32, decode="scaled"),
        "loader": Loader(num_workers=0),
    }
    task, _ = read_file_task(config("dali", str(manifest), **groups))
    assert task.deviations == (
        "no cache: cache.policy=lru has no effect",
        "no preloading: preload.mode=ram has no effect",
        "transforms.decode=scaled has no effect",
        "batches are made in a thread, not in the loop",
    )
    assert read_file_task(config("dali", str(manifest)))[0].deviations == ()


def test_torch_makes_batches_in_the_loop_where_there_are_no_workers(manifest: Path) -> None:
    groups = {"loader": Loader(num_workers=0, batch_size=NUM_IMAGES - 1, drop_last=True), "transforms": JITTER}
    seen = measure(config("torch", str(manifest), **groups), num_epochs=2)
    assert (seen["num_workers"], seen["resize"]) == (0, "antialiased bilinear (Pillow)")
    assert [len(batch) for batches in seen["epochs"] for batch in batches] == [NUM_IMAGES - 1] * 2


@pytest.fixture
def source(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileSource:
    """Five files that a test may change, and a current directory."""
    monkeypatch.chdir(tmp_path)
    copies = [shutil.copy2(path, tmp_path) for path in images[:5]]
    return FileSource(copies, range(5))


def test_a_file_is_prepared_once_and_again_after_a_change(source: FileSource) -> None:
    calls: list[Path] = []

    def write(path: Path) -> None:
        calls.append(path)
        path.write_text(f"version {len(calls)}")

    prepare_file(source, "made", write)
    prepare_file(source, "made", write)
    assert prepared_path(source, "made").read_text() == "version 1"
    changed = Path(source.paths[3])
    changed.write_bytes(changed.read_bytes() + b"more")
    prepare_file(source, "made", write)
    assert prepared_path(source, "made").read_text() == "version 2"
    prepared_path(source, "made").unlink()
    prepare_file(source, "made", write)
    assert prepared_path(source, "made").read_text() == "version 3"
    assert not calls[0].exists(), "it was written in its final place, or beside it for good"


def test_a_file_that_was_not_written_to_its_end_is_not_used(source: FileSource) -> None:
    def fail(path: Path) -> None:
        path.write_text("the first half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        prepare_file(source, "made", fail)
    assert not prepared_path(source, "made").exists()
    prepare_file(source, "made", lambda path: path.write_text("whole") and None)
    assert prepared_path(source, "made").read_text() == "whole"


def test_the_same_names_and_labels_elsewhere_are_other_files(source: FileSource, tmp_path: Path) -> None:
    names = [os.path.relpath(path, tmp_path) for path in source.paths]
    here, elsewhere = (FileSource(names, range(5), root=root) for root in (tmp_path, tmp_path / "elsewhere"))
    assert here.fingerprint() == elsewhere.fingerprint()
    assert prepared_path(here, "made") != prepared_path(elsewhere, "made")


def test_a_loader_that_reads_only_jpegs_is_not_given_another_image(source: FileSource) -> None:
    for mode, suffix, format in (("RGB", "png", "PNG"), ("CMYK", "jpg", "JPEG")):
        path = Path(source.paths[0]).with_name(f"other.{suffix}")
        Image.new(mode, (8, 8)).save(path, format)
        with pytest.raises(ConfigError, match=rf"other\.{suffix} is not an RGB or grey JPEG"):
            read_jpeg(FileSource([path], [0]), 0)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"other\.jpg: the file is empty"):
        read_jpeg(FileSource([path], [0]), 0)


def test_a_loader_runs_where_it_was_seen_to_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert peers.interpreter(ContenderName.torch) == sys.executable
    here = importlib.util.find_spec("turboloader") is not None
    without = sys.executable if here else None
    assert peers.interpreter(ContenderName.turboloader) == without
    environment = tmp_path / ".peers" / "turboloader"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    assert peers.interpreter(ContenderName.turboloader) == without, "nobody has seen it work"
    (environment / READY).write_text("1.0\n")
    assert peers.interpreter(ContenderName.turboloader) == str(environment / "bin" / "python")


def test_a_loader_that_is_not_there_is_said_in_one_line() -> None:
    for name in RECIPES:
        assert peers.why_not(name) == (
            f"{name} is in no .peers/{name} here; run `make peers`, or python -m pipeline.bench.peers.build {name}"
        )


def fake_loader(directory: Path, text: str) -> Recipe:
    """How to install a wheel of one module, with no index."""
    wheel = directory / "fakeloader-1.5-py3-none-any.whl"
    about = "fakeloader-1.5.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fakeloader.py", text)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: fakeloader\nVersion: 1.5\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return Recipe(module="fakeloader", proof="import fakeloader", distribution="fakeloader", requirements=(str(wheel),))


def test_an_environment_is_made_once_and_shares_this_ones_packages(tmp_path: Path) -> None:
    recipe = fake_loader(tmp_path, "import numpy, torch")
    environment = tmp_path / "environments" / "fake"
    environment.parent.mkdir()
    line = ("fake: 1.5 installed", True)
    assert build("fake", recipe, environment, pip_options=["--no-index"]) == line
    assert (environment / READY).read_text() == "1.5\n"
    made_ns = (environment / "pyvenv.cfg").stat().st_mtime_ns
    assert build("fake", recipe, environment, pip_options=["--no-index"]) == line
    assert (environment / "pyvenv.cfg").stat().st_mtime_ns == made_ns, "it was made again"
    inside = [path.name for path in environment.glob("lib/*/site-packages/*")]
    assert "fakeloader.py" in inside
    assert not {"torch", "numpy"} & set(inside)


def test_what_is_installed_and_does_not_work_is_removed(tmp_path: Path) -> None:
    recipe = replace(fake_loader(tmp_path, "raise ImportError"), cure="apt install something")
    environment = tmp_path / "fake"
    assert build("fake", recipe, environment, pip_options=["--no-index"]) == (
        "fake: not installed: `import fakeloader` fails in it; apt install something",
        False,
    )
    assert not environment.exists()


def test_what_cannot_be_installed_is_one_line_with_the_reason(tmp_path: Path) -> None:
    unknown = Recipe(
        module="headrace_no_such",
        proof="import headrace_no_such",
        distribution="headrace-no-such",
        requirements=("headrace-no-such==1",),
    )
    assert build("fake", unknown, tmp_path / "fake", pip_options=["--no-index"]) == (
        "fake: not installed: pip: No matching distribution found for headrace-no-such==1",
        False,
    )
    assert not (tmp_path / "fake").exists()
    assert "headrace-no-such" in (tmp_path / "fake.log").read_text()
    unlinked = replace(unknown, libraries=("no-such-library",), cure="apt install no-such-library-dev")
    assert build("fake", unlinked, tmp_path / "fake") == (
        "fake: not installed: pkg-config must know no-such-library; apt install no-such-library-dev",
        False,
    )


def test_only_loaders_that_there_are_can_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert install(["dalli"]) == 2
    expected = "there is no loader 'dalli' to install; did you mean dali? choices: dali, ffcv, turboloader, spdl\n"
    assert capsys.readouterr().out == expected
    assert not (tmp_path / ".peers").exists()
