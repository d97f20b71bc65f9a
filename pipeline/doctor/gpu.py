"""The GPU, if there is one, and how fast batches travel to it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from pipeline.build_estimate import GIB, in_gib
from pipeline.doctor.finding import Finding, ok, warning
from pipeline.doctor.plan import RunPlan

_BUFFER_BYTES = 64 << 20
_NUM_COPIES = 4


def check_gpu(plan: RunPlan) -> Iterator[Finding]:
    """Its name, its free memory and the rate of copies from pinned memory; or that the CPU does the work."""
    if not torch.cuda.is_available():
        yield ok("GPU", "no CUDA device; run.device=auto takes the CPU")
        return
    index = torch.cuda.current_device() if plan.device.index is None else plan.device.index
    name = torch.cuda.get_device_name(index)
    if plan.device.type != "cuda":
        yield warning("GPU", f"{name} would be idle: run.device={plan.cfg.run.device}; use run.device=auto")
        return
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    rate = transfer_bytes_per_s(torch.device("cuda", index)) / GIB
    yield ok("GPU", f"{name}, {in_gib(free_bytes)} of {in_gib(total_bytes)} GiB free, {rate:.1f} GiB/s to it")


def transfer_bytes_per_s(device: torch.device) -> float:
    """The rate of copies of 64 MiB, 256 MiB in all, from pinned host memory to `device`."""
    on_host = torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(on_host, device=device, pin_memory=False)
    there.copy_(on_host)  # what happens once, at the first copy, is no part of the rate
    torch.cuda.synchronize(device)
    began_s = time.perf_counter()
    for _ in range(_NUM_COPIES):
        there.copy_(on_host, non_blocking=True)
    torch.cuda.synchronize(device)
    return _NUM_COPIES * _BUFFER_BYTES / (time.perf_counter() - began_s)
