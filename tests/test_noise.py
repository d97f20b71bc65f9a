"""Verdicts about two trials err as often as they say, on a clock as unsteady as a real machine's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import pytest
from chance import assert_fits
from clocks import Clock, Floats, Rounds, simulate
from watching import SOAK

from pipeline.bench.noise import (
    MIN_ROUNDS,
    Interval,
    Verdict,
    enough,
    is_narrow,
    rate_interval,
    ratio_interval,
    round_order,
    rounds_to_ask,
    verdict,
)
from pipeline.config.bench import Bench

TELL_PCT = Bench().tell_pct
SLOWDOWN = 1 + TELL_PCT / 100
MAX_ROUNDS = 60
"""Where the time of a sweep is spent."""
NOISES = [0.5, 1.0, 2.0] if SOAK else [1.0]
"""Times the fitted noise."""
PILOTS = [7, 8] if SOAK else [7]
DIFFERENT = (Verdict.faster, Verdict.slower)


# What an interval is


def walsh_averages(ratios: list[float]) -> list[float]:
    return sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(map(math.log, ratios), 2))


def number_of_sign_patterns(num_rounds: int) -> list[int]:
    """How many of the 2**n ways to give the ranks 1 to n signs have a sum of positive ranks of 0, 1, 2, ..."""
    counts = [1]
    for rank in range(1, num_rounds + 1):
        longer = counts + [0] * rank
        counts = [count + (longer[total - rank] if total >= rank else 0) for total, count in enumerate(longer)]
    return counts


def attainable_levels(num_rounds: int) -> list[float]:
    """Two-sided levels of the signed-rank test that rejects sums up to 0, 1, 2, ..."""
    return [2 * total / 2**num_rounds for total in itertools.accumulate(number_of_sign_patterns(num_rounds))]


@pytest.mark.parametrize("num_rounds", range(MIN_ROUNDS, 12))
def test_of_all_ways_to_sign_the_rounds_as_many_exclude_1_as_the_signed_rank_distribution_says(num_rounds: int) -> None:
    sizes = np.random.default_rng(num_rounds).exponential(size=num_rounds)
    excluded = 0
    for signs in itertools.product([-1, 1], repeat=num_rounds):
        interval = ratio_interval(list(np.exp(sizes * signs)), [1.0] * num_rounds)
        assert interval is not None
        excluded += not interval.low <= 1 <= interval.high
    assert excluded / 2**num_rounds == min(attainable_levels(num_rounds), key=lambda level: abs(level - 0.05))


@pytest.mark.parametrize("num_rounds", range(MIN_ROUNDS, 21))
def test_an_interval_ends_at_the_walsh_averages_of_the_level_nearest_5_percent(num_rounds: int) -> None:
    ratios = Clock(np.random.default_rng(num_rounds)).rates(1, num_rounds)[0].tolist()
    interval = ratio_interval(ratios, [1.0] * num_rounds)
    levels, averages = attainable_levels(num_rounds), walsh_averages(ratios)
    cut = min(range(len(levels)), key=lambda total: abs(levels[total] - 0.05))
    assert interval is not None
    assert math.log(interval.low) == pytest.approx(averages[cut])
    assert math.log(interval.value) == pytest.approx(median(averages))
    assert math.log(interval.high) == pytest.approx(averages[-1 - cut])
    assert interval.num_rounds == num_rounds


def test_a_trial_that_is_always_the_same_factor_faster_has_an_interval_of_just_that_factor() -> None:
    base = Clock(np.random.default_rng(0)).rates(1, 7)[0]
    interval = ratio_interval(base * 1.25, base)
    assert interval is not None
    assert [interval.low, interval.value, interval.high] == pytest.approx([1.25] * 3)
    assert interval.low <= interval.value <= interval.high
    assert verdict(interval, TELL_PCT) is Verdict.faster


def test_a_ratio_knows_no_unit() -> None:
    rates, base = Clock(np.random.default_rng(1)).rates(2, 9)
    one, other, faster = (ratio_interval(*pair) for pair in ((rates, base), (rates * 60, base * 60), (rates * 3, base)))
    assert one is not None
    assert other is not None
    assert faster is not None
    assert [other.low, other.value, other.high] == pytest.approx([one.low, one.value, one.high])
    assert [faster.low, faster.value, faster.high] == pytest.approx([3 * one.low, 3 * one.value, 3 * one.high])


def test_a_ratio_turned_round_is_its_inverse() -> None:
    rates, base = Clock(np.random.default_rng(2)).rates(2, 8)
    one, other = ratio_interval(rates, base), ratio_interval(base, rates)
    assert one is not None
    assert other is not None
    assert [1 / other.high, 1 / other.value, 1 / other.low] == pytest.approx([one.low, one.value, one.high])


def test_a_round_that_was_held_up_for_ten_times_as_long_moves_nothing() -> None:
    rates, base = Clock(np.random.default_rng(3), noise=0.1).rates(2, 11)
    before = ratio_interval(rates, base)
    rates[4] /= 10
    after = ratio_interval(rates, base)
    assert before is not None
    assert after is not None
    assert after.value == pytest.approx(before.value, rel=0.02)
    assert after.half_width_pct < 5


def test_rates_that_are_all_equal_are_the_same() -> None:
    rates = [512.0] * 7
    assert ratio_interval(rates, rates) == Interval(1.0, 1.0, 1.0, 7)
    assert verdict(ratio_interval(rates, rates), TELL_PCT) is Verdict.same
    assert rounds_to_ask(rates, rates, TELL_PCT) == 7
    assert enough([(rates, rates)], TELL_PCT)


def test_rounds_without_a_difference_speak_for_none() -> None:
    rates, base = [100.0, 100.0, 100.0, 100.0, 101.0, 102.0, 103.0], [100.0] * 7
    interval = ratio_interval(rates, base)
    assert interval is not None
    assert interval.low == 1.0
    assert verdict(interval, TELL_PCT) is Verdict.same


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -3.0], ids=str)
@pytest.mark.parametrize("function", [ratio_interval, lambda a, b: rounds_to_ask(a, b, 10.0)], ids=["interval", "ask"])
def test_a_rate_that_is_none_is_refused_by_name(function: Callable[..., object], wrong: float) -> None:
    right = [100.0] * 7
    one_wrong = [*right[:2], wrong, *right[3:]]
    with pytest.raises(ValueError, match=rf"^rates must be finite and above 0, got {wrong} in round 2"):
        function(one_wrong, right)
    with pytest.raises(ValueError, match=rf"^base_rates must be finite and above 0, got {wrong} in round 2"):
        function(right, one_wrong)
    with pytest.raises(ValueError, match=r"^rates must be"):
        rate_interval(one_wrong)


def test_trials_with_different_numbers_of_rounds_are_not_paired() -> None:
    with pytest.raises(ValueError, match=r"got 7 rates and 8 base_rates"):
        ratio_interval([100.0] * 7, [100.0] * 8)


@pytest.mark.parametrize("num_rounds", range(MIN_ROUNDS))
def test_too_few_rounds_tell_nothing(num_rounds: int) -> None:
    rates, base = [200.0] * num_rounds, [100.0] * num_rounds
    assert ratio_interval(rates, base) is None
    assert rate_interval(rates) is None
    assert verdict(None, TELL_PCT) == "cannot tell"
    assert rounds_to_ask(rates, base, TELL_PCT) is None
    assert not enough([(rates, base)], TELL_PCT)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.01, 1.9, "faster"),
        (0.5, 0.99, "slower"),
        (0.96, 1.05, "same"),
        (1.0, 1.05, "same"),
        (0.95, 1.0, "same"),
        (0.95, 1.06, "cannot tell"),
        (0.5, 1.0, "cannot tell"),
    ],
)
def test_a_verdict_is_same_only_where_the_difference_that_matters_would_have_been_seen(
    low: float, high: float, word: str
) -> None:
    assert verdict(Interval(low, (low * high) ** 0.5, high, 9), TELL_PCT) == word


def test_a_half_width_is_a_factor() -> None:
    assert Interval(100.0, 105.0, 121.0, 7).half_width_pct == pytest.approx(10)
    assert Interval(1 / 1.1, 1.0, 1.1, 7).half_width_pct == pytest.approx(10)
    assert is_narrow(Interval(1.0, 1.04, 1.099, 7), 10)
    assert not is_narrow(Interval(1.0, 1.05, 1.101, 7), 10)


def test_a_trials_own_rate_has_an_interval_in_samples_per_second() -> None:
    rates = [90.0, 95.0, 98.0, 100.0, 102.0, 105.0, 111.0]
    interval = rate_interval(rates)
    assert interval is not None
    assert 90 < interval.low < 98 < interval.value < 102 < interval.high < 111


# When to stop


def with_sizes(sizes: Floats, signs: list[int]) -> Rounds:
    return np.exp(sizes * signs), np.ones(len(sizes))


def test_that_all_rounds_agree_by_chance_is_no_reason_to_stop() -> None:
    sizes = np.linspace(0.002, 0.11, 8)
    agree, balance = with_sizes(sizes, [1] * 8), with_sizes(sizes, [1, -1, -1, 1] * 2)
    interval = ratio_interval(*agree)
    assert interval is not None
    assert is_narrow(interval, TELL_PCT)
    assert not enough([agree], TELL_PCT)
    assert rounds_to_ask(*agree, TELL_PCT) == rounds_to_ask(*balance, TELL_PCT)


def test_a_large_difference_needs_no_more_rounds_than_its_spread() -> None:
    rates, base = Clock(np.random.default_rng(4), noise=0.1).rates(2, 7)
    assert enough([(rates * 3, base)], TELL_PCT)
    assert rounds_to_ask(rates * 3, base, TELL_PCT) == 7


def test_more_rounds_are_asked_for_where_the_noise_or_the_demand_is_greater() -> None:
    logs = np.random.default_rng(5).normal(size=9)
    asked = [rounds_to_ask(np.exp(logs * noise), np.ones(9), TELL_PCT) for noise in (0.02, 0.1, 0.2, 0.4)]
    assert asked[0] == 9
    assert asked == sorted(set(asked))
    finer, coarser = (rounds_to_ask(np.exp(logs * 0.2), np.ones(9), tell_pct) for tell_pct in (5, 20))
    assert finer is not None
    assert coarser is not None
    assert finer / coarser == pytest.approx((math.log(1.2) / math.log(1.05)) ** 2, rel=0.05)


def test_enough_are_the_rounds_that_are_asked_for_and_every_pair_must_have_them() -> None:
    clock, seen = Clock(np.random.default_rng(6), noise=0.3), {True: 0, False: 0}
    steady = ([100.0] * MIN_ROUNDS, [100.0] * MIN_ROUNDS)
    for num_rounds in range(MIN_ROUNDS, 40):
        rates, base = clock.rates(2, num_rounds)
        pair = (rates, base)
        asked = rounds_to_ask(rates, base, TELL_PCT)
        assert asked is not None
        is_enough = enough([pair], TELL_PCT)
        assert is_enough == (asked <= num_rounds)
        assert is_enough == enough([steady, pair], TELL_PCT) == enough([pair, steady], TELL_PCT)
        assert is_enough == enough([pair[::-1]], TELL_PCT)
        seen[is_enough] += 1
    assert min(seen.values()) > 3


# In which order


@pytest.mark.parametrize("num_trials", [0, 1, 2, 5, 40])
def test_an_order_holds_every_trial_once_and_comes_again_with_its_seed(num_trials: int) -> None:
    orders = [round_order(num_trials, seed=3, round=round) for round in range(5)]
    assert all(sorted(order) == list(range(num_trials)) for order in orders)
    assert orders == [round_order(num_trials, seed=3, round=round) for round in range(5)]


def test_rounds_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(round_order(20, seed=seed, round=round)) for seed in range(10) for round in range(10)]
    assert len(set(orders)) == 100


def test_every_order_comes_as_often_as_another() -> None:
    orders = [round_order(3, seed=0, round=round) for round in range(6000)]
    counts = np.array([orders.count(list(order)) for order in itertools.permutations(range(3))])
    assert_fits(counts, np.full(6, 1000))


def test_who_goes_first_in_a_round_says_nothing_about_the_next() -> None:
    first = np.array([round_order(2, seed=1, round=round)[0] for round in range(4001)])
    together = first[:-1] * 2 + first[1:]
    assert_fits(np.bincount(together[::2], minlength=4), np.full(4, 500))


# How often verdicts err


def asked_for_by_auto(rates: Floats, base: Floats) -> int:
    """The rounds after which `repeats=auto`, which looks after every one, stops; all where it never does."""
    for num_rounds in range(MIN_ROUNDS, len(rates)):
        if enough([(rates[:num_rounds], base[:num_rounds])], TELL_PCT):
            return num_rounds
    return len(rates)


def asked_for_by_a_pilot(rates: Floats, base: Floats, num_rounds: int) -> int:
    """What the first rounds ask for, as far as there are any."""
    asked = rounds_to_ask(rates[:num_rounds], base[:num_rounds], TELL_PCT)
    assert asked is not None
    return min(asked, len(rates))


def judge(rounds: Rounds, num_rounds: Callable[[Floats, Floats], int]) -> tuple[list[Verdict], list[int]]:
    """Each sweep's verdict after as many rounds as it takes, and their number."""
    numbers = [num_rounds(rates, base) for rates, base in zip(*rounds, strict=True)]
    verdicts = [
        verdict(ratio_interval(rates[:number], base[:number]), TELL_PCT)
        for rates, base, number in zip(*rounds, numbers, strict=True)
    ]
    return verdicts, numbers


