"""A source of the user's: what a function of theirs gives, checked before anything is built on it."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.named import said
from pipeline.sources.paths import AnyPath
from pipeline.sources.source import Source
from pipeline.sources.split import Split, in_split, require_samples
from pipeline.sources.subset import Subset

_METHODS = ("__len__", "read", "label", "where", "files", "fingerprint", "stamp")
_ATTRIBUTES = ("labels", "class_names")
_LABEL_TYPES = (np.int64, np.float32)


def open_own(
    factory: Callable[..., Any], *, name: str, root: AnyPath | None = None, split: Split, val_fraction: float = 0.1
) -> Source:
    """Returns the samples of one split of what `factory` gives.

    Args:
        factory: Called with those of the keywords `split`, `root` and `val_fraction` that it takes, and without `root`
            where that is None. If it does not take `split`, what it gives is divided by a hash of `where(id)`, without
            `root`.
        name: What messages call it: "package.module:function".
        root: Passed on; what it means is the factory's to say.
        split: Which part.
        val_fraction: Passed on, or used here where `factory` takes no `split`.

    Raises:
        ValueError: The factory takes other arguments, raises, or gives no source; the message names what is wrong.
    """
    place = f"data.factory={name}"
    keywords = _keywords(factory, place, split=split, root=root, val_fraction=val_fraction)
    try:
        source: Source = factory(**keywords)
    except Exception as error:
        raise ValueError(f"{place} gave no source when it was called: {said(error)}") from error
    _check_source(source, place)
    if "split" in keywords:
        return source
    prefix = "" if root is None else os.path.join(os.fsdecode(root), "")
    names = [source.where(id).removeprefix(prefix) for id in range(len(source))]
    kept = np.flatnonzero(in_split(names, split, val_fraction))
    require_samples(len(kept), split, place)
    return Subset(source, kept)


def _keywords(factory: Callable[..., Any], place: str, **offered: Any) -> dict[str, Any]:
    """Returns what of `offered` the factory is to be called with."""
    if not callable(factory):
        raise ValueError(f"{place} is {type(factory).__name__}, not a function; name one that gives a source")
    parameters = inspect.signature(factory).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {parameter.name for parameter in by_name if parameter.default is parameter.empty}
    needed |= {parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY}
    if needed - set(offered):
        raise ValueError(
            f"{place} needs {', '.join(sorted(needed - set(offered)))}, which nobody gives it: it is called with "
            f"{', '.join(offered)}, or those of them that it takes; give the others a default"
        )
    taken = {name: value for name, value in offered.items() if takes_all or name in {p.name for p in by_name}}
    if offered["root"] is None:
        if "root" in needed:
            raise ValueError(f"{place} needs root; add data.root=DIR, or give it a default")
        taken.pop("root", None)
    elif "root" not in taken:
        raise ValueError(f"data.root={offered['root']} has no use: {place} takes no root; leave it out")
    return taken


def _check_source(source: Source, place: str) -> None:
    """Raises ValueError for what is no source, as far as its attributes and its first sample show it.

    What the source itself raises is left as it is, with its traceback.
    """
    gave = f"{place} gave {type(source).__name__}"
    lacking = [name for name in _METHODS if not callable(getattr(source, name, None))]
    lacking += [name for name in _ATTRIBUTES if not hasattr(source, name)]
    if lacking:
        raise ValueError(f"{gave}, which has no {', '.join(lacking)}; a source has {', '.join(_METHODS + _ATTRIBUTES)}")
    if len(source) == 0:
        raise ValueError(f"{gave} of no samples; a split has at least one")
    labels: Any = source.labels
    if not isinstance(labels, np.ndarray) or labels.shape[:1] != (len(source),) or labels.dtype not in _LABEL_TYPES:
        raise ValueError(
            f"{gave} of {len(source)} samples whose labels are {_described(labels)}; they must be a NumPy array of "
            "int64 (classes) or float32 (values), one for each sample"
        )
    _check_answers(source, gave)


def _check_answers(source: Source, gave: str) -> None:
    try:
        sample: Any = source.read(0)
        stamp: Any = source.stamp(0)
    except OSError:
        sample, stamp = b"", 0  # a file's fault: `data.on_error` decides about it when its turn comes
    is_pixels = isinstance(sample, np.ndarray) and sample.dtype == np.uint8 and sample.shape[2:] == (3,)
    fingerprint, where = source.fingerprint(), source.where(0)
    for call, answer, is_right, wanted in (
        ("read(0)", sample, isinstance(sample, bytes) or is_pixels, "bytes of an image file, or uint8 (H, W, 3) RGB"),
        ("stamp(0)", stamp, isinstance(stamp, int) and 0 <= stamp < 2**64, "a whole number in [0, 2**64)"),
        ("where(0)", where, isinstance(where, str), "text that names the sample"),
        ("fingerprint()", fingerprint, isinstance(fingerprint, str), "text that names all samples and their order"),
    ):
        if not is_right:
            raise ValueError(f"{gave}, whose {call} gives {_described(answer)}; it must be {wanted}")


def _described(value: object) -> str:
    """Returns what `value` is, without what may be megabytes of it."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return repr(value) if isinstance(value, int | float) else type(value).__name__
