"""What tells the synthetic classes apart: ten silhouettes and ten patterns, a class being one of each.

Both are functions of (u, v), a place on the object in units of its radius. Ten classes share no silhouette and no
pattern; a hundred use every pair once.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.floating[Any]]
"""float32 throughout; NumPy's types call its product with a Python float float64."""

NUM_MOTIFS = 100


def motif_names(num_classes: int) -> tuple[str, ...]:
    """Returns a name for each of the first `num_classes` motifs; sorted, they keep the order of the motifs."""
    digits = len(str(num_classes - 1))
    shapes, coats = tuple(_SILHOUETTES), tuple(_PATTERNS)
    parts = map(_parts, range(num_classes))
    return tuple(f"{motif:0{digits}d}-{shapes[s]}-{coats[p]}" for motif, (s, p) in enumerate(parts))


def silhouette(motif: int, u: Field, v: Field) -> Field:
    """Returns how far inside the outline each place lies, about in radii; negative outside."""
    return tuple(_SILHOUETTES.values())[_parts(motif)[0]](u, v)


def pattern(motif: int, u: Field, v: Field, *, frequency: float, phase: float) -> Field:
    """Returns the coat's tone at each place, in [0, 1]."""
    wave = tuple(_PATTERNS.values())[_parts(motif)[1]](u, v, frequency, phase)
    tone: Field = np.clip(wave * np.float32(1.2) + np.float32(0.5), 0, 1)
    return tone


def _parts(motif: int) -> tuple[int, int]:
    """Returns the numbers of the silhouette and the pattern; 3 and 10 share no factor, so every pair comes once."""
    shape = motif % 10
    return shape, (3 * shape + motif // 10) % 10


def _bar(u: Field, v: Field) -> Field:
    return np.minimum(0.9 - np.abs(u), 0.28 - np.abs(v))


_SILHOUETTES: dict[str, Callable[[Field, Field], Field]] = {
    "disc": lambda u, v: 0.85 - np.hypot(u, v),
    "ring": lambda u, v: 0.25 - np.abs(np.hypot(u, v) - 0.68),
    "square": lambda u, v: 0.75 - np.maximum(np.abs(u), np.abs(v)),
    "triangle": lambda u, v: 0.45 - np.maximum(v, np.abs(u) * 0.866 - v * 0.5),
    "star": lambda u, v: 0.64 + 0.3 * np.cos(5 * np.arctan2(v, u)) - np.hypot(u, v),
    "trefoil": lambda u, v: 0.62 + 0.33 * np.cos(3 * np.arctan2(v, u)) - np.hypot(u, v),
    "cross": lambda u, v: np.maximum(_bar(u, v), _bar(v, u)),
    "crescent": lambda u, v: np.minimum(0.9 - np.hypot(u, v), np.hypot(u - 0.45, v) - 0.6),
    "bar": lambda u, v: _bar(u, v),
    "pair": lambda u, v: 0.45 - np.hypot(np.abs(u) - 0.5, v),
}

# Each takes (u, v, frequency, phase); the frequency is 1 on average.
_PATTERNS: dict[str, Callable[[Field, Field, float, float], Field]] = {
    "plain": lambda u, v, f, p: 0.2 * np.sin(1.5 * f * (u + v) + p),
    "stripes": lambda u, v, f, p: np.sin(9 * f * u + 0.3 * v + p),
    "rings": lambda u, v, f, p: np.sin(11 * f * np.hypot(u, v) + p),
    "checks": lambda u, v, f, p: 2 * np.sin(7 * f * u + p) * np.sin(7 * f * v + p),
    "spokes": lambda u, v, f, p: f * np.sin(7 * np.arctan2(v, u) + p),
    "spots": lambda u, v, f, p: 2 * np.sin(8 * f * u + p) + 2 * np.sin(8 * f * v + p) - 2,
    "zigzag": lambda u, v, f, p: np.sin(10 * f * v + p + 3 * np.abs(np.sin(4 * f * u))),
    "bands": lambda u, v, f, p: np.sin(5.5 * f * v + p) + 0.2 * u,
    "net": lambda u, v, f, p: 6 * np.maximum(np.cos(6 * f * (u + v) + p), np.cos(6 * f * (u - v) + p)) - 5,
    "spiral": lambda u, v, f, p: np.sin(9 * f * np.hypot(u, v) + 2 * np.arctan2(v, u) + p),
}
