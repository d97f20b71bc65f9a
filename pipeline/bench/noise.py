"""Whether two trials differ, how surely, and how many rounds it takes to tell.

Every round measures all trials once, in an order drawn at random. Two equal trials could have swapped their places in
any round, so the sign of a round's log-ratio is a fair coin, independent of the other rounds', whatever the drift, the
autocorrelation and the outliers of the machine: the randomisation argument of Fisher (The Design of Experiments, 1935,
section 21). Wilcoxon's signed-rank test is exact under it, and the interval here is that test turned round: the
ratios it does not reject lie between two order statistics of the Walsh averages, the means of all pairs of log-ratios,
each with itself too (Tukey 1949; Walsh 1949), and their median is the estimate of Hodges and Lehmann ("Estimates of
location based on rank tests", Annals of Mathematical Statistics 34, 1963).

Stopping when an interval happens to be narrow would spoil this: it is narrowest where chance gave all rounds the same
sign, which is where it excludes 1. A decision to stop therefore also asks for a spread that is narrow by the sizes of
the log-ratios alone, which say nothing about the coins.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import key, uniforms

MIN_ROUNDS = 7
"""The fewest with a level near 5 %: the signed-rank test has 4.7 % with seven rounds, 3.1 or 6.3 % with six."""
_LEVEL = 0.05
_FAR = 0.9
"""In sqrt(rounds) half-widths, each 2 standard deviations: sizes of log-ratios this far from 0 are a difference's, and
spread as the log-ratios do; those of mere noise lie at 0.6 and spread 0.6 times as wide as it. Nearer 0.6, equal trials
stop too soon (false alarms 5.6 % at worst, 5.3 % here); at 1.0 a difference of `tell_pct` takes a tenth more rounds."""

Floats = NDArray[np.float64]
Moment = TypeVar("Moment", bound=Hashable)
"""What is equal of two measurements that were interleaved."""
_pairs = lru_cache(maxsize=8)(np.triu_indices)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and its Hodges-Lehmann estimate, of a ratio of two rates or of a rate in samples/s."""

    low: float
    value: float
    high: float
    num_rounds: int

    @property
    def half_width_pct(self) -> float:
        """How far the ends are from the middle, as a factor: 4.9 where they are a factor 1.1 apart."""
        return (math.sqrt(self.high / self.low) - 1) * 100


class Verdict(StrEnum):
    """What an interval says about a trial beside its baseline, in words for people."""

    faster = "faster"
    slower = "slower"
    same = "same"
    unknown = "cannot tell"


def ratio_interval(rates: Sequence[float], base_rates: Sequence[float]) -> Interval | None:
    """The ratio of two trials' rates, paired by position: both at i come from the same round.

    None for fewer than `MIN_ROUNDS` rounds. The level is the attainable one nearest 95 %. ValueError for a rate that is
    not a finite number above 0, and for different lengths.
    """
    return _interval(_log_ratios(rates, base_rates))


def paired(mine: Mapping[Moment, float], theirs: Mapping[Moment, float]) -> tuple[list[float], list[float]]:
    """The rates of both, by position, of the moments at which both were measured."""
    common = [moment for moment in mine if moment in theirs]
    return [mine[moment] for moment in common], [theirs[moment] for moment in common]


def rate_interval(rates: Sequence[float]) -> Interval | None:
    """A trial's own typical rate in samples/s; None for fewer than `MIN_ROUNDS` of them.

    Nothing is paired, so this takes the rounds for independent and symmetric: drift makes it too narrow, and whether
    two trials differ is `ratio_interval`'s to say. ValueError as there.
    """
    return _interval(_logs("rates", rates))


def verdict(interval: Interval | None, tell_pct: float) -> Verdict:
    """Read a ratio's interval; `same` only where a difference of `tell_pct` percent would have been seen."""
    if interval is None:
        return Verdict.unknown
    if interval.low > 1:
        return Verdict.faster
    if interval.high < 1:
        return Verdict.slower
    return Verdict.same if is_narrow(interval, tell_pct) else Verdict.unknown


def is_narrow(interval: Interval, tell_pct: float) -> bool:
    """Whether the ends lie within a factor of `tell_pct` percent, which is thus found in 95 of 100 cases or more."""
    return interval.high / interval.low <= 1 + tell_pct / 100


def is_known(rates: Sequence[float], tell_pct: float) -> bool:
    """Whether a trial's own rate is known as closely as `tell_pct` asks for."""
    interval = rate_interval(rates)
    return interval is not None and is_narrow(interval, tell_pct)


