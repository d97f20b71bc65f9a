"""The memory that loading is predicted to take, against what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from pipeline.build_budget import StorePlan, free_bytes, promised
from pipeline.build_estimate import in_gib
from pipeline.build_loader import check_memory
from pipeline.cache.private_store import PrivateStore
from pipeline.config import Backend, CachePolicy, PreloadMode, Store
from pipeline.doctor.finding import Finding, ok, warning
from pipeline.doctor.plan import RunPlan
from pipeline.sources import Source, Split

_WORKER_BYTES = 40 << 20
"""Unshared memory of a worker process with the built-in transforms; 25 to 45 MB were measured."""

_CURES = {
    "slots": "lower loader.batch_size or loader.prefetch_factor",
    "images kept": "lower cache.max_gib, or use cache.store=encoded",
    "workers": "lower loader.num_workers, or use loader.backend=threads",
}


def check_predicted_memory(plan: RunPlan, sources: Mapping[Split, Source]) -> Iterator[Finding]:
    """Slots, stores and workers of all ranks; without `sources` no stores.

    ConfigError, in the words of the run, where it would refuse to begin.
    """
    available_bytes = free_bytes()
    splits: tuple[Split, ...] = ("train", "val")
    slots = [
        check_memory(plan.cfg.loader, plan.num_workers, plan.transform(training=name == "train")) for name in splits
    ]
    num_processes = len(splits) * plan.num_workers if plan.backend is Backend.processes else 0
    parts = {
        "slots": plan.num_ranks * sum(slots),
        "images kept": _kept_bytes(plan, sources),
        "workers": plan.num_ranks * num_processes * _WORKER_BYTES,
    }
    needed_bytes = sum(parts.values())
    shares = ", ".join(f"{in_gib(size_bytes)} {name}" for name, size_bytes in parts.items() if size_bytes)
    told = f"{in_gib(needed_bytes)} GiB for loading ({shares}) of {in_gib(available_bytes)} GiB available"
    if needed_bytes > available_bytes:
        yield warning("memory", f"{told}; {_CURES[max(parts, key=lambda name: parts[name])]}")
    else:
        yield ok("memory", f"{told}; the network's own comes on top")


def _kept_bytes(plan: RunPlan, sources: Mapping[Split, Source]) -> int:
    """What the stores of all ranks are likely to take in the end, each planned beside those before it."""
    kept_bytes = 0
    with ExitStack() as promises:
        for name, source in sources.items():
            store_plan = plan_store(plan, source, name)
            if store_plan is None:
                continue
            settings = store_plan.settings()
            promises.enter_context(promised(PrivateStore(settings), store_plan.likely_bytes))
            kept_bytes += store_plan.likely_bytes * store_plan.num_stores
    return kept_bytes


def plan_store(plan: RunPlan, source: Source, split: Split) -> StorePlan | None:
    """The plan of the store that a run would make for `source`; None where it would make none."""
    cfg = plan.cfg
    is_preload = cfg.preload.mode is PreloadMode.ram
    policy = CachePolicy.pinned if is_preload else cfg.cache.policy
    maps_pixels = cfg.preload.mode is PreloadMode.pack and cfg.cache.store is Store.decoded
    if policy is CachePolicy.none or maps_pixels:
        return None
    return StorePlan(
        cache=cfg.cache,
        transforms=plan.options(training=split == "train"),
        policy=policy,
        is_preload=is_preload,
        name=split,
        read=source.read,
        num_samples=len(source),
        num_stores=plan.num_ranks if policy is CachePolicy.lru else 1,
    )
