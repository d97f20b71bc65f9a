"""Statistical assertions, each one statistic at a fixed significance."""

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 1e-4
Floats = NDArray[np.float64]


def assert_fits(counts: NDArray[Any], expected: NDArray[Any], significance: float = SIGNIFICANCE) -> None:
    """Pearson's chi-square; the quantile is Wilson and Hilferty's (1931), 2 % high at 6 degrees of freedom."""
    assert expected.min() >= 5, "too few samples for a chi-square test"
    freedom, normal = counts.size - 1, NormalDist().inv_cdf(1 - significance)
    limit = freedom * (1 - 2 / (9 * freedom) + normal * (2 / (9 * freedom)) ** 0.5) ** 3
    statistic = (np.square(counts - expected) / expected).sum()
    assert statistic < limit, f"chi-square {statistic:.1f} of {freedom} degrees of freedom, limit {limit:.1f}"


def assert_uncorrelated(first: Floats, second: Floats) -> None:
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1] * first.size**0.5
    assert abs(correlation) < NormalDist().inv_cdf(1 - SIGNIFICANCE / 2), f"{correlation:.2f} standard deviations"
