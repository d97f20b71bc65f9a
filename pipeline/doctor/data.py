"""The data: whether it is there, what it is, and what looking at some of it tells."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from pipeline.build_source import open_source
from pipeline.config import Backend, Cifar10Data, Cifar100Data, Data, SyntheticData
from pipeline.doctor.finding import Finding, error, guarded, in_words, ok
from pipeline.doctor.memory import check_predicted_memory
from pipeline.doctor.plan import RunPlan
from pipeline.doctor.samples import check_evaluation_samples, check_labels, check_samples
from pipeline.loader.sample import Transform
from pipeline.pickling import check_picklable
from pipeline.sources import Source, Split


def check_data(plan: RunPlan) -> Iterator[Finding]:
    """Everything about the data. What the first run would generate or download is left to it."""
    yield from guarded("workers", check_sending, plan, plan.transform())
    first_run = made_by_first_run(plan.cfg.data)
    if first_run is not None:
        yield ok("data", first_run)
        yield from guarded("memory", check_predicted_memory, plan, {})
        return
    with ExitStack() as resources:
        try:
            sources = _open(plan, resources)
        except Exception as raised:
            yield error("data", in_words(raised))
            return
        train, val = sources["train"], sources["val"]
        yield ok("data", f"{len(train):,} images for training, {len(val):,} for evaluation")
        yield from guarded("workers", check_sending_source, plan, train)
        yield from guarded("labels", check_labels, plan, train, val)
        yield from guarded("samples", check_samples, plan, train)
        yield from guarded("samples", check_evaluation_samples, plan, val)
        yield from guarded("memory", check_predicted_memory, plan, sources)


def check_sending(plan: RunPlan, transform: Transform) -> Iterator[Finding]:
    """Whether `transform` can be sent to worker processes; TypeError, which names the part at fault, if not."""
    check_picklable(transform, "transforms", "use loader.backend=threads")
    told = f"{len(pickle.dumps(transform)) / 1e3:.1f} kB of transforms"
    how = f"are sent to each of {plan.workers}" if plan.backend is Backend.processes else f"for {plan.workers}"
    yield ok("workers", f"{told} {how}")


def check_sending_source(plan: RunPlan, source: Source) -> Iterator[Finding]:
    """Nothing, or TypeError if the run has worker processes that `source` cannot be sent to."""
    if plan.backend is Backend.processes:
        check_picklable(source, "source", "use loader.backend=threads")
    return iter(())


def made_by_first_run(data: Data) -> str | None:
    """That the data is not there yet and the first run makes it, in words; None: it is there, or is an error."""
    if isinstance(data, SyntheticData):
        from pipeline.sources.synthetic import is_generated

        seed = {"num_classes": data.num_classes, "seed": data.seed}
        if not is_generated(str(data.root), num_images=data.num_images, **seed):
            return f"{data.num_images:,} images are generated at the first run in {data.root}: nothing to look at yet"
    if isinstance(data, Cifar10Data | Cifar100Data) and data.download:
        from pipeline.sources.cifar import CIFAR10, CIFAR100

        published = CIFAR10 if isinstance(data, Cifar10Data) else CIFAR100
        if not published.is_complete(str(data.root)):
            return f"{published.name} is downloaded at the first run into {data.root}: nothing to look at yet"
    return None


def _open(plan: RunPlan, resources: ExitStack) -> Mapping[Split, Source]:
    splits: tuple[Split, ...] = ("train", "val")
    sources: dict[Split, Source] = {}
    for split in splits:
        source = sources[split] = open_source(plan.cfg.data, split)
        if hasattr(source, "close"):
            resources.callback(source.close)
    return sources
