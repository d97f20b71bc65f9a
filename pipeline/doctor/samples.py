"""A few samples of each split: read, decoded, and what the disk would have to give for training's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.build_source import make_sampler
from pipeline.cache.load import Sample
from pipeline.config import OnError, PreloadMode
from pipeline.decode import Scratch
from pipeline.doctor.finding import Finding, error, ok, warning
from pipeline.doctor.plan import RunPlan
from pipeline.doctor.storage import Reading, read_cold_and_warm
from pipeline.draws import draws
from pipeline.machine import num_cores
from pipeline.sampler import ShuffleSampler, num_steps
from pipeline.sources import Source, is_remote

NUM_SAMPLES, NUM_EVALUATION_SAMPLES = 64, 16
MAX_NAMED = 3
"""Samples at fault that are named; of more the number is told."""
LIMIT_S = 3.0


@dataclass(slots=True)
class Decoded:
    """What making rows of some samples, on one thread, gave."""

    num_rows: int = 0
    failures: dict[int, Exception] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def rows_per_s(self) -> float:
        """Of one thread; of the samples that can be decoded."""
        return self.num_rows / self.elapsed_s


def check_samples(plan: RunPlan, source: Source) -> Iterator[Finding]:
    """Samples spread over `source`: which cannot be read or decoded, how fast the others are, and the disk."""
    count = min(NUM_SAMPLES, len(source))
    ids = ShuffleSampler(len(source), plan.cfg.seed).ids(0, np.arange(count)).tolist()
    reading = read_cold_and_warm(source, ids, num_threads=plan.num_loading)
    decoded = decode_some(plan, reading.first.samples)
    failures: dict[int, Exception] = {**reading.first.failures, **decoded.failures}
    num_tried = decoded.num_rows + len(failures)
    yield from _failures(plan, source, failures, num_tried=num_tried)
    if decoded.num_rows == 0:
        return
    left_out = f"; {count - num_tried} more would have taken too long" if num_tried < count else ""
    yield ok(
        "samples",
        f"{decoded.num_rows} of {num_tried} tried (of {len(source):,}) decoded to {plan.options(training=True).size} "
        f"pixels, {decoded.rows_per_s:,.0f} images/s on one thread{left_out}",
    )
    if is_remote(source.where(ids[0])):
        rates = f"{reading.first.mb_per_s:,.0f} MB/s at first, {reading.warm.mb_per_s:,.0f} again"
        yield ok("disk", f"the samples lie on a server, or in the cache of what was read: {rates}")
    elif len(source.files()) == 0:
        yield ok("disk", "nothing to read while training: the samples lie in memory")
    else:
        yield disk_finding(plan, reading, decoded.rows_per_s)


def check_evaluation_samples(plan: RunPlan, source: Source) -> Iterator[Finding]:
    """A few samples of the evaluation split: which cannot be read or decoded."""
    count = min(NUM_EVALUATION_SAMPLES, len(source))
    samples: dict[int, Sample] = {}
    failures: dict[int, Exception] = {}
    for id in ShuffleSampler(len(source), plan.cfg.seed).ids(0, np.arange(count)).tolist():
        try:
            samples[id] = source.read(id)
        except (OSError, ValueError) as failure:
            failures[id] = failure
    decoded = decode_some(plan, samples, training=False)
    failures |= decoded.failures
    yield from _failures(plan, source, failures, num_tried=decoded.num_rows + len(failures))
    if decoded.num_rows:
        tried = decoded.num_rows + len(failures)
        yield ok("samples", f"{decoded.num_rows} of {tried} tried of evaluation (of {len(source):,}) decoded")


def decode_some(
    plan: RunPlan, samples: dict[int, Sample], *, training: bool = True, limit_s: float = LIMIT_S
) -> Decoded:
    """Make the rows of `samples` as a worker would in epoch 0, for at most `limit_s`."""
    transform = plan.transform(training=training)
    row, scratch = np.empty(transform.row_shape, transform.row_dtype), Scratch()
    done = Decoded()
    # What happens once, the first sample pays for: it is made twice, and the second time counts.
    for is_timed, some in ((False, list(samples)[:1]), (True, list(samples))):
        began_s = time.perf_counter()
        for id in some:
            started_s = time.perf_counter()
            if started_s - began_s > limit_s:
                break
            own = draws(plan.cfg.seed, 0, np.array([id]), transform.num_draws)[0]
            try:
                transform(samples[id], own, row, scratch)
            except ValueError as failure:
                done.failures[id] = failure
                continue
            if is_timed:
                done.num_rows += 1
                done.elapsed_s += time.perf_counter() - started_s
    return done


def disk_finding(plan: RunPlan, reading: Reading, rows_per_s: float) -> Finding:
    """The rates of `reading`, and whether a run that decodes `rows_per_s` on each core would wait for the disk."""
    first, warm = reading.first, reading.warm
    if reading.why_not_cold is not None:
        return ok("disk", f"{warm.mb_per_s:,.0f} MB/s warm; cold not known: {reading.why_not_cold}")
    wanted = first.num_bytes / len(first.samples) * rows_per_s * min(plan.num_loading, num_cores()) / 1e6
    rates = f"{first.mb_per_s:,.0f} MB/s cold, {warm.mb_per_s:,.0f} warm"
    if first.mb_per_s >= wanted:
        return ok("disk", f"{rates}; decoding takes {wanted:,.0f}")
    if plan.cfg.preload.mode is not PreloadMode.none or plan.cfg.cache.policy != "none":
        return ok("disk", f"{rates}; decoding would take {wanted:,.0f}: the first pass over the files is the disk's")
    return warning(
        "disk", f"{rates}; decoding would take {wanted:,.0f} and wait for the disk; use preload=ram or cache=pinned"
    )


def check_labels(plan: RunPlan, train: Source, val: Source) -> Iterator[Finding]:
    """Whether a network can be trained with these labels in these batches; an exception says why it cannot."""
    from pipeline.training.checks import check_last_batch, num_classes_of

    cfg = plan.cfg
    num_classes = num_classes_of(cfg, train, val)
    check_last_batch(cfg, num_samples=len(train), world_size=plan.num_ranks)
    make_sampler(cfg.loader.sampler, train, cfg.seed)
    global_batch_size = cfg.loader.batch_size * plan.num_ranks
    if num_steps(len(train), global_batch_size, drop_last=cfg.loader.drop_last) == 0:
        yield error("labels", f"no batch of {global_batch_size} in {len(train)} samples; lower loader.batch_size")
        return
    yield ok("labels", f"{num_classes} classes, loader.sampler={cfg.loader.sampler}")


def _failures(plan: RunPlan, source: Source, failures: dict[int, Exception], *, num_tried: int) -> Iterator[Finding]:
    """The first samples at fault by name, then how many there are."""
    on_error = plan.cfg.data.on_error
    ends_run = on_error is OnError["raise"]
    make = error if ends_run else warning
    cure = "mend it, or take it out" if ends_run else f"data.on_error={on_error} will pass over it"
    for id in list(failures)[:MAX_NAMED]:
        where, words = source.where(id), str(failures[id])
        yield make("samples", f"{words if where in words else f'{where}: {words}'}; {cure}")
    if len(failures) > MAX_NAMED:
        yield make("samples", f"{len(failures)} of {num_tried} tried cannot be read or decoded")
    if not ends_run and len(failures) > plan.cfg.data.max_bad_fraction * len(source):
        yield error(
            "samples",
            f"{len(failures)} of {len(source):,} are more than data.max_bad_fraction="
            f"{plan.cfg.data.max_bad_fraction:g} allows; mend them, or raise it",
        )
