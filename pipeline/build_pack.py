"""config.preload -> a pack file, opened or built, and the load from it. A part of `build.py`."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import PIL
import simplejpeg

from pipeline.build_estimate import in_gib, look_at_some
from pipeline.cache.load import Sample
from pipeline.cache.pack import PackKey, first_sample_byte
from pipeline.cache.pack_build import PackContents, open_or_build
from pipeline.cache.packed import PackedLoad
from pipeline.config import ConfigError, Preload, Transforms
from pipeline.preload import preload
from pipeline.sources import Source


def build_pack(
    source: Source,
    preloading: Preload,
    load: Callable[[int], Sample],
    *,
    decoded: bool,
    transforms: Transforms,
    num_threads: int,
    name: str,
    resources: ExitStack,
    passes_over: Callable[[Exception], bool] = lambda _: False,
) -> PackedLoad:
    """The load from the pack of `source` in `preload.dir`, which is built first if it has to be.

    Args:
        source: whose samples they are.
        preloading: the configuration's group.
        load: what is kept of a sample: its bytes, or if `decoded` its pixels.
        decoded: whether pixels are kept.
        transforms: what those pixels are made by, as far as it is done before they are kept.
        num_threads: threads that load and decode for a build.
        name: what is packed, for the file's name and the progress bar.
        resources: closes the pack.
        passes_over: the errors of samples that are not packed for them.
    """
    # Decoders of another version may make other pixels; whoever changes them must not get the old ones.
    decoders = f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}"
    kept_by = f"max_side {transforms.max_side}{_rendered(transforms)}"
    pixels = f"decoded, {kept_by}, {decoders}" if decoded else "encoded"
    fingerprint = source.fingerprint()
    path = pack_path(source, preloading, decoded=decoded, transforms=transforms, name=name)
    contents = PackContents(
        PackKey.of(fingerprint, pixels),
        len(source),
        load=load if decoded else partial(_only_bytes, load),
        stamp=source.stamp,
        where=source.where,
        passes_over=passes_over,
    )
    pack = open_or_build(
        path,
        contents,
        family=_family(name, decoded, transforms),
        each=lambda make, ids: preload(make, ids, num_threads=num_threads, name=name),
        check_room=partial(_check_room, path.parent, source, decoded=decoded, max_side=transforms.max_side),
    )
    resources.callback(pack.close)
    return PackedLoad(pack, load=load, stamp=source.stamp, where=source.where)


def pack_path(source: Source, preloading: Preload, *, decoded: bool, transforms: Transforms, name: str) -> Path:
    """Where the pack of `source` lies that `build_pack`, asked for the same, opens or builds."""
    family = _family(name, decoded, transforms)
    return Path(preloading.dir) / f"{family}{_whose(source, source.fingerprint())}.pack"


def _family(name: str, decoded: bool, transforms: Transforms) -> str:
    """How the names of packs begin that differ in their samples only."""
    if not decoded:
        return f"{name}-encoded-"
    max_side = "" if transforms.max_side is None else f"-{transforms.max_side}"
    return f"{name}-decoded{max_side}{_rendered(transforms).replace(' ', '-')}-"


def _rendered(transforms: Transforms) -> str:
    """What tells pixels of other backgrounds and colour profiles apart; nothing for the usual ones."""
    usual, rendered = Transforms(), ""
    if transforms.background != usual.background:
        rendered += " on {:02x}{:02x}{:02x}".format(*transforms.background)
    if transforms.icc != usual.icc:
        rendered += f" icc {transforms.icc}"
    return rendered


def _only_bytes(load: Callable[[int], Sample], id: int) -> bytes:
    sample = load(id)
    if not isinstance(sample, bytes):
        raise ConfigError(
            "preload=pack keeps encoded images and this source has none; use cache.store=decoded or preload=ram"
        )
    return sample


def _check_room(directory: Path, source: Source, *, decoded: bool, max_side: int | None) -> None:
    """Raise ConfigError if the disk of `directory` has less room than the pack is likely to need."""
    size_bytes = look_at_some(source.read, len(source), max_side).of(decoded=decoded)
    needed_bytes = first_sample_byte(len(source)) + len(source) * size_bytes
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes <= free_bytes or math.isinf(needed_bytes):  # what cannot be read is met at its place
        return
    cures = ["set preload.dir to another disk"]
    if decoded:
        cures += ["cache.store=encoded", "a lower transforms.max_side" if max_side else "transforms.max_side=..."]
    else:
        cures += ["preload=none"]
    raise ConfigError(
        f"preload=pack needs about {in_gib(needed_bytes)} GiB in {directory}, {in_gib(free_bytes)} GiB are free there; "
        f"{', '.join(cures[:-1])} or {cures[-1]}"
    )


def _whose(source: Source, fingerprint: str) -> str:
    """Tells sets apart that lie in different places, also if all their files have the same names."""
    ends = [os.path.abspath(source.where(id)) for id in (0, len(source) - 1)] if len(source) else []
    return hashlib.blake2b(repr((fingerprint, ends)).encode(), digest_size=8).hexdigest()