def pct(verdicts: list[Verdict], *wanted: Verdict) -> float:
    return 100 * sum(verdict in wanted for verdict in verdicts) / len(verdicts)


def test_the_clock_runs_like_the_machine_it_was_fitted_to() -> None:
    logs = np.log(Clock(np.random.default_rng(7)).rates(1000, 200))
    around = logs - logs.mean(axis=1, keepdims=True)

    def correlation(lag: int) -> Floats:
        return (around[:, :-lag] * around[:, lag:]).mean(axis=1) / around.var(axis=1)

    slowest = np.exp(logs.min(axis=1) - np.median(logs, axis=1))
    seen = [(logs.std(axis=1), 0.22), (slowest, 0.37)]
    seen += [(correlation(lag), value) for lag, value in ((1, 0.69), (3, 0.56), (5, 0.44), (12, 0.19))]
    for simulated, real in seen:
        assert np.quantile(simulated, 0.05) < real < np.quantile(simulated, 0.95)


@pytest.mark.soak
def test_any_fixed_number_of_rounds_calls_equal_trials_different_in_5_of_100_sweeps() -> None:
    rounds = simulate(10, 20, noise=1.0)  # of equal trials the noise changes the sizes only, not what is excluded
    for num_rounds in range(7, 21):
        verdicts, _ = judge(rounds, lambda *_, fixed=num_rounds: fixed)
        assert 3.5 <= pct(verdicts, *DIFFERENT) <= 6.5, num_rounds