def rounds_to_ask(rates: Sequence[float], base_rates: Sequence[float], tell_pct: float) -> int | None:
    """How many rounds in all would tell a difference of `tell_pct` percent with 95 % probability, by the spread seen.

    The number of rounds given where those are enough; None for fewer than `MIN_ROUNDS`.
    ValueError as in `ratio_interval`.
    """
    ratios = _log_ratios(rates, base_rates)
    if ratios.size < MIN_ROUNDS:
        return None
    excess = max(_half_width(ratios), _half_width_of_sizes(ratios)) / _narrow(tell_pct)
    return ratios.size if excess <= 1 else max(ratios.size + 1, math.ceil(ratios.size * excess**2))


def enough(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], tell_pct: float) -> bool:
    """Whether each pair of (rates, base rates) has had the rounds it asks for; may be asked after every round.

    Then every interval is narrow enough for `tell_pct`, and `verdict` is not "cannot tell". True without pairs.
    """
    narrow = _narrow(tell_pct)
    return all(
        ratios.size >= MIN_ROUNDS and _half_width(ratios) <= narrow and _half_width_of_sizes(ratios) <= narrow
        for ratios in (_log_ratios(rates, base_rates) for rates, base_rates in pairs)
    )


def round_order(num_trials: int, *, seed: int, round: int) -> list[int]:
    """The order in which a round measures the trials: a permutation, each as likely, a function of (seed, round)."""
    drawn = uniforms(key("rounds", seed=seed, round=round), np.arange(num_trials), 1)
    return [int(trial) for trial in np.argsort(drawn[:, 0], kind="stable")]


def _narrow(tell_pct: float) -> float:
    return math.log1p(tell_pct / 100) / 2


def _logs(name: str, rates: Sequence[float]) -> Floats:
    values = np.asarray(rates, dtype=np.float64)
    for position in np.flatnonzero(~((values > 0) & (values < np.inf))):
        raise ValueError(f"{name} must be finite and above 0, got {values[position]} in round {position}; leave it out")
    return np.log(values)


def _log_ratios(rates: Sequence[float], base_rates: Sequence[float]) -> Floats:
    if len(rates) != len(base_rates):
        numbers = f"{len(rates)} rates and {len(base_rates)} base_rates"
        raise ValueError(f"rates are paired by round, got {numbers}; pass the rounds that both trials have")
    return _logs("rates", rates) - _logs("base_rates", base_rates)


def _interval(logs: Floats) -> Interval | None:
    if logs.size < MIN_ROUNDS:
        return None
    averages = np.sort(_walsh_averages(logs))
    cut = _cut(logs.size)
    low, value, high = (math.exp(log) for log in (averages[cut], np.median(averages), averages[-1 - cut]))
    return Interval(low, value, high, logs.size)


def _half_width_of_sizes(ratios: Floats) -> float:
    """The half-width that log-ratios of these sizes typically have, from nothing but the sizes.

    A difference of twice the spread shows in the sizes, which then lie as the log-ratios do. Otherwise the signs are
    taken to balance, as equal trials' do: + - - + from the smallest on.
    """
    sizes = np.abs(ratios)
    low, high = _ends(sizes)
    if low + high > _FAR * math.sqrt(sizes.size) * (high - low):
        return (high - low) / 2
    return _half_width(np.sort(sizes) * np.resize([1, -1, -1, 1], sizes.size))


def _half_width(logs: Floats) -> float:
    low, high = _ends(logs)
    return (high - low) / 2


def _ends(logs: Floats) -> tuple[float, float]:
    cut = _cut(logs.size)
    averages = _walsh_averages(logs)
    averages.partition((cut, averages.size - 1 - cut))
    return float(averages[cut]), float(averages[-1 - cut])


def _walsh_averages(logs: Floats) -> Floats:
    first, second = _pairs(logs.size)
    return np.asarray((logs[first] + logs[second]) / 2)


@cache
def _cut(num_rounds: int) -> int:
    """How many Walsh averages lie beyond each end: the greatest signed-rank sum that the level nearest 5 % rejects."""
    chances = np.zeros(num_rounds * (num_rounds + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, num_rounds + 1):  # each rank joins the sum or does not, by a fair coin
        chances[rank:] += chances[:-rank].copy()
        chances /= 2
    return int(np.argmin(np.abs(2 * np.cumsum(chances) - _LEVEL)))
