"""What a trial is held against and charged with: references, and the whole process tree's CPU and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from samples import LoggedFiles
from trials import CPU, FakeClock, SlowFirst, assembled, config
from watching import environment

from pipeline.bench.memory import children_cpu_s, pss_mb
from pipeline.bench.peers.headrace import as_contender
from pipeline.bench.references import LIMIT_S, DecodeCeiling, resident_per_sec
from pipeline.bench.trial import Trial
from pipeline.sampler import ShuffleSampler
from pipeline.sources import ArraySource, FileSource

BURN = """
import sys, time
while time.process_time() < 0.3:
    pass
print("burnt", flush=True)
sys.stdin.read()
"""


def test_the_cpu_seconds_of_a_child_count_while_it_lives_and_after_it_has_ended() -> None:
    before_s = children_cpu_s()
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        alive_s = children_cpu_s() - before_s
        child.communicate()
    assert alive_s > 0.27  # whole ticks
    assert children_cpu_s() - before_s >= alive_s


def test_memory_is_that_of_all_processes() -> None:
    hold = "import sys; held = bytearray(b'x' * 50_000_000); print('held', flush=True); sys.stdin.read()"
    before_mb = pss_mb()
    if before_mb is None:
        pytest.skip("this system does not tell")
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        with_child_mb = pss_mb()
        child.communicate()
    assert with_child_mb is not None
    assert with_child_mb > before_mb + 45


def test_a_process_knows_how_long_it_has_been_there(tmp_path: Path) -> None:
    script = "import time; time.sleep(0.2); from pipeline.bench.memory import process_age_s; print(process_age_s())"
    began_s = time.monotonic()
    told = subprocess.check_output([sys.executable, "-c", script], text=True, env=environment(), cwd=tmp_path)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert 0.2 <= float(told) <= time.monotonic() - began_s + 2 * tick_s


def test_the_decode_ceiling_reads_and_decodes_each_file_that_it_counts(jpegs: list[Path], tmp_path: Path) -> None:
    source = LoggedFiles(jpegs, np.zeros(23), tmp_path / "log")
    ceiling = DecodeCeiling(source, ShuffleSampler(23, 0), num_threads=2)
    assert ceiling.samples_per_sec(10) > 0
    assert ceiling.samples_per_sec(13 + 23) > 0
    read = list(map(int, (tmp_path / "log").read_text().split()))
    assert ceiling.num_decoded == len(read) == 46
    assert sorted(read) == sorted([*range(23), *range(23)])


def test_the_decode_ceiling_decodes_whole_images(jpegs: list[Path], broken_jpeg: Path) -> None:
    source = FileSource([*jpegs, broken_jpeg], np.zeros(24))
    with pytest.raises(ValueError, match="truncated JPEG"):
        DecodeCeiling(source, ShuffleSampler(24, 0), num_threads=2).samples_per_sec(24)


def test_references_end_in_time_however_long_a_pass_is(jpegs: list[Path]) -> None:
    clock = FakeClock()
    source = SlowFirst(jpegs * 2000, clock)
    ceiling = DecodeCeiling(source, ShuffleSampler(len(source), 0), num_threads=1, clock=clock)
    ceiling.samples_per_sec(len(source))
    assert ceiling.num_decoded < LIMIT_S / 0.01 + 5
    batch = (np.zeros((4, 3, 2, 2), np.float32), [0, 1, 2, 3])
    assert resident_per_sec(batch, lambda *_: clock.advance(1), 1000, clock=clock) == pytest.approx(4)
    assert resident_per_sec(batch, lambda *_: clock.advance(0.5), 2, clock=clock) == pytest.approx(8)


def test_without_files_there_is_no_decode_ceiling(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((24, 20, 20, 3), np.uint8), np.zeros(24))
    cfg = config(tmp_path, bench={"warmup": 1})
    with assembled(source, cfg) as pipeline:
        trial = Trial(cfg, as_contender(pipeline, cfg, CPU), pipeline.source)
        trial.run(repeats=1, references=True)
    assert trial.repeats[0]["decode_ceiling_per_sec"] is None
    assert trial.repeats[0]["resident_per_sec"] > 0