@pytest.mark.soak
@pytest.mark.parametrize("noise", sorted({0.5, *NOISES}))  # at 0.5 sweeps stop after 7 to 30 rounds: looks count
def test_looking_after_every_round_calls_equal_trials_different_in_5_of_100_sweeps(noise: float) -> None:
    verdicts, numbers = judge(simulate(11, MAX_ROUNDS, noise=noise), asked_for_by_auto)
    assert 3.5 <= pct(verdicts, *DIFFERENT) <= 6.5
    given_up = [number == MAX_ROUNDS for number in numbers]
    assert all(late for late, verdict in zip(given_up, verdicts, strict=True) if verdict is Verdict.unknown)


@pytest.mark.soak
@pytest.mark.parametrize(("noise", "most"), [(0.5, 120), *([(1.0, 256)] if SOAK else [])])
def test_looking_after_every_round_finds_a_slowdown_of_10_percent(noise: float, most: int) -> None:
    verdicts, numbers = judge(simulate(20, most, noise=noise, slowdown=SLOWDOWN), asked_for_by_auto)
    assert pct(verdicts, Verdict.slower) >= 95
    assert max(numbers) < most


@pytest.mark.soak
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("pilot", PILOTS)
def test_the_rounds_that_a_pilot_asks_for_find_a_slowdown_of_10_percent(pilot: int, noise: float) -> None:
    rounds = simulate(30, round(256 * max(1, noise)), noise=noise, slowdown=SLOWDOWN)
    verdicts, _ = judge(rounds, partial(asked_for_by_a_pilot, num_rounds=pilot))
    assert pct(verdicts, Verdict.slower) >= 95


@pytest.mark.soak
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("pilot", PILOTS)
def test_the_rounds_that_a_pilot_asks_for_call_equal_trials_different_in_5_of_100_sweeps(
    pilot: int, noise: float
) -> None:
    rounds = simulate(31, round(256 * max(1, noise)), noise=noise)
    verdicts, _ = judge(rounds, partial(asked_for_by_a_pilot, num_rounds=pilot))
    assert 3.5 <= pct(verdicts, *DIFFERENT) <= 6.5
