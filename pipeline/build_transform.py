"""config.transforms, or a user's callable -> what makes a row of a sample. A part of `build.py`."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Backend, ConfigError, Transforms
from pipeline.loader.read import Decoding
from pipeline.loader.sample import Transform
from pipeline.pickling import check_picklable
from pipeline.sources import Source
from pipeline.transforms.crops import transform_of
from pipeline.transforms.sample import rendering_of, shrink_to

if TYPE_CHECKING:
    from PIL import Image

PROBED = 32
"""Samples looked at, at most, to find one that can be decoded."""


def build_transform(
    options: Transforms,
    function: Callable[[Image.Image], Any] | None,
    *,
    normalise: bool,
    memory_format: str,
    source: Source,
    backend: Backend,
    num_workers: int,
    threads_per_worker: int,
    prefetches: bool,
) -> Transform:
    """The built-in transforms that `options` names, or `function` in their place.

    Args:
        options: of the configuration; of them only `max_side`, `background` and `icc` hold for a `function`.
        function: a user's callable, from a `PIL.Image` to a (3, H, W) tensor or array.
        normalise: float32 rows, coloured and normalised, rather than uint8 ones; a `function` decides for itself.
        memory_format: of the rows, `channels_last` or `contiguous`.
        source: one sample of it shows what `function` returns.
        backend: where it will run.
        num_workers: how many of them; 0: the consumer's thread makes batches, or that of a prefetcher.
        threads_per_worker: of worker processes.
        prefetches: batches are asked for in a thread of ours, and not in the consumer's.
    """
    if function is None:
        return transform_of(options, normalise=normalise, memory_format=memory_format)
    from pipeline.transforms.callables import CallableTransform, Seeding, check_callable, probe  # seldom wanted

    check_callable(function)
    if backend is Backend.processes:
        cure = 'make it a function or class at the top level of a module, or use backend="threads"'
        check_picklable(function, "transform", cure)
    # Tried on a copy where one will be sent: what a call leaves in it, a lock or a handle, must not travel.
    tried = pickle.loads(pickle.dumps(function)) if backend is Backend.processes else function
    id, pixels = _first_image(source, options)
    try:
        probed = probe(tried, pixels, memory_format=memory_format)
    except Exception as error:
        error.add_note(f"when transform was tried out in this process, sample id {id}, {source.where(id)}")
        raise
    if not probed.is_repeatable:
        warnings.warn(
            "transform gave two results for one image and one seed: it keeps a generator or a state of its own, so its "
            "results depend on the number of workers; draw from random, numpy.random or torch",
            stacklevel=4,
        )
    if backend is Backend.processes:
        if probed.draws_globally and threads_per_worker > 1:
            raise ConfigError(
                f"loader.threads_per_worker={threads_per_worker} with a transform that draws from global "
                "random generators: threads of one worker would share them; use 1, and more loader.num_workers"
            )
        seeding = Seeding.own if threads_per_worker == 1 else Seeding.none
    elif num_workers == 0 and not prefetches:
        seeding = Seeding.borrowed
    else:
        seeding = Seeding.none
        if probed.draws_globally:
            warnings.warn(
                "transform draws from global random generators, which threads share: its results differ from run to "
                "run; use loader.backend=processes with loader.num_workers >= 1",
                stacklevel=4,
            )
    return CallableTransform(
        function, row=probed.row, seeding=seeding, max_side=options.max_side, rendering=rendering_of(options)
    )


def _first_image(source: Source, options: Transforms) -> tuple[int, NDArray[np.uint8]]:
    """Id and upright RGB pixels of the first sample that can be decoded, as the callable will see them."""
    load = Decoding(source.read, source.where, rendering=rendering_of(options))
    failures: list[Exception] = []
    for id in range(min(PROBED, len(source))):
        try:
            pixels = load(id)
        except (OSError, ValueError) as error:  # the loop that wants this sample meets the error, at its place
            failures.append(error)
        else:
            return id, shrink_to(pixels, options.max_side)
    raise ConfigError(
        f"transform cannot be tried out: none of the first {len(failures)} samples can be decoded; "
        f"the first of them: {failures[0] if failures else 'there is none'}"
    )
