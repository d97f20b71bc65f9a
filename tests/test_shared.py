"""Anonymous memory: what is shared, what is written, what is freed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from watching import shared_descriptors

from pipeline.shared import Arena, anonymous_file, map_file
from pipeline.sources import FileSource


def segments_named(name: str) -> int:
    return sum(f"memfd:headrace-{name}" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("writable", [True, False])
def test_two_mappings_of_a_file_are_the_same_pages(writable: bool) -> None:
    fd = anonymous_file("test", 8192)
    one, other = map_file(fd, 8192, writable=True), map_file(fd, 8192, writable=writable)
    os.close(fd)
    one[5000] = 7
    assert other[5000] == 7
    assert other.flags.writeable == writable
    if writable:
        other[1] = 9
        assert one[1] == 9


def test_a_mapping_goes_with_its_last_array_and_keeps_no_descriptor() -> None:
    descriptors = shared_descriptors()
    fd = anonymous_file("going", 4096)
    memory = map_file(fd, 4096, writable=True)
    os.close(fd)
    assert shared_descriptors() == descriptors
    view = memory[10:20]
    del memory
    gc.collect()
    assert segments_named("going") == 1
    view[...] = 3
    del view
    gc.collect()
    assert segments_named("going") == 0


def test_a_mapping_that_cannot_be_is_an_oserror_with_its_size() -> None:
    fd = anonymous_file("readable", 4096)
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="cannot map 4096 bytes"):
            map_file(reading, 4096, writable=True)
    finally:
        os.close(reading)
        os.close(fd)


def test_anonymous_memory_has_no_name_in_any_directory() -> None:
    before = set(os.listdir("/dev/shm"))
    fd = anonymous_file("nameless", 1 << 20)
    try:
        assert set(os.listdir("/dev/shm")) == before
        assert os.fstat(fd).st_nlink == 0
        assert os.fstat(fd).st_size == 1 << 20
        assert os.fstat(fd).st_blocks == 0, "pages take memory before they are written"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_where_the_kernel_has_no_memfd_an_unlinked_file_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arena = Arena()
    numbers = np.arange(1000)
    loaded = arena.load(arena.store(numbers))
    arena.close()
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(loaded, numbers)


VALUES = {
    "array": np.arange(10_000),
    "fortran order": np.asfortranarray(np.arange(600).reshape(20, 30)),
    "strided": np.arange(1000)[::3],
    "no element": np.empty(0, np.float32),
    "no row": np.empty((0, 5), np.int64),
    "a scalar array": np.array(7),
    "many": {"a": np.arange(5, dtype=np.uint8), "b": [np.ones((3, 4), np.float32), np.empty(0)], "c": "text"},
    "no array": {"only": ["text", 3, None]},
    "long text": "x" * 300_000,
}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_stored_is_what_is_loaded(name: str) -> None:
    arena = Arena()
    stored = arena.store(VALUES[name])
    assert len(stored) < 1000, "what is sent must never fill a socket"
    other = Arena([os.dup(fd) for fd in arena.fds])
    for loaded in (arena.load(stored), other.load(stored)):
        np.testing.assert_equal(loaded, VALUES[name])
    assert other.size_bytes == arena.size_bytes >= 0
    arena.close()
    other.close()


def test_loaded_arrays_are_read_only_views_of_the_same_memory() -> None:
    arena = Arena()
    stored = arena.store(np.arange(1000))
    one, other = arena.load(stored), arena.load(stored)
    assert np.shares_memory(one, other)
    assert not one.flags.writeable
    writing = map_file(arena.fds[0], arena.size_bytes, writable=True)
    writing.view(np.int64)[3] = 77
    assert one[3] == other[3] == 77
    arena.close()


def test_what_another_process_writes_to_its_arrays_is_its_own() -> None:
    arena = Arena()
    stored = arena.store(np.arange(1000))
    one, other = (Arena([os.dup(fd) for fd in arena.fds]) for _ in range(2))
    array = one.load(stored)
    array[:] = 7
    np.testing.assert_array_equal(arena.load(stored), np.arange(1000))
    np.testing.assert_array_equal(other.load(stored), np.arange(1000))
    for each in (arena, one, other):
        each.close()


def test_an_array_that_lies_in_the_arena_is_not_written_again() -> None:
    arena = Arena()
    big = arena.load(arena.store(np.arange(100_000)))
    before = arena.size_bytes
    stored = arena.store({"all": big, "part": big[500:900], "new": np.arange(50)})
    assert arena.size_bytes - before < 2000
    again = arena.load(stored)
    assert np.shares_memory(again["all"], big)
    assert np.shares_memory(again["part"], big)
    np.testing.assert_array_equal(again["part"], np.arange(500, 900))
    np.testing.assert_array_equal(again["new"], np.arange(50))
    arena.close()


def test_pieces_appended_lie_one_after_the_other_in_the_arena() -> None:
    arena = Arena()
    together = arena.append(memoryview(piece) for piece in (b"one", b"", b"three"))
    assert together.tobytes() == b"onethree"
    assert np.shares_memory(arena.load(arena.store(together)), together)
    assert arena.append([]).tobytes() == b""
    arena.close()


def test_arrays_outlive_the_arena_and_closing_frees_its_descriptors() -> None:
    descriptors = shared_descriptors()
    arena = Arena()
    loaded = arena.load(arena.store(np.arange(1000)))
    assert len(shared_descriptors()) > len(descriptors)
    arena.close()
    arena.close()
    assert shared_descriptors() == descriptors
    assert loaded.sum() == 499_500


def test_a_collected_arena_leaves_no_descriptor() -> None:
    descriptors = shared_descriptors()
    arena = Arena()
    arena.store(np.arange(1000))
    del arena
    gc.collect()
    left = shared_descriptors()
    for entry in os.listdir("/proc/self/fd"):  # so that only this test fails
        path = f"/proc/self/fd/{entry}"
        if os.path.lexists(path) and "memfd:headrace-data" in os.readlink(path):
            os.close(int(entry))
    assert left == descriptors


def test_a_value_that_cannot_be_pickled_leaves_the_arena_as_it_was() -> None:
    arena = Arena()
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        arena.store({"array": np.arange(10), "function": lambda: None})
    assert arena.fds == []
    arena.close()


def test_another_process_maps_what_was_stored_and_copies_nothing() -> None:
    arena = Arena()
    stored = arena.store(np.arange(500_000))
    assert arena.load(stored).sum() > 0  # mapped here too, else the kernel counts the pages as the child's own
    script = (
        "import sys; from pipeline.shared import Arena\n"
        "fd, stored = int(sys.argv[1]), bytes.fromhex(sys.argv[2])\n"
        "array = Arena([fd]).load(stored); total = int(array.sum())\n"
        "maps = open('/proc/self/smaps').read().split('memfd:headrace-data')[1]\n"
        "private = sum(int(line.split()[1]) for line in maps.splitlines()[:20] if line.startswith('Private_Dirty'))\n"
        "print(total, private)\n"
    )
    command = [sys.executable, "-c", script, str(arena.fds[0]), stored.hex()]
    finished = subprocess.run(command, capture_output=True, text=True, pass_fds=arena.fds, timeout=60, check=False)
    arena.close()
    assert (finished.stdout, finished.stderr) == (f"{sum(range(500_000))} 0\n", "")


def test_a_million_paths_are_one_packed_piece_of_shared_memory() -> None:
    source = FileSource([f"images/{id:07d}.jpg" for id in range(20_000)], np.zeros(20_000))
    arena = Arena()
    copy = arena.load(arena.store(source))
    packed = 20_000 * (len("images/0000000.jpg") + 1 + 8 + 8)  # path, its end, label
    assert arena.size_bytes < 1.05 * packed
    assert [copy.where(id) for id in (0, 19_999)] == ["images/0000000.jpg", "images/0019999.jpg"]
    assert copy.fingerprint() == source.fingerprint()
    before = arena.size_bytes
    arena.store(copy)
    assert arena.size_bytes - before < 2000, "the packed paths were written twice"
    arena.close()
