"""Pack files: opened when right, built again when not, never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.cache.pack import PackFile, open_or_build

KEY, OTHER = "a" * 64, "b" * 64
SAMPLES = [b"", b"one", b"x" * 5000]


def never() -> Iterable[bytes]:
    raise AssertionError("the pack was built although it is there")


def test_a_pack_gives_back_what_was_put_in_and_is_opened_without_building(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "set.pack"
    with open_or_build(path, KEY, 3, lambda: SAMPLES) as pack:
        assert [pack(id) for id in range(len(pack))] == SAMPLES
    with open_or_build(path, KEY, 3, never) as pack:
        assert [pack(id) for id in range(len(pack))] == SAMPLES
    pack.close()
    with pytest.raises(RuntimeError, match="close"):
        pack(0)


def test_a_pack_for_other_data_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / "set.pack"
    open_or_build(path, KEY, 3, lambda: SAMPLES).close()
    with open_or_build(path, OTHER, 1, lambda: [b"new"]) as pack:
        assert [pack(id) for id in range(len(pack))] == [b"new"]


@pytest.mark.parametrize("left", [0, 10, 100, 5000])
def test_a_pack_that_was_cut_is_built_again(left: int, tmp_path: Path) -> None:
    path = tmp_path / "set.pack"
    open_or_build(path, KEY, 3, lambda: SAMPLES).close()
    os.truncate(path, left)
    with pytest.raises(ValueError, match=str(path)):
        PackFile(path, KEY)
    with open_or_build(path, KEY, 3, lambda: SAMPLES) as pack:
        assert pack(2) == SAMPLES[2]


def test_a_failing_build_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "set.pack"

    def samples() -> Iterable[bytes]:
        yield b"one"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        open_or_build(path, KEY, 2, samples)
    assert [file.name for file in tmp_path.iterdir()] == ["set.pack.lock"]


def test_a_build_killed_in_the_middle_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "set.pack"
    script = (
        "import sys, time; from pathlib import Path; from pipeline.cache.pack import open_or_build\n"
        "def samples():\n"
        "    yield b'x' * 100000\n"
        "    print('half', flush=True)\n"
        "    sys.stdin.read()\n"
        "    yield b'y'\n"
        f"open_or_build(Path({str(path)!r}), {KEY!r}, 2, samples)\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "half\n"
        builder.send_signal(signal.SIGKILL)
        builder.wait(60)
    assert not path.exists()
    with open_or_build(path, KEY, 2, lambda: [b"a", b"b"]) as pack:
        assert pack(1) == b"b"


def test_a_wrong_number_of_samples_is_an_error_of_the_builder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="1 samples came for a pack of 2"):
        open_or_build(tmp_path / "set.pack", KEY, 2, lambda: [b"one"])
