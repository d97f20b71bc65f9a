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

from pipeline.bench.contenders import Contender, Stream, decode_only, headrace, torch_dataloader
from pipeline.build import Pipeline, build_pipeline
from pipeline.config import Bench, BenchConfig, ConfigError
from pipeline.training.checkpoint import replacing
from pipeline.training.compute import choose_device
from pipeline.training.environment import commit, host, plain, versions

PROJECT = "headrace"
DECODE_ONLY = "decode only"
CPU_TICK_S = 0.01
"""What the system counts CPU time in: a pass too short for one tick is taken to have used it."""
IDLE_CHECK_S, MAX_IDLE_CHECKS = 0.05, 100


@dataclass(slots=True)
class Measured:
    """One contender's timed passes."""

    samples_per_sec: list[float] = field(default_factory=list)
    samples_per_cpu_sec: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Own:
    """What only the configured pipeline is asked.

    `build_s` opens (at a first run: generates) and preloads; `first_batch_s` is from there to the first batch.
    `peak_pss_mb` is this process's proportional set size after its passes, in 10^6 bytes; its workers are threads.
    """

    build_s: float
    first_batch_s: float
    peak_pss_mb: float | None = None


def run_trial(cfg: BenchConfig, run_dir: Path) -> float:
    """Measure `cfg`, write `result.json` into `run_dir`, print a table, and return the median samples/s.

    Every contender gets a timed pass in every round, in turn, and consumes every batch. Sets torch's threads to one.
    """
    torch.set_num_threads(1)
    device = choose_device(cfg.run.device)
    began_s = time.perf_counter()
    with build_pipeline(cfg, split="train", device=device) as pipeline, ExitStack() as stack:
        if len(pipeline) == 0:
            raise ConfigError(
                f"loader.drop_last leaves no batch of {pipeline.num_samples} samples; use a smaller batch"
            )
        own = Own(build_s=time.perf_counter() - began_s, first_batch_s=_first_batch_s(pipeline))
        contenders = {PROJECT: stack.enter_context(headrace(pipeline, cfg))}
        num_workers, batch_size = pipeline.num_workers, cfg.loader.batch_size
        if isinstance(pipeline.source.read(0), bytes):
            contenders[DECODE_ONLY] = stack.enter_context(decode_only(pipeline.source, batch_size, num_workers))
        if "torch" in cfg.bench.compare:
            peer = torch_dataloader(pipeline.source, cfg, num_workers, device)
            contenders["torch"] = stack.enter_context(peer)
        measured = _rounds(contenders, own, cfg.bench, num_batches=cfg.bench.batches or len(pipeline))
        result = _result(cfg, pipeline, measured, own)
    with replacing(run_dir / "result.json") as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    sys.stdout.write(_table(result, run_dir))
    return float(result["samples_per_sec"])


def _first_batch_s(pipeline: Pipeline) -> float:
    began_s = time.perf_counter()
    next(iter(pipeline))
    return time.perf_counter() - began_s


def _rounds(contenders: dict[str, Contender], own: Own, bench: Bench, *, num_batches: int) -> dict[str, Measured]:
    measured = {name: Measured() for name in contenders}
    for contender in contenders.values():
        _consume(contender.stream, bench.warmup)
    for _ in range(bench.repeats):
        for name, (stream, num_ready) in contenders.items():
            _wait_until_idle()
            # What lies ready was made off the clock; it is taken off the clock as well.
            _consume(stream, num_ready)
            cpu_s, began_s = _cpu_s(), time.perf_counter()
            samples = _consume(stream, num_batches)
            wall_s, cpu_s = time.perf_counter() - began_s, _cpu_s() - cpu_s
            measured[name].samples_per_sec.append(samples / wall_s)
            measured[name].samples_per_cpu_sec.append(samples / max(cpu_s, CPU_TICK_S))
            if name == PROJECT:
                own.peak_pss_mb = max(filter(None, (own.peak_pss_mb, _pss_mb())), default=None)
    return measured


def _wait_until_idle() -> None:
    """Return when this process and its children rest, so that no contender's read-ahead is charged to the next."""
    for _ in range(MAX_IDLE_CHECKS):
        before_s = _cpu_s()
        time.sleep(IDLE_CHECK_S)
        if _cpu_s() - before_s <= CPU_TICK_S:
            return


def _consume(stream: Stream, num_batches: int) -> int:
    samples = 0
    for _ in range(num_batches):
        images = next(stream)
        images.sum()  # every byte is touched, as a model would
        samples += len(images)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return samples


def _cpu_s() -> float:
    """CPU seconds of this process and its living descendants."""
    process = psutil.Process()
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def _pss_mb() -> float | None:
    try:
        return float(psutil.Process().memory_full_info().pss) / 1e6
    except (AttributeError, psutil.Error):  # only Linux tells
        return None


def _result(
    cfg: BenchConfig,
    pipeline: Pipeline,
    measured: dict[str, Measured],
    own: Own,
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
        **plain(own),
        "cache_hit_pct": stats.get("cache_hit_pct"),
        "cache_bound_pct": stats.get("cache_bound_pct"),
        **{key: stats[key] for key in ("read_ms", "decode_ms", "transform_ms")},
        "num_workers": pipeline.num_workers,
        "num_samples": pipeline.num_samples,
        **ratios,
        "contenders": plain(measured),
        "served_from": _served_from(cfg),
        "resize": {PROJECT: str(pipeline.transforms.resize), "torch": "antialiased bilinear (Pillow)"},
        "layout": {PROJECT: "channels-last", "torch": "contiguous"},
        "dataset": pipeline.source.fingerprint(),
        "config": plain(cfg),
        "versions": versions(),
        "host": host(),
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
    lines += [
        f"per image: read {result['read_ms']:.2f} ms, decode {result['decode_ms']:.2f} ms, "
        f"transform {result['transform_ms']:.2f} ms; first batch {result['first_batch_s']:.2f} s",
        f"{PROJECT}: from {result['served_from']}, resize {result['resize'][PROJECT]}, channels-last",
    ]
    if "torch" in contenders:
        lines.append("torch: from files, resize antialiased (Pillow), contiguous")
    return "\n".join([*lines, f"report: {run_dir / 'result.json'}", ""])


def _served_from(cfg: BenchConfig) -> str:
    """Where samples come from while the clock runs: a cached row beside peers that read files must say so."""
    if cfg.preload.mode == "ram":
        return "memory (preload=ram)"
    behind = "a pack file" if cfg.preload.mode == "pack" else "files"
    return behind if cfg.cache.policy == "none" else f"cache={cfg.cache.policy} before {behind}"
