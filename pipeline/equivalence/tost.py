"""Two one-sided tests of paired differences: whether they are shown to be small, and not merely not shown to be there.

Schuirmann, "A comparison of the two one-sided tests procedure ...", Journal of Pharmacokinetics and Biopharmaceutics
15, 1987: a difference is shown to be smaller than a margin, at level 5 %, where its 90 % interval lies within the
margin. How many pairs there are is decided by the spread of the first ones alone, and that spread gives the interval:
Stein, "A two-sample test for a linear hypothesis whose power is independent of the variance", Annals of Mathematical
Statistics 16, 1945. So looking at the first results does not spoil the level.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Equivalence:
    """What paired differences say about their mean."""

    mean: float
    low: float
    """Of the 90 % interval."""
    high: float
    margin: float
    num_pairs: int
    num_needed: int
    """Pairs that would show a true difference of 0 to be within the margin in nine of ten cases, by the spread seen."""

    @property
    def is_shown(self) -> bool:
        """Whether the difference is within the margin at level 5 %."""
        return self.num_pairs >= self.num_needed and -self.margin < self.low and self.high < self.margin


def judge(differences: Sequence[float], *, num_first: int, margin: float) -> Equivalence:
    """Returns what `differences` show, the first `num_first` of which were to decide how many there are.

    Raises:
        ValueError: There are fewer than two first ones, or fewer than those, or the margin is not above 0.
    """
    if not 2 <= num_first <= len(differences):
        raise ValueError(f"need two first pairs or more, and all of them, got {num_first} of {len(differences)}")
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")
    spread = statistics.stdev(differences[:num_first])
    reach = student_t(1 - LEVEL, num_first - 1) * spread
    half_width = reach / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    needed = max(num_first, math.ceil((2 * reach / margin) ** 2))
    return Equivalence(mean, mean - half_width, mean + half_width, margin, len(differences), needed)


def student_t(probability: float, freedom: int) -> float:
    """Returns the quantile of Student's t with `freedom` degrees, for a probability in [0.5, 1), to 4 decimals or more.

    With t = sqrt(freedom) tan(a) the density is proportional to cos(a)^(freedom - 1), which is summed up.
    """
    edges = np.linspace(0, np.pi / 2, _STEPS + 1)
    areas = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1))
    angle = np.interp(2 * probability - 1, np.concatenate([[0], areas / areas[-1]]), edges)
    return float(math.sqrt(freedom) * math.tan(angle))
