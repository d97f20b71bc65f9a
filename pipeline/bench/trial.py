"""One trial: the configured pipeline's throughput, beside a ceiling and peers, in interleaved rounds."""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.bench.contenders import Stream, decode_stream, headrace_stream, torch_stream
from pipeline.build import Pipeline, build_pipeline
from pipeline.config import BenchConfig
from pipeline.machine import num_cores
from pipeline.training.checkpoint import replacing
from pipeline.training.compute import choose_device
from pipeline.training.environment import commit, host, plain, versions

PROJECT = "headrace"
CEILING = "decode ceiling"
CPU_TICK_S = 0.01
"""What the system counts CPU time in: a pass too short for one tick is taken to have used it."""


@dataclass(slots=True)
class Measured:
    """One contender's timed passes."""

    samples_per_sec: list[float] = field(default_factory=list)
    samples_per_cpu_sec: list[float] = field(default_factory=list)


def run_trial(cfg: BenchConfig, run_dir: Path) -> float:
    """Measure `cfg`, write `result.json` into `run_dir`, print a table, and return the median samples/s.

    Every contender gets a timed pass in every round, in turn, and consumes every batch. Sets torch's threads to one.
    """
    torch.set_num_threads(1)
    device = choose_device(cfg.run.device)
    began = time.perf_counter()
    with build_pipeline(cfg, split="train", device=device) as pipeline:
        first_batch_s = _first_batch_s(pipeline, began)
        num_batches = cfg.bench.batches or len(pipeline)
        with ExitStack() as stack:
            streams: dict[str, Stream] = {PROJECT: stack.enter_context(headrace_stream(pipeline))}
            workers = (cfg.loader.batch_size, pipeline.num_workers)
            if isinstance(pipeline.source.read(0), bytes):
                streams[CEILING] = stack.enter_context(decode_stream(pipeline.source, *workers))
            if "torch" in cfg.bench.compare:
                streams["torch"] = stack.enter_context(torch_stream(pipeline.source, cfg, pipeline.num_workers))
            measured = _rounds(streams, cfg.bench.repeats, warmup=cfg.bench.warmup, num_batches=num_batches)
            peak_pss_mb = _pss_mb()
        result = _result(cfg, pipeline, measured, first_batch_s=first_batch_s, peak_pss_mb=peak_pss_mb)
    with replacing(run_dir / "result.json") as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    sys.stdout.write(_table(result, run_dir))
    return float(result["samples_per_sec"])


def _first_batch_s(pipeline: Pipeline, began: float) -> float:
    iterator = iter(pipeline)
    next(iterator)
    return time.perf_counter() - began


def _rounds(streams: dict[str, Stream], repeats: int, *, warmup: int, num_batches: int) -> dict[str, Measured]:
    measured = {name: Measured() for name in streams}
    for stream in streams.values():
        _consume(stream, warmup)
    for _ in range(repeats):
        for name, stream in streams.items():
            # What lay ready while others were measured is taken first: it was made off the clock.
            _consume(stream, min(warmup, 4))
            cpu_s, wall_s = _cpu_s(), time.perf_counter()
            samples = _consume(stream, num_batches)
            wall_s, cpu_s = time.perf_counter() - wall_s, _cpu_s() - cpu_s
            measured[name].samples_per_sec.append(samples / wall_s)
            measured[name].samples_per_cpu_sec.append(samples / max(cpu_s, CPU_TICK_S))
    return measured


def _consume(stream: Stream, num_batches: int) -> int:
    samples = 0
    for _ in range(num_batches):
        images = next(stream)
        images.sum()  # every byte is touched, as a model would
        samples += len(images)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return samples


def _family() -> list[psutil.Process]:
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def _cpu_s() -> float:
    """CPU seconds of this process and its living descendants."""
    times = [process.cpu_times() for process in _family()]
    return sum(time.user + time.system for time in times)


def _pss_mb() -> float | None:
    """Proportional set size of this process and its descendants now, all contenders included, in 10^6 bytes."""
    try:
        return sum(process.memory_full_info().pss for process in _family()) / 1e6
    except (AttributeError, psutil.Error):  # only Linux tells
        return None


def _result(
    cfg: BenchConfig,
    pipeline: Pipeline,
    measured: dict[str, Measured],
    *,
    first_batch_s: float,
    peak_pss_mb: float | None,
) -> dict[str, Any]:
    ours = measured[PROJECT]
    stats = pipeline.stats()
    ratios = {
        f"vs_{name.replace(' ', '_')}": statistics.median(
            mine / theirs for mine, theirs in zip(ours.samples_per_sec, other.samples_per_sec, strict=True)
        )
        for name, other in measured.items()
        if name != PROJECT
    }
    return {
        "status": "completed",
        "samples_per_sec": statistics.median(ours.samples_per_sec),
        "samples_per_sec_min": min(ours.samples_per_sec),
        "samples_per_sec_max": max(ours.samples_per_sec),
        "samples_per_cpu_sec": statistics.median(ours.samples_per_cpu_sec),
        "first_batch_s": first_batch_s,
        "peak_pss_mb": peak_pss_mb,
        "cache_hit_pct": stats.get("cache_hit_pct"),
        **{key: stats[key] for key in ("read_ms", "decode_ms", "transform_ms")},
        "num_workers": pipeline.num_workers,
        "num_samples": pipeline.num_samples,
        **ratios,
        "contenders": plain(measured),
        "resize": {PROJECT: str(pipeline.transforms.resize), "torch": "antialiased bilinear (Pillow)"},
        "dataset": pipeline.source.fingerprint(),
        "config": plain(cfg),
        "versions": versions(),
        "host": host() | {"num_usable_cores": num_cores()},
        "commit": commit(),
    }


def _table(result: dict[str, Any], run_dir: Path) -> str:
    contenders: dict[str, dict[str, list[float]]] = result["contenders"]
    lines = [f"{'':16}{'images/s':>10}{'least':>10}{'greatest':>10}{'per CPU-s':>11}{'ours / it':>11}"]
    for name, row in contenders.items():
        rates = row["samples_per_sec"]
        ratio = result.get(f"vs_{name.replace(' ', '_')}")
        lines.append(
            f"{name:16}{statistics.median(rates):10,.0f}{min(rates):10,.0f}{max(rates):10,.0f}"
            f"{statistics.median(row['samples_per_cpu_sec']):11,.0f}" + (f"{ratio:11.2f}" if ratio else f"{'':>11}")
        )
    lines.append(
        f"per image: read {result['read_ms']:.2f} ms, decode {result['decode_ms']:.2f} ms, "
        f"transform {result['transform_ms']:.2f} ms; first batch {result['first_batch_s']:.2f} s"
    )
    return "\n".join([*lines, f"report: {run_dir / 'result.json'}", ""])
