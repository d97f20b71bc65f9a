"""config.loader -> who makes the batches, and the memory they need. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

from pipeline.config import Backend, ConfigError
from pipeline.config import Loader as LoaderConfig
from pipeline.loader.executors import Executor, SerialExecutor, ThreadExecutor
from pipeline.loader.sample import MakeSample, Transform
from pipeline.loader.slots import max_slots, slot_bytes
from pipeline.machine import available_bytes
from pipeline.main_script import main_script_of
from pipeline.stats import Stats

if TYPE_CHECKING:
    from pipeline.shared import Arena


def resolve_backend(config: LoaderConfig, num_workers: int, *, prefers_processes: bool) -> Backend:
    """`threads` or `processes`; `auto` takes processes where the run prefers them and they can be had.

    Without workers it is `threads`, of which there are none: how workers would be does not matter then, so that
    `loader.num_workers=0,4` can be swept. Raises ConfigError for what cannot be.
    """
    if num_workers == 0:
        return Backend.threads
    can_share = sys.platform != "win32"
    if config.backend is Backend.processes and not can_share:
        raise ConfigError("loader.backend=processes needs memory that Windows lacks; use loader.backend=threads")
    wanted = config.backend
    if wanted is Backend.auto:
        wanted = Backend.processes if prefers_processes and can_share else Backend.threads
    if wanted is Backend.threads and config.threads_per_worker != 1:
        raise ConfigError(
            f"loader.threads_per_worker={config.threads_per_worker} is for worker processes; "
            "use loader.backend=processes, or more loader.num_workers"
        )
    return wanted


def describe_workers(config: LoaderConfig, num_workers: int, backend: Backend) -> str:
    """Who makes batches, for people: "2 worker processes of 2 threads"."""
    if num_workers == 0:
        return "no workers"
    kind = "worker process" if backend is Backend.processes else "worker thread"
    many = "" if num_workers == 1 else "es" if backend is Backend.processes else "s"
    threads = f" of {config.threads_per_worker} threads" if config.threads_per_worker > 1 else ""
    return f"{num_workers} {kind}{many}{threads}"


def build_executor(
    config: LoaderConfig,
    num_workers: int,
    sample: MakeSample,
    arena: Arena | None,
    *,
    where: Callable[[int], str],
    stats: Stats,
) -> Executor:
    """Serial, threads, or, where there is an `arena`, processes that find what `sample` refers to there."""
    if num_workers == 0:
        return SerialExecutor(sample)
    if arena is None:
        return ThreadExecutor(
            sample,
            num_workers=num_workers,
            in_flight=config.prefetch_factor,
            where=where,
            stall_timeout_s=config.stall_timeout_s,
        )
    from pipeline.loader.processes import ProcessExecutor  # not above: it needs what Windows lacks

    return ProcessExecutor(
        sample,
        arena,
        num_workers=num_workers,
        threads_per_worker=config.threads_per_worker,
        in_flight=config.prefetch_factor,
        where=where,
        stats=stats,
        max_restarts=config.max_restarts,
        stall_timeout_s=config.stall_timeout_s,
        script=main_script_of(sample.transform),
    )


class NoRoomError(ConfigError):
    """Batches in flight do not fit into memory. `size_key` is the key that images have their size from."""

    def __init__(self, needs: str, *, size_key: str = "transforms.size") -> None:
        super().__init__(f"{needs}; lower loader.batch_size, loader.prefetch_factor or {size_key}")
        self.needs = needs


def check_memory(config: LoaderConfig, num_workers: int, transform: Transform) -> int:
    """The bytes that slots will take. NoRoomError if this machine, or its control group, has no room for them."""
    in_flight = config.prefetch_factor if num_workers else SerialExecutor.in_flight
    a_slot = slot_bytes(transform.row_shape, transform.row_dtype, config.batch_size)
    needed, available = a_slot * max_slots(in_flight), available_bytes()
    if needed > available:
        raise NoRoomError(
            f"batches in flight need {needed:,} bytes ({max_slots(in_flight)} slots of {config.batch_size} "
            f"images of {prod(transform.row_shape) * transform.row_dtype.itemsize:,} bytes) and {available:,} are "
            "available"
        )
    return needed
