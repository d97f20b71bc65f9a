"""Cores and memory as control groups grant them, read from a tree of files like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pipeline.machine import available_bytes, num_cores

MIB = 2**20


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def cgroups(tmp_path: Path) -> tuple[Path, Path]:
    """A version 2 tree: this process in /job/step, limited at /job."""
    proc, root = tmp_path / "cgroup", tmp_path / "sys"
    proc.write_text("0::/job/step\n")
    write(
        root / "job",
        memory__max=str(100 * MIB),
        memory__current=str(40 * MIB),
        memory__stat=f"anon 5\ninactive_file {10 * MIB}",
        cpu__max="150000 100000",
    )
    write(root / "job/step", memory__max="max", memory__current="0", memory__stat="", cpu__max="max 100000")
    return proc, root


def test_memory_is_what_the_tightest_parent_leaves_its_inactive_page_cache_included(
    cgroups: tuple[Path, Path],
) -> None:
    proc, root = cgroups
    assert available_bytes(proc_cgroup=proc, cgroup_root=root) == 70 * MIB


def test_a_group_above_its_limit_leaves_nothing_rather_than_less(cgroups: tuple[Path, Path]) -> None:
    proc, root = cgroups
    write(root / "job", memory__current=str(500 * MIB))
    assert available_bytes(proc_cgroup=proc, cgroup_root=root) == 0


def test_version_1_groups_are_read_too(tmp_path: Path) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "sys"
    proc.write_text("5:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n")
    write(
        root / "memory/job",
        memory__limit_in_bytes=str(50 * MIB),
        memory__usage_in_bytes=str(20 * MIB),
        memory__stat=f"inactive_file 1\ntotal_inactive_file {MIB}",
    )
    write(root / "cpu/job", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert available_bytes(proc_cgroup=proc, cgroup_root=root) == 31 * MIB
    assert num_cores(proc_cgroup=proc, cgroup_root=root) == 1


def test_without_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    available = available_bytes(proc_cgroup=nothing, cgroup_root=nothing)
    assert 0 < available <= psutil.virtual_memory().total
    assert num_cores(proc_cgroup=nothing, cgroup_root=nothing) == len(os.sched_getaffinity(0))


def test_a_quota_of_one_and_a_half_cores_keeps_one_busy(cgroups: tuple[Path, Path]) -> None:
    proc, root = cgroups
    assert num_cores(proc_cgroup=proc, cgroup_root=root) == 1


@pytest.mark.parametrize(("cpu", "memory"), [("", ""), ("max", "max"), ("50000 0", "nonsense here"), ("1", "max")])
def test_what_cannot_be_read_is_no_limit(cpu: str, memory: str, cgroups: tuple[Path, Path]) -> None:
    proc, root = cgroups
    proc.write_text("\nrubbish\n0::/job/step\n")
    write(root / "job", cpu__max=cpu, memory__max=memory)
    assert num_cores(proc_cgroup=proc, cgroup_root=root) == len(os.sched_getaffinity(0))
    assert available_bytes(proc_cgroup=proc, cgroup_root=root) > 200 * MIB


def test_a_memory_limit_counts_where_there_are_no_statistics(cgroups: tuple[Path, Path]) -> None:
    proc, root = cgroups
    (root / "job/memory.stat").unlink()
    assert available_bytes(proc_cgroup=proc, cgroup_root=root) == 60 * MIB
