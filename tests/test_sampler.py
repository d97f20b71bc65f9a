"""A shuffled epoch is a sound permutation computed position by position, and ranks share it without a gap.

A statistical test is one statistic at a significance of 1e-4, over seeds and epochs counted from 0. The 28 in this
file would fail together once in 350 choices of the constants in draws.py and sampler.py; they choose none.
"""

import pickle
from collections.abc import Callable
from itertools import permutations
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from chance import SIGNIFICANCE, assert_fits
from numpy.typing import NDArray

from pipeline.sampler import (
    Sampler,
    SequentialSampler,
    ShuffleSampler,
    WeightedSampler,
    _alias_table,
    _checked_weights,
    balanced_weights,
    num_steps,
    rank_positions,
)

Ints = NDArray[np.int64]
ABOVE_A_POWER_OF_TWO = 2**20 + 1
# The relative excess of a * b over the samples, and so the walking, is largest here of all sizes below 60,000.
WALKING_MOST = 4162


def assert_uniform(ids: Ints, num_samples: int) -> None:
    """Ids are equally likely, by chi-square over at most 100 bins, whose unequal sizes count."""
    num_bins = min(num_samples, 100)
    counts = np.bincount(ids.ravel() * num_bins // num_samples, minlength=num_bins)
    borders = -(-np.arange(num_bins + 1) * num_samples // num_bins)
    assert_fits(counts, np.diff(borders) / num_samples * ids.size)


def epoch_of(sampler: Sampler, epoch: int = 0) -> Ints:
    return sampler.ids(epoch, np.arange(sampler.num_samples))


# Statistics of the shuffle


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("num_samples", [7, 1000, ABOVE_A_POWER_OF_TWO])
def test_a_position_holds_every_id_equally_often_over_1000_seeds(num_samples: int, place: str) -> None:
    position = {"first": 0, "middle": num_samples // 2, "last": num_samples - 1}[place]
    ids = [ShuffleSampler(num_samples, seed).ids(0, np.array([position])) for seed in range(1000)]
    assert_uniform(np.array(ids), num_samples)


def test_every_permutation_of_four_comes_equally_often() -> None:
    orders = [tuple(epoch_of(ShuffleSampler(4, seed), epoch)) for seed in range(1000) for epoch in range(3)]
    counts = np.array([orders.count(order) for order in permutations(range(4))])
    assert_fits(counts, np.full(24, 3000 / 24))


@pytest.mark.parametrize("num_samples", [1000, 4097, ABOVE_A_POWER_OF_TWO])
def test_neighbouring_positions_hold_ids_of_any_distance(num_samples: int) -> None:
    positions = np.arange(1000)
    orders = np.array([ShuffleSampler(num_samples, seed).ids(0, positions) for seed in range(100)])
    # Of neighbours in a permutation the distances 1 to n - 1 are equally likely, 0 is impossible.
    assert_uniform(np.diff(orders) % num_samples - 1, num_samples - 1)


@pytest.mark.parametrize("num_samples", [1000, 4097, ABOVE_A_POWER_OF_TWO])
def test_neighbouring_positions_hold_uncorrelated_ids(num_samples: int) -> None:
    positions = np.arange(1000)
    orders = np.array([ShuffleSampler(num_samples, seed).ids(0, positions) for seed in range(100)])
    centred = orders - (num_samples - 1) / 2
    correlation = (centred[:, 1:] * centred[:, :-1]).mean() / centred.var()
    correlation += 1 / (num_samples - 1)  # a permutation's own: the others are drawn from what the first left
    assert abs(correlation) * (100 * 999) ** 0.5 < NormalDist().inv_cdf(1 - SIGNIFICANCE / 2)


def test_positions_of_any_lag_hold_ids_of_any_distance_in_the_smallest_network() -> None:
    num_samples, num_epochs, lags = 4097, 40, range(1, 129)
    counts = np.zeros((len(lags), num_samples), np.int64)
    for epoch in range(num_epochs):
        order = epoch_of(ShuffleSampler(num_samples, 0), epoch)
        for row, lag in zip(counts, lags, strict=True):
            row += np.bincount((order[lag:] - order[:-lag]) % num_samples, minlength=num_samples)
    for row in counts:
        assert_fits(row[1:], np.full(num_samples - 1, row.sum() / (num_samples - 1)), SIGNIFICANCE / len(lags))


@pytest.mark.parametrize("change", ["epoch", "seed"])
@pytest.mark.parametrize("num_samples", [7, 1000, 4097, ABOVE_A_POWER_OF_TWO])
def test_neighbouring_epochs_and_seeds_move_a_position_by_any_distance(num_samples: int, change: str) -> None:
    positions = np.arange(0, num_samples, -(-num_samples // 200))[:200]
    if change == "epoch":
        sampler = ShuffleSampler(num_samples, 0)
        orders = np.array([sampler.ids(epoch, positions) for epoch in range(1001)])
    else:
        orders = np.array([ShuffleSampler(num_samples, seed).ids(0, positions) for seed in range(1001)])
    if num_samples == 7:
        orders = orders[:, :1]  # a whole permutation's positions are too few to be independent
    assert_uniform(np.diff(orders, axis=0) % num_samples, num_samples)


# The shuffle is a permutation


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4095, 4096, 4097, WALKING_MOST, 65_535, 65_536, 65_537, 99_991])
def test_every_epoch_holds_every_id_once(num_samples: int) -> None:
    sampler = ShuffleSampler(num_samples, 0)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(epoch_of(sampler, epoch)), np.arange(num_samples))


@pytest.mark.parametrize("num_samples", [100, 4097, 10**6])
def test_epochs_and_seeds_have_orders_of_their_own(num_samples: int) -> None:
    positions = np.arange(50)
    orders = [ShuffleSampler(num_samples, seed).ids(epoch, positions) for seed in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9


@pytest.mark.parametrize("num_samples", [1000, WALKING_MOST])
def test_ids_in_the_middle_are_a_slice_of_the_whole_order(num_samples: int) -> None:
    sampler = ShuffleSampler(num_samples, 0)
    order = epoch_of(sampler, 1)
    for start in range(0, num_samples, 97):
        positions = np.arange(start, min(start + 64, num_samples))
        np.testing.assert_array_equal(sampler.ids(1, positions), order[positions])
        np.testing.assert_array_equal(sampler.ids(1, positions[::-1]), order[positions][::-1])


@pytest.mark.parametrize("num_samples", [10**12, 2**40 + 1, 2**63 - 1])
def test_an_epoch_too_large_to_store_starts_at_any_position(num_samples: int) -> None:
    sampler = ShuffleSampler(num_samples, 0)
    for start in (0, num_samples // 3, num_samples - 1000):
        positions = np.arange(start, start + 1000)
        ids = sampler.ids(0, positions)
        assert np.unique(ids).size == 1000
        assert ids.min() >= 0
        assert ids.max() < num_samples
        np.testing.assert_array_equal(sampler.ids(0, positions[500:501]), ids[500:501])


def test_only_numbers_outside_the_epoch_walk_and_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted = 0
    permute = ShuffleSampler._permute

    def counting(sampler: ShuffleSampler, numbers: Any, keys: Any) -> Any:
        nonlocal permuted
        permuted += numbers.size
        return permute(sampler, numbers, keys)

    monkeypatch.setattr(ShuffleSampler, "_permute", counting)
    epoch_of(ShuffleSampler(WALKING_MOST, 0))
    assert WALKING_MOST < permuted <= 1.004 * WALKING_MOST  # the next power of two would take 1.97


def test_a_number_walks_as_often_as_it_takes_to_be_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    side = np.array(256, dtype=np.uint64)
    monkeypatch.setattr("pipeline.sampler._near_square", lambda _: (side, side))
    order = epoch_of(ShuffleSampler(5000, 0))  # of 65,536 numbers: 13 walks each on average
    np.testing.assert_array_equal(np.sort(order), np.arange(5000))


def test_the_order_of_today_is_that_of_the_first_release() -> None:
    positions = np.array([0, 1, 500, 999])
    assert ShuffleSampler(1000, 2026).ids(7, positions).tolist() == [402, 655, 303, 462]
    assert ShuffleSampler(10**6, 2026).ids(7, positions).tolist() == [841170, 176828, 715809, 986082]
    assert WeightedSampler(np.arange(1000), 2026).ids(7, positions).tolist() == [797, 782, 324, 515]


# Ranks


@pytest.mark.parametrize("drop_last", [False, True], ids=["keep_last", "drop_last"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("num_samples", [0, 1, 2, 7, 63, 64, 65, 127, 1000, 4095, 4096, 4097, 8193])
def test_an_epoch_over_all_ranks_holds_every_id_once(
    num_samples: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    global_batch_size = batch_size * world_size
    sampler = ShuffleSampler(num_samples, 0)
    parts: list[Ints] = []
    for step in range(num_steps(num_samples, global_batch_size, drop_last=drop_last)):
        ranks = [
            rank_positions(
                step,
                num_samples=num_samples,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                drop_last=drop_last,
            )
            for rank in range(world_size)
        ]
        sizes = [part.size for part in ranks]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        union = np.sort(np.concatenate(ranks))
        np.testing.assert_array_equal(union, np.arange(union[0], union[0] + union.size))
        assert union[0] == step * global_batch_size
        parts += ranks
    positions = np.concatenate([*parts, np.empty(0, np.int64)])
    kept = num_samples - num_samples % global_batch_size if drop_last else num_samples
    ids = sampler.ids(0, positions)
    assert ids.size == kept
    assert np.unique(ids).size == kept


def test_a_global_batch_is_the_same_however_many_ranks_share_it() -> None:
    batches = {}
    for world_size in (1, 2, 4, 8):
        parts = [
            rank_positions(
                2, num_samples=61, batch_size=24 // world_size, rank=rank, world_size=world_size, drop_last=False
            )
            for rank in range(world_size)
        ]
        batches[world_size] = sorted(np.concatenate(parts).tolist())
        assert parts[-1].tolist() == list(range(48 + world_size - 1, 61, world_size))
    assert all(batch == list(range(48, 61)) for batch in batches.values())


@pytest.mark.parametrize(("num_samples", "kept", "dropped"), [(0, 0, 0), (1, 1, 0), (8, 1, 1), (9, 2, 1), (16, 2, 2)])
def test_steps_count_the_last_incomplete_batch_unless_it_is_dropped(num_samples: int, kept: int, dropped: int) -> None:
    assert num_steps(num_samples, 8, drop_last=False) == kept
    assert num_steps(num_samples, 8, drop_last=True) == dropped


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": 3}, r"step must be in \[0, 3\), the steps of an epoch, got 3"),
        ({"step": 2, "drop_last": True}, r"step must be in \[0, 2\)"),
        ({"step": -1}, "step must be"),
        ({"rank": 2}, r"rank must be in \[0, world_size=2\), got 2"),
        ({"rank": -1}, "rank must be"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
    ],
)
def test_a_step_or_rank_that_is_not_there_is_refused(wrong: dict[str, int], message: str) -> None:
    right = {"step": 0, "num_samples": 20, "batch_size": 4, "rank": 0, "world_size": 2, "drop_last": False}
    with pytest.raises(ValueError, match=message):
        rank_positions(**(right | wrong))  # type: ignore[arg-type]  # a table of keyword arguments


# Weights


def test_weighted_ids_come_as_often_as_their_weights_say() -> None:
    weights = np.random.default_rng(0).gamma(0.5, size=200)
    weights = np.maximum(weights, 0.02)
    ids = epoch_of(WeightedSampler(weights, 0, num_samples=200_000))
    assert_fits(np.bincount(ids, minlength=200), weights / weights.sum() * ids.size)


def test_neighbouring_weighted_ids_are_independent() -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    ids = epoch_of(WeightedSampler(weights, 0, num_samples=100_000)).reshape(-1, 2)
    pairs = np.bincount(ids[:, 0] * 4 + ids[:, 1], minlength=16)
    assert_fits(pairs, np.outer(weights, weights).ravel() / 100 * len(ids))


def test_neighbouring_weighted_epochs_are_independent() -> None:
    sampler = WeightedSampler(np.ones(8), 0, num_samples=20_000)
    assert_uniform(epoch_of(sampler, 0) * 8 + epoch_of(sampler, 1), 64)


def test_an_id_of_weight_zero_never_comes() -> None:
    weights = np.arange(100) % 3 * 1.7
    ids = epoch_of(WeightedSampler(weights, 0, num_samples=50_000))
    np.testing.assert_array_equal(np.unique(ids), np.flatnonzero(weights))


@pytest.mark.parametrize(
    "weights",
    [
        np.ones(1),
        np.ones(1000),
        np.full(7, 0.1),
        np.array([0.0, 0.0, 1.0, 0.0]),
        np.array([1.0, 1.0, 1.0, 2.0, 0.0, 1.0]),
        np.arange(1000) % 7,
        np.random.default_rng(0).pareto(1.0, 10_000),
        np.sort(np.random.default_rng(0).pareto(1.0, 10_000)),
        np.r_[np.full(999, 1e-12), 1.0],
        np.r_[1.0, np.full(9999, 0.9999999999999999)],
    ],
    ids=["one", "equal", "tenths", "single", "exact_ties", "few_values", "heavy_tail", "sorted", "tiny", "rounding"],
)
def test_the_alias_table_holds_the_weights_exactly(weights: NDArray[np.float64]) -> None:
    scaled = _checked_weights(weights)
    thresholds, aliases = _alias_table(scaled)
    clipped = np.clip(thresholds, 0, 1)
    mass = clipped + np.bincount(aliases, weights=1 - clipped, minlength=len(weights))
    np.testing.assert_allclose(mass, weights / weights.mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e308 / 4, 5e-324])
def test_the_scale_of_the_weights_does_not_matter(scale: float) -> None:
    weights = np.array([1, 2, 0, 4])
    np.testing.assert_array_equal(
        epoch_of(WeightedSampler(weights, 0, num_samples=1000)),
        epoch_of(WeightedSampler(weights * scale, 0, num_samples=1000)),
    )


def test_an_epoch_has_as_many_positions_as_there_are_weights_unless_told_and_weights_stay_the_users() -> None:
    weights = np.array([3.0, 1.0])
    assert WeightedSampler(weights, 0).num_samples == 2
    assert WeightedSampler(weights, 0, num_samples=5).num_samples == 5
    assert weights.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "weights must be one number per sample"),
        ([[1.0]], r"weights must be one number per sample, got shape \(1, 1\)"),
        ([1.0, -2.0], r"weights must be finite and >= 0, got weights\[1\]=-2.0"),
        ([1.0, float("nan")], r"weights\[1\]=nan"),
        ([float("inf")], r"weights\[0\]=inf"),
        ([0.0, 0.0], "weights must have at least one above 0"),
    ],
)
def test_weights_that_are_none_are_refused(weights: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSampler(weights, 0)


def test_balanced_weights_draw_every_class_equally_often() -> None:
    labels = np.array([9] * 80 + [2] * 15 + [5] * 5)
    weights = balanced_weights(labels)
    for label in (2, 5, 9):
        assert weights[labels == label].sum() == pytest.approx(1.0)
    ids = epoch_of(WeightedSampler(weights, 0, num_samples=30_000))
    assert_uniform(np.unique(labels, return_inverse=True)[1][ids], 3)


def test_labels_that_are_not_classes_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match=r"one class per sample; labels have shape \(4, 2\)"):
        balanced_weights(np.zeros((4, 2)))


# What all samplers keep


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "sequential": lambda: SequentialSampler(100),
    "sorted": lambda: ShuffleSampler(100, 3),
    "network": lambda: ShuffleSampler(5000, 3),
    "weighted": lambda: WeightedSampler(np.arange(100), 3),
}
every_sampler = pytest.mark.parametrize("build", SAMPLERS.values(), ids=SAMPLERS.keys())


def test_the_sequential_order_is_the_positions_in_every_epoch() -> None:
    np.testing.assert_array_equal(epoch_of(SequentialSampler(100), 3), np.arange(100))


@every_sampler
def test_ids_are_a_new_int64_array_and_positions_are_left_alone(build: Callable[[], Sampler]) -> None:
    positions = np.arange(10)
    sampler = build()
    first = sampler.ids(0, positions)
    expected = first.copy()
    first[:] = -1
    assert first.dtype == np.int64
    np.testing.assert_array_equal(positions, np.arange(10))
    np.testing.assert_array_equal(sampler.ids(0, positions), expected)


@every_sampler
def test_a_pickled_sampler_has_the_same_order(build: Callable[[], Sampler]) -> None:
    sampler = build()
    np.testing.assert_array_equal(epoch_of(pickle.loads(pickle.dumps(sampler)), 4), epoch_of(sampler, 4))


@every_sampler
def test_no_positions_have_no_ids(build: Callable[[], Sampler]) -> None:
    assert build().ids(0, np.empty(0, np.int64)).shape == (0,)


@every_sampler
@pytest.mark.parametrize("outside", [-1, 0], ids=["before", "after"])
def test_a_position_outside_the_epoch_is_refused(build: Callable[[], Sampler], outside: int) -> None:
    sampler = build()
    position = outside if outside < 0 else sampler.num_samples
    with pytest.raises(ValueError, match=rf"positions must be in \[0, num_samples={sampler.num_samples}\)"):
        sampler.ids(0, np.array([position]))


def test_only_the_weighted_sampler_repeats_ids() -> None:
    replacing = {name: build().with_replacement for name, build in SAMPLERS.items()}
    assert replacing == {"sequential": False, "sorted": False, "network": False, "weighted": True}


@pytest.mark.parametrize(
    "build", [lambda n: ShuffleSampler(n, 0), SequentialSampler, lambda n: WeightedSampler([1], 0, n)]
)
def test_a_negative_number_of_samples_is_refused(build: Callable[[int], Sampler]) -> None:
    with pytest.raises(ValueError, match=r"num_samples must be in \[0, 2\*\*63\), got -1"):
        build(-1)


@pytest.mark.parametrize("build", [lambda seed: ShuffleSampler(5, seed), lambda seed: WeightedSampler([1], seed)])
def test_a_seed_outside_64_bits_is_refused_when_the_sampler_is_made(build: Callable[[int], Sampler]) -> None:
    with pytest.raises(ValueError, match="seed must be from 0"):
        build(-1)
