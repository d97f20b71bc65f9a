"""The uniforms are sound and are functions of (seed, epoch, id, occurrence) alone.

A statistical test is one statistic at a significance of 1e-4, over seeds and ids counted from 0. The 18 in this file
would fail together once in 550 choices of the constants in draws.py; they choose none.
"""

from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from chance import SIGNIFICANCE, assert_fits, assert_uncorrelated
from numpy.typing import NDArray

from pipeline.draws import draws, key, mix, uniforms

Floats = NDArray[np.float64]


def assert_uniform(cells: NDArray[np.int64], num_cells: int) -> None:
    """Cells are equally likely, by chi-square."""
    counts = np.bincount(cells.ravel(), minlength=num_cells)
    assert_fits(counts, np.full(num_cells, cells.size / num_cells))


@cache
def along_ids() -> Floats:
    return draws(0, 0, np.arange(20_000), 8)


@cache
def along_occurrences() -> Floats:
    return draws(0, 0, np.zeros(20_000, np.int64), 8, occurrence=np.arange(20_000))


@cache
def along_epochs() -> Floats:
    return np.concatenate([draws(0, epoch, np.arange(1), 8) for epoch in range(20_000)])


@cache
def along_seeds() -> Floats:
    return np.concatenate([draws(seed, 0, np.arange(1), 8) for seed in range(20_000)])


@cache
def along_columns() -> Floats:
    return draws(0, 0, np.arange(8), 20_000).T


along = pytest.mark.parametrize(
    "axis", [along_ids, along_occurrences, along_epochs, along_seeds, along_columns], ids=lambda axis: axis.__name__
)


@along
def test_draws_are_uniform(axis: Callable[[], Floats]) -> None:
    assert_uniform((axis() * 1000).astype(np.int64), 1000)


@along
def test_neighbouring_draws_are_independent(axis: Callable[[], Floats]) -> None:
    coarse = (axis() * 32).astype(np.int64)
    assert_uniform(coarse[0::2] * 32 + coarse[1::2], 32 * 32)


@along
def test_neighbouring_draws_are_uncorrelated(axis: Callable[[], Floats]) -> None:
    values = axis()
    assert_uncorrelated(values[:-1], values[1:])


def test_the_lowest_bits_are_uniform_too() -> None:
    bits = (draws(0, 0, np.arange(20_000), 8) * 2.0**53).astype(np.int64)
    assert_uniform(bits % 256, 256)


def test_an_id_and_its_neighbour_in_another_epoch_are_uncorrelated() -> None:
    assert_uncorrelated(draws(0, 0, np.arange(20_000), 8), draws(0, 1, np.arange(1, 20_001), 8))


def test_every_bit_of_the_id_and_the_occurrence_changes_half_of_the_bits_drawn() -> None:
    ids = np.arange(1000)
    drawn = (draws(0, 0, ids, 1) * 2.0**53).astype(np.uint64)
    flipped = [draws(0, 0, ids ^ (1 << bit), 1) for bit in range(44)]
    flipped += [draws(0, 0, ids, 1, occurrence=1 << bit) for bit in range(19)]
    changed = [np.bitwise_count(drawn ^ (values * 2.0**53).astype(np.uint64)) for values in flipped]
    bits = 53 * drawn.size
    deviations = (np.sum(changed, axis=(1, 2)) - bits / 2) / (bits / 4) ** 0.5
    assert np.abs(deviations).max() < NormalDist().inv_cdf(1 - SIGNIFICANCE / 2 / len(changed))


def test_no_two_seeds_epochs_ids_or_occurrences_share_a_draw() -> None:
    occurrences, ids = (axis.ravel() for axis in np.indices((10, 500)))
    values = [draws(seed, epoch, ids, 2, occurrences) for seed in range(10) for epoch in range(10)]
    assert np.unique(values).size == 10 * 10 * 10 * 500 * 2  # 53 bits: a repeat has a chance of 6e-5


def test_a_row_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    ids, occurrences = np.array([5, 0, 10**12, 5, 7]), np.array([0, 1, 2, 3, 2**19 - 1])
    together = draws(3, 2, ids, 6, occurrences)
    backwards = draws(3, 2, ids[::-1], 6, occurrences[::-1])
    alone = [draws(3, 2, np.array([id]), 6, int(nth))[0] for id, nth in zip(ids, occurrences, strict=True)]
    np.testing.assert_array_equal(together, backwards[::-1])
    np.testing.assert_array_equal(together, alone)


def test_a_column_does_not_depend_on_how_many_there_are() -> None:
    ids = np.arange(10)
    np.testing.assert_array_equal(draws(0, 0, ids, 3), draws(0, 0, ids, 24)[:, :3])


def test_the_first_occurrence_is_the_default() -> None:
    ids = np.arange(10)
    np.testing.assert_array_equal(draws(0, 0, ids, 3), draws(0, 0, ids, 3, np.zeros(10, np.int64)))


def test_drawing_changes_neither_its_ids_nor_a_global_generator() -> None:
    ids, occurrences = np.arange(4), np.ones(4, np.int64)
    before: Any = np.random.get_state()
    draws(0, 0, ids, 3, occurrences)
    after: Any = np.random.get_state()
    np.testing.assert_array_equal(ids, np.arange(4))
    np.testing.assert_array_equal(occurrences, np.ones(4))
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize(("num_ids", "num"), [(0, 5), (5, 0), (1, 1), (64, 24)])
def test_draws_have_a_row_per_id_and_lie_in_the_unit_interval(num_ids: int, num: int) -> None:
    values = draws(2**64 - 1, 2**64 - 1, np.arange(num_ids), num)
    assert values.shape == (num_ids, num)
    assert values.dtype == np.float64
    assert ((values >= 0) & (values < 1)).all()


def test_the_largest_word_becomes_a_uniform_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.draws.mix", lambda counters: np.full_like(counters, 2**64 - 1))
    assert uniforms(0, np.arange(1), 1)[0, 0] == 1 - 2.0**-53


def test_mix_is_splitmix64s_output_function() -> None:
    counters = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix(counters).tolist() == published


def test_draws_of_today_are_those_of_the_first_release() -> None:
    values = draws(2026, 7, np.array([0, 123_456_789]), 2, np.array([0, 3]))
    assert values.tolist() == [
        [0.3881749569525139, 0.12531121103810483],
        [0.9681904895027778, 0.9959817857627252],
    ]


def test_keys_tell_purposes_words_and_their_order_apart() -> None:
    keys = [
        key("order"),
        key("draws"),
        key("order", seed=0),
        key("order", seed=0, epoch=0),
        key("order", seed=0, epoch=1),
        key("order", seed=1, epoch=0),
        key("draws", seed=0, epoch=1),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= word < 2**64 for word in keys)


@pytest.mark.parametrize("seed", [np.int64(5), np.uint64(5), 5], ids=["int64", "uint64", "int"])
def test_a_numpy_seed_is_the_same_seed(seed: int) -> None:
    np.testing.assert_array_equal(draws(seed, 0, np.arange(3), 2), draws(5, 0, np.arange(3), 2))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused_by_name(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"^seed must be from 0 to 2\*\*64 - 1, got {seed}$"):
        draws(seed, 0, np.arange(3), 2)


def test_a_negative_epoch_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^epoch must be from 0"):
        draws(0, -1, np.arange(3), 2)


@pytest.mark.parametrize("seed", [1.0, "1", None])
def test_a_seed_that_is_no_integer_is_refused_by_name(seed: Any) -> None:
    with pytest.raises(TypeError, match=r"^seed must be an integer, got"):
        draws(seed, 0, np.arange(3), 2)
