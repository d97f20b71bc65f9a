"""A simulated clock with the drift, autocorrelation and outliers of a real machine, and sweeps measured by it."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.noise import round_order

NUM_SWEEPS = 2000
OWN_ORDERS = 32

# Fitted to 200 repeats, each in a fresh process, begun every 3.2 s over 10.6 minutes: the rate at which 300 JPEGs
# (0.2 megapixels) are decoded and resized, 0.7 s on the clock, on 2 virtual cores shared with others. Maximum
# likelihood of an Ornstein-Uhlenbeck drift seen through independent noise and outliers (a Kalman filter whose two
# components are merged at each step) on the logarithms of the rates. They had a standard deviation of 0.22 and
# autocorrelations of 0.69, 0.56, 0.44 and 0.19 at 1, 3, 5 and 12 repeats; the slowest was 0.37 of the median.
TYPICAL_PER_SEC = 477.0
DRIFT = 0.19
"""Standard deviation of the drift; this one and those below are of log-rates."""
AUTOCORRELATION = 0.886
"""Of the drift from one measurement to the next: a time constant of 26 s."""
JITTER = 0.074
"""Standard deviation of what is each measurement's own."""
OUTLIERS = 0.13
"""Chance that a measurement is held up by others."""
OUTLIER = 0.16
"""Mean of the exponential by which it is slower then."""

Floats = NDArray[np.float64]
Rounds = tuple[Floats, Floats]
"""Rates of a trial and of its baseline, paired by round along the last axis."""


class Clock:
    """Rates in samples/s that one unchanging piece of work is measured at, one measurement after another."""

    def __init__(self, random: np.random.Generator, *, noise: float = 1.0) -> None:
        """`noise` 1 is the fitted machine; 2 has twice its standard deviations and outliers twice as large."""
        self._random = random
        self._noise = noise

    def rates(self, num_sweeps: int, num_measurements: int) -> Floats:
        """Independent rows (num_sweeps, num_measurements), each a machine's successive rates."""
        shape = (num_sweeps, num_measurements)
        shocks = self._random.normal(size=shape) * DRIFT * (1 - AUTOCORRELATION**2) ** 0.5
        logs = np.empty(shape)
        drift = self._random.normal(size=num_sweeps) * DRIFT
        for step in range(num_measurements):
            drift = drift * AUTOCORRELATION + shocks[:, step]
            logs[:, step] = drift
        logs += self._random.normal(size=shape) * JITTER
        logs -= (self._random.random(shape) < OUTLIERS) * self._random.exponential(size=shape) * OUTLIER
        rates: Floats = TYPICAL_PER_SEC * np.exp(logs * self._noise)
        return rates


def simulate(seed: int, num_rounds: int, *, noise: float, slowdown: float = 1.0) -> Rounds:
    """Rates (NUM_SWEEPS, num_rounds) of a trial that is `slowdown` times slower than its baseline, and of the baseline.

    A round measures both in its own order. A sweep longer than its own orders goes on with those of the next.
    """
    rates = Clock(np.random.default_rng(seed), noise=noise).rates(NUM_SWEEPS, 2 * num_rounds)
    num_blocks = -(-num_rounds // OWN_ORDERS)
    blocks = [np.roll(_places(), -block, axis=0) for block in range(num_blocks)]
    places = np.concatenate(blocks, axis=1)[:, :num_rounds, np.newaxis]
    pairs = rates.reshape(NUM_SWEEPS, num_rounds, 2)
    trial, base = (np.take_along_axis(pairs, chosen, axis=2)[..., 0] for chosen in (places, 1 - places))
    return trial / slowdown, base


@cache
def _places() -> NDArray[np.int64]:
    """Which place of a round (sweep, round) the trial has; its baseline has the other."""
    orders = [[round_order(2, seed=sweep, round=round) for round in range(OWN_ORDERS)] for sweep in range(NUM_SWEEPS)]
    return np.array(orders)[..., 0]
