"""Which sample stands at which position of an epoch, and which positions a rank takes.

A sampler is a function (seed, epoch, positions) -> ids and stores no order: a resumed run asks for positions
in the middle of an epoch and pays what it would have paid for the first ones.
"""

from functools import lru_cache
from math import isqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.draws import FIRST, GOLDEN, SECOND, key, mix, uniforms, word64

# Up to here an epoch's permutation is sorted once (0.3 ms, 32 KiB) and looked up: the smaller a Feistel network's
# halves are, the more rounds it needs.
_MAX_SORTED = 4096
# Over 15,000 epochs of the smallest networks (4,097, 4,099 and 4,166 samples) the differences between ids 1, b
# and b + 1 positions apart, and between epochs, are uniform by chi-square. Four rounds are caught in 2,000 epochs
# and five in 12,000; six, which would save 8 us a batch, leave less of a margin.
_ROUNDS = 8
_HALF = np.array(32, dtype=np.uint64)
Words = NDArray[np.uint64]  # a word for all numbers is an array of no dimension: `draws` says why


class Sampler(Protocol):
    """Maps positions of an epoch to sample ids; picklable, and safe to call from several threads."""

    num_samples: int
    """Positions in an epoch."""
    with_replacement: bool
    """Whether an id may come twice in an epoch; then a position, not an id, is unique in it."""

    def ids(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at `positions` of `epoch`, a new array; ValueError for a position outside it."""
        ...


class SequentialSampler:
    """Every id in its own place, in every epoch."""

    with_replacement = False

    def __init__(self, num_samples: int) -> None:
        self.num_samples = _checked_length(num_samples)

    def ids(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: ARG002  a Sampler's
        """Return a copy of `positions`."""
        return _counters(positions, self.num_samples).view(np.int64)


class ShuffleSampler:
    """A permutation of `num_samples` ids, another for every (seed, epoch), computed position by position.

    Up to 4,096 samples the ids are sorted by random words. Above, a generalised Feistel network (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002) permutes Z_a x Z_b with a * b just above the
    number of samples, and a number that falls outside goes through again until it is inside ("cycle walking"),
    which keeps it a permutation. A batch goes through as often as its unluckiest member, so the excess of a * b
    is what walking costs: in the next power of two up to half of all numbers walk, and 64 of them take about
    seven passes; here at most one in 290 walks, of 2**20 + 1 one in 45,000, and most batches take one pass.
    """

    with_replacement = False

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = _checked_length(num_samples)
        self.seed = word64("seed", seed)
        self._height, self._width = _near_square(num_samples)

    def ids(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at `positions` of `epoch`; a position costs the same wherever it is."""
        counters = _counters(positions, self.num_samples)
        if self.num_samples <= _MAX_SORTED:
            return _sorted_permutation(self.num_samples, self.seed, epoch)[counters]
        keys = _round_keys(self.seed, epoch)
        numbers = self._permute(counters, keys)
        outside = np.flatnonzero(numbers >= self.num_samples)
        while outside.size:
            walked = self._permute(numbers[outside], keys)
            numbers[outside] = walked
            outside = outside[walked >= self.num_samples]
        return numbers.view(np.int64)

    def _permute(self, numbers: Words, keys: list[Words]) -> Words:
        """Permute [0, height * width): a round adds to one half a random function of the other half."""
        row, column = np.divmod(numbers, self._width)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            _add_scattered(column, row, even, self._width)
            _add_scattered(row, column, odd, self._height)
        np.multiply(row, self._width, out=row)
        return np.add(row, column, out=row)


class WeightedSampler:
    """Ids with replacement, each as often as its weight says, every position independently of the others.

    Args:
        weights: One number >= 0 per id, of any scale; an id of weight 0 never comes.
        seed: In [0, 2**64).
        num_samples: Positions in an epoch; None for as many as there are weights.

    Raises:
        ValueError: `weights` is not one-dimensional, has a value below 0 or not finite, or none above 0.
    """

    with_replacement = True

    def __init__(self, weights: ArrayLike, seed: int, num_samples: int | None = None) -> None:
        self._thresholds, self._aliases = _alias_table(_checked_weights(weights))
        self.num_samples = len(self._aliases) if num_samples is None else _checked_length(num_samples)
        self.seed = word64("seed", seed)

    def ids(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at `positions` of `epoch`: two uniforms and one look-up each."""
        counters = _counters(positions, self.num_samples).view(np.int64)
        pairs = uniforms(key("weighted", seed=self.seed, epoch=epoch), counters, 2)
        columns = (pairs[:, 0] * len(self._aliases)).astype(np.int64)
        return np.where(pairs[:, 1] < self._thresholds[columns], columns, self._aliases[columns])


def balanced_weights(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return for each sample 1 / (samples of its class), so that every class is drawn equally often.

    Raises ValueError unless `labels` is one-dimensional.
    """
    if labels.ndim != 1:
        raise ValueError(f"loader.sampler=balanced needs one class per sample; labels have shape {labels.shape}")
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.divide(1.0, counts[classes])


def num_steps(num_samples: int, global_batch_size: int, *, drop_last: bool) -> int:
    """Return the global batches in an epoch; the last may be incomplete, with `drop_last` it is not there."""
    if global_batch_size < 1:
        raise ValueError(f"the global batch size must be at least 1, got {global_batch_size}")
    return num_samples // global_batch_size if drop_last else -(-num_samples // global_batch_size)


def rank_positions(
    step: int, *, num_samples: int, batch_size: int, rank: int, world_size: int, drop_last: bool
) -> NDArray[np.int64]:
    """Return the positions of this rank's part of global batch `step`: rank, rank + world_size, ... of it.

    The ranks' parts differ in length by at most one; a rank has none when the last global batch has fewer
    positions than there are ranks. Together they are the global batch, the same positions however many ranks
    share it. Raises ValueError for a step outside the epoch or a rank outside the world.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size={world_size}), got {rank}")
    global_batch_size = batch_size * world_size
    steps = num_steps(num_samples, global_batch_size, drop_last=drop_last)
    if not 0 <= step < steps:
        raise ValueError(f"step must be in [0, {steps}), the steps of an epoch, got {step}")
    start = step * global_batch_size
    return np.arange(start + rank, min(start + global_batch_size, num_samples), world_size, dtype=np.int64)


def _checked_length(num_samples: int) -> int:
    """Return `num_samples`, which may be 0: an empty epoch has no position to ask for."""
    if not 0 <= num_samples < 2**63:
        raise ValueError(f"num_samples must be in [0, 2**63), got {num_samples}")
    return num_samples


def _counters(positions: NDArray[np.int64], num_samples: int) -> Words:
    """Return a copy of `positions` as uint64, where a negative one is huge: one comparison checks both ends."""
    counters = positions.astype(np.uint64)
    if counters.size and counters.max() >= num_samples:
        low, high = positions.min(), positions.max()
        raise ValueError(f"positions must be in [0, num_samples={num_samples}), got {low} to {high}")
    return counters


def _near_square(num_samples: int) -> tuple[Words, Words]:
    """Return the sides of the tightest rectangle over `num_samples` among at most 64 nearly square ones."""
    root = max(1, isqrt(num_samples))
    longest = root + min(63, root // 4)
    side = min(range(root, longest + 1), key=lambda side: -num_samples % side)
    return np.array(side, dtype=np.uint64), np.array(-(-num_samples // side), dtype=np.uint64)


@lru_cache(maxsize=8)  # training and validation, this epoch and the next one, and as much again
def _sorted_permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the ids sorted by their random words. Shared: not to be written to."""
    return np.argsort(_words(num_samples, seed, epoch))


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> list[Words]:
    """Return the Feistel network's keys of an epoch. Shared: not to be written to."""
    return [np.array(word) for word in _words(_ROUNDS, seed, epoch)]


def _words(num: int, seed: int, epoch: int) -> Words:
    """Return `num` distinct random 64-bit words."""
    return mix(np.arange(num, dtype=np.uint64) * GOLDEN + np.uint64(key("order", seed=seed, epoch=epoch)))


def _add_scattered(target: Words, half: Words, round_key: Words, size: Words) -> None:
    """Add to one half of each number a random function of the other, modulo the half's size: one round.

    The function is the upper 32 bits of `mix` without its first and last xor-shift, which cost a third of the time:
    the differences of its values are uniform all the same. A size is below 2**32, the samples fewer than 2**63.
    """
    bits = np.add(half, round_key)
    np.multiply(bits, FIRST, out=bits)
    np.bitwise_xor(bits, np.right_shift(bits, _HALF), out=bits)
    np.multiply(bits, SECOND, out=bits)
    np.right_shift(bits, _HALF, out=bits)
    np.add(target, bits, out=target)
    np.remainder(target, size, out=target)


def _checked_weights(weights: ArrayLike) -> NDArray[np.float64]:
    """Return `weights` scaled to mean 1, a new array."""
    array = np.array(weights, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"weights must be one number per sample, got shape {array.shape}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if wrong.size:
        raise ValueError(f"weights must be finite and >= 0, got weights[{wrong[0]}]={array[wrong[0]]}")
    if not array.any():
        raise ValueError("weights must have at least one above 0, all are 0")
    array /= array.max()  # first, so that no sum overflows
    array /= array.mean()
    return array


def _alias_table(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return thresholds and aliases: column i gives i below its threshold, its alias above (Walker; Vose 1991).

    Vose's loop, which fills light columns up from heavy ones, is here two cumulative sums, the light ones'
    deficits and the heavy ones' excesses, and a merge of them (Huebschle-Schneider and Sanders, "Parallel
    weighted random sampling", 2022): a light column's alias is the heavy one being spent when its turn comes,
    and a heavy one spent below 1 is itself filled from the next. A Python loop would be ten times slower.
    """
    is_heavy = weights >= 1  # one is: the mean of numbers up to 1 is at most 1, however it is rounded
    heavy, light = np.flatnonzero(is_heavy), np.flatnonzero(~is_heavy)
    excesses = np.cumsum(weights[heavy] - 1)
    deficits = np.concatenate(([0.0], np.cumsum(1 - weights[light])))
    thresholds, aliases = weights.copy(), np.arange(len(weights))
    spending = np.searchsorted(excesses, deficits[:-1], side="right")
    aliases[light] = heavy[np.minimum(spending, heavy.size - 1)]  # rounding may end the excesses too early
    spent_by = np.searchsorted(deficits, excesses[:-1])
    spent = np.flatnonzero(spent_by < deficits.size)
    thresholds[heavy[spent]] = 1 + excesses[spent] - deficits[spent_by[spent]]
    aliases[heavy[spent]] = heavy[spent + 1]
    return thresholds, aliases
