"""config.data -> an open source, the order of its samples, and their identity. A part of `build.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline.config import (
    ArraysData,
    Cifar10Data,
    Cifar100Data,
    ConfigError,
    Data,
    FolderData,
    ManifestData,
    OnError,
    OwnData,
    ParquetData,
    Place,
    Reachable,
    SamplerName,
    SyntheticData,
    TarData,
    Transforms,
)
from pipeline.loader.bad import Tolerance
from pipeline.machine import release_freed_memory
from pipeline.named import import_named
from pipeline.pickling import check_picklable
from pipeline.quarantine import BadSamples, Quarantine
from pipeline.sampler import Sampler, SequentialSampler, ShuffleSampler, WeightedSampler, balanced_weights
from pipeline.sources import (
    Remote,
    Source,
    Split,
    at_most,
    is_remote,
    open_arrays,
    open_cifar10,
    open_cifar100,
    open_folder,
    open_manifest,
    open_own,
    open_parquet,
    open_remote_folder,
    open_remote_manifest,
    open_synthetic,
    open_tar,
)

if TYPE_CHECKING:
    from pipeline.shared import Arena


def open_source(data: Data, split: Split) -> Source:
    """The samples of `split`, as many as `data` allows. Synthetic data is generated first if it is not there.

    With a `data.factory` the user's module is imported and their code runs.

    Raises ConfigError for data that is not what the configuration says it is.
    """
    max_samples = data.max_samples if split == "train" else data.max_val_samples
    try:
        source = at_most(_open_source(data, split), max_samples)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    release_freed_memory()  # of lists and arrays that became the source
    return source


def _open_source(data: Data, split: Split) -> Source:
    if isinstance(data, SyntheticData):
        return open_synthetic(
            str(data.root),
            num_images=data.num_images,
            num_classes=data.num_classes,
            seed=data.seed,
            split=split,
            val_fraction=data.val_fraction,
        )
    if isinstance(data, Reachable) and any(map(is_remote, _places(data))):
        return _open_remote(data, split)
    if isinstance(data, FolderData):
        return open_folder(data.root, split=split, val_fraction=data.val_fraction)
    if isinstance(data, ManifestData):
        return open_manifest(data.path, root=data.root, split=split, val_fraction=data.val_fraction)
    if isinstance(data, TarData):
        return open_tar(data.pattern, split=split, val_fraction=data.val_fraction)
    if isinstance(data, ParquetData):
        return _open_parquet(data, split)
    if isinstance(data, ArraysData):
        return open_arrays(
            data.images,
            data.labels,
            val_images=data.val_images,
            val_labels=data.val_labels,
            split=split,
            val_fraction=data.val_fraction,
        )
    if isinstance(data, Cifar10Data):
        return open_cifar10(str(data.root), split=split, download=data.download)
    if isinstance(data, Cifar100Data):
        return open_cifar100(str(data.root), split=split, coarse=data.coarse, download=data.download)
    if isinstance(data, OwnData):
        factory: Any = import_named("data.factory", data.factory)
        return open_own(factory, name=data.factory, root=data.root, split=split, val_fraction=data.val_fraction)
    raise TypeError(f"no source is known for {type(data).__name__}")


def _open_parquet(data: ParquetData, split: Split, remote: Remote | None = None) -> Source:
    return open_parquet(
        data.pattern,
        val_pattern=data.val_pattern,
        image=data.image,
        label=data.label,
        split=split,
        val_fraction=data.val_fraction,
        remote=remote,
    )


def _places(data: Reachable) -> list[str]:
    """The paths and URLs that `data` names."""
    return [place for name in ("root", "path", "pattern") if (place := getattr(data, name, None)) is not None]


def _open_remote(data: Reachable, split: Split) -> Source:
    remote = Remote(
        cache_dir=data.remote_cache_dir,
        cache_bytes=int(data.remote_cache_gib * 2**30),
        timeout_s=data.remote_timeout_s,
        num_tries=data.remote_tries,
    )
    with ExitStack() as failed:
        failed.callback(remote.close)
        source = _opened_remote(data, split, remote)
        failed.pop_all()
    return source


def _opened_remote(data: Reachable, split: Split, remote: Remote) -> Source:
    try:
        if isinstance(data, TarData):
            return open_tar(data.pattern, split=split, val_fraction=data.val_fraction, remote=remote)
        if isinstance(data, ParquetData):
            return _open_parquet(data, split, remote)
        if isinstance(data, ManifestData):
            return open_remote_manifest(
                data.path, root=data.root, remote=remote, split=split, val_fraction=data.val_fraction
            )
        return open_remote_folder(str(data.root), remote=remote, split=split, val_fraction=data.val_fraction)
    except OSError as error:
        raise ConfigError(f"{error}; check the URL, the connection and data.remote_*") from error


def build_bad(
    data: Data, source: Source, *, name: str, world_size: int, quarantine: Quarantine | None
) -> BadSamples | None:
    """Who keeps the names of the bad samples of `source`, called `name`; None where the first one raises."""
    if data.on_error is OnError["raise"]:
        return None
    return BadSamples(
        split=name,
        num_samples=len(source),
        max_fraction=data.max_bad_fraction,
        where=source.where,
        quarantine=quarantine,
        checks_itself=world_size == 1,
    )


def tolerance_of(data: Data, num_samples: int, seed: int) -> Tolerance:
    """What `data.on_error`, which does not raise, makes of bad samples."""
    return Tolerance(replaced_from=num_samples if data.on_error is OnError.replace else None, seed=seed)


def make_sampler(name: SamplerName, source: Source, seed: int) -> Sampler:
    """The order named by `loader.sampler` over `source`."""
    if name is SamplerName.sequential:
        return SequentialSampler(len(source))
    if name is SamplerName.shuffle:
        return ShuffleSampler(len(source), seed)
    weights = balanced_weights(source.labels) if name is SamplerName.balanced else getattr(source, "weights", None)
    if weights is None:
        raise ConfigError("loader.sampler=weighted needs weights; use data=manifest with a weight column")
    return WeightedSampler(weights, seed)


def order_fingerprint(
    source: Source, sampler: SamplerName, transforms: Transforms, function: Callable[..., Any] | None
) -> str:
    """Identity of what a state belongs to: samples, order and every option that decides pixels.

    Of a user's callable only the name is known, not what it does.
    """
    weights = getattr(source, "weights", None) if sampler is SamplerName.weighted else None
    parts = [source.fingerprint(), str(sampler), asdict(replace(transforms, place=Place.auto))]  # where is not what
    if function is not None:
        kind = function if hasattr(function, "__qualname__") else type(function)
        parts.append(kind.__qualname__)
    digest = hashlib.blake2b(repr(tuple(parts)).encode(), digest_size=16)
    digest.update(b"" if weights is None else weights.tobytes())
    return digest.hexdigest()


def in_shared_memory(source: Source, resources: ExitStack, *, reserved_bytes: int) -> tuple[Source, Arena]:
    """A copy of `source` whose arrays lie in memory that worker processes map; nothing here refers to the original."""
    from pipeline.shared import Arena  # not above: it needs what Windows lacks

    check_picklable(source, "source", 'use backend="threads"')
    arena = Arena(reserved_bytes=reserved_bytes)
    shared: Source = arena.load(arena.store(source))
    resources.close()  # all there is yet is the original's
    resources.callback(arena.close)
    if hasattr(shared, "close"):
        resources.callback(shared.close)
    return shared, arena
