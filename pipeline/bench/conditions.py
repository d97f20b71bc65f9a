"""What numbers were measured under: the machine, the data, the versions, the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.bench.compare import Section
from pipeline.bench.labels import Labels
from pipeline.bench.sweep_dir import Trial
from pipeline.bench.wording import listing

_SHOWN_VERSIONS = ("headrace", "python", "torch", "torchvision", "simplejpeg", "opencv-python-headless", "pillow")
_FEW = 12
"""Characters of a fingerprint or a commit that are shown."""


def where(section: Section) -> str:
    """The machine and the data in a line; empty where no trial completed."""
    if not section.completed:
        return ""
    first = section.completed[0]
    host = first.result.get("host") or {}
    cores = host.get("num_usable_cores")
    machine = [host.get("processor"), f"{cores} usable core{'' if cores == 1 else 's'}" if cores else None]
    of = ", ".join(str(part) for part in machine if part)
    fingerprint = first.result.get("dataset")
    data = [f"{first.result['num_samples']:,} samples" if first.result.get("num_samples") else None]
    data.append(f"fingerprint {str(fingerprint)[:_FEW]}" if fingerprint else None)
    named = f"{host['name']} ({of})" if host.get("name") and of else host.get("name") or of
    return "; ".join(filter(None, (named, ", ".join(filter(None, data)))))


def how(section: Section) -> str:
    """Rounds, batches and warm-up in a line, of what all trials share; what they do not share the table shows."""
    trials = section.completed
    rounds = {len(trial.repeats) for trial in trials}
    parts = []
    if rounds:
        least, most = min(rounds), max(rounds)
        parts.append(f"{least if least == most else f'{least} to {most}'} round{'' if most == 1 else 's'}")
    batches, warmup = (_shared(trials, "bench", key) for key in ("batches", "warmup"))
    size = {trial.result.get("batch_size") for trial in trials}
    of = f" of {size.pop()}" if len(size) == 1 and None not in size else ""
    if batches is not ...:
        parts.append(f"{'a whole epoch' if batches is None else f'{batches} batches'}{of}")
    turns = _shared(trials, "bench", "turns")
    if turns not in (..., 1):
        parts[-1] += f" in each of {turns} turns"
    if warmup is not ...:
        parts.append(f"warm-up {warmup}" + ("" if warmup == "auto" else " batches"))
    mode = _shared(trials, "bench", "mode")
    if mode is not ...:
        parts.append("while training" if mode == "train" else "every batch read, nothing trained")
    threads = {(trial.result.get("host") or {}).get("num_torch_threads") for trial in trials}
    if len(threads) == 1 and None not in threads:
        parts.append(f"torch's own threads: {threads.pop()}")
    return ", ".join(parts)


def versions(section: Section) -> str:
    """Versions and commit of the first completed trial; others are a warning of their own."""
    if not section.completed:
        return ""
    first = section.completed[0].result
    found = first.get("versions") or {}
    parts = [f"{name} {found[name]}" for name in _SHOWN_VERSIONS if found.get(name)]
    commit = str(first.get("commit") or "")
    number, _, dirty = commit.partition("-")
    parts += [f"commit {number[:_FEW]}{'-' + dirty if dirty else ''}"] if commit else []
    return ", ".join(parts)


def differences(sections: Sequence[Section]) -> str:
    """Why there are several sections: what differs between them."""
    by_what: dict[str, list[str]] = {}
    for section in sections:
        for what, which in section.conditions:
            by_what.setdefault(what, []).append(which[:_FEW] if what == "data set" else which)
    said = [f"{what} ({' / '.join(dict.fromkeys(which))})" for what, which in by_what.items() if len(set(which)) > 1]
    return f"{len(sections)} sections, not compared with each other: they differ in {', '.join(said)}"


def title(labels: Labels) -> str:
    """What is compared."""
    return f"Images per second by {listing(labels.short_keys)}" if labels.keys else "Images per second"


def _shared(trials: Sequence[Trial], group: str, key: str) -> Any:
    """The value in all trials' configurations; ... where they differ or do not say."""
    found = [((trial.result.get("config") or {}).get(group) or {}).get(key, ...) for trial in trials]
    return found[0] if found and all(value == found[0] for value in found) else ...
