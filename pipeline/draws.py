"""Counter-based uniforms: a sample's random numbers from its own numbers, never from a generator's state.

Every number is SplitMix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; Stafford's variant 13 of MurmurHash3's finaliser) of a counter. A row of `draws` is a
SplitMix64 stream of its own, which starts where another SplitMix64 step over (id, occurrence) points. All of
it is integer arithmetic modulo 2**64, so it is the same on every machine.
"""

from operator import index

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Arrays of no dimension: with a Python or NumPy scalar a call on 64 ids takes 0.5 us, with these 0.3.
GOLDEN, FIRST, SECOND = (np.array(factor, dtype=np.uint64) for factor in (0x9E3779B97F4A7C15, _FIRST, _SECOND))
_SHIFTS = tuple(np.array(bits, dtype=np.uint64) for bits in (30, 27, 31))
# A counter holds the id below the occurrence: no two pairs share one up to 2**44 ids and 2**19 occurrences.
_ID_BITS = 44


def mix(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit counters in place and return them; a bijection, so distinct counters stay distinct."""
    shifted = np.right_shift(counters, _SHIFTS[0])
    np.bitwise_xor(counters, shifted, out=counters)
    np.multiply(counters, FIRST, out=counters)
    np.right_shift(counters, _SHIFTS[1], out=shifted)
    np.bitwise_xor(counters, shifted, out=counters)
    np.multiply(counters, SECOND, out=counters)
    np.right_shift(counters, _SHIFTS[2], out=shifted)
    np.bitwise_xor(counters, shifted, out=counters)
    return counters


def word64(name: str, value: object) -> int:
    """Return `value` as an int; TypeError unless it is an integer, ValueError unless it is in [0, 2**64)."""
    try:
        word = index(value)  # type: ignore[arg-type]  # anything may come from a user's configuration
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not 0 <= word <= _MASK:
        raise ValueError(f"{name} must be from 0 to 2**64 - 1, got {word}")
    return word


def key(purpose: str, **words: int) -> int:
    """Return the 64-bit key of a purpose and some numbers: `key("order", seed=0, epoch=3)`.

    Keys that differ in the purpose or in any number are as good as independent. `purpose` is at most eight
    ASCII characters; the order of the words counts, their names are for the errors of `word64` only.
    """
    state = _mix_int(word64("purpose", int.from_bytes(purpose.encode("ascii"))))
    for name, value in words.items():
        state = _mix_int(state ^ word64(name, value))
    return state


def uniforms(key: int, counters: NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """Return `num` uniforms in [0, 1) for each counter, shape (B, num), 53 random bits each.

    Column c is the same whatever `num` is.
    """
    states = counters.astype(np.uint64)
    np.multiply(states, GOLDEN, out=states)
    np.add(states, np.uint64(key), out=states)
    bits = mix(mix(states)[:, np.newaxis] + np.arange(num, dtype=np.uint64) * GOLDEN)
    np.right_shift(bits, 11, out=bits)
    return np.multiply(bits, 2.0**-53)


def draws(
    seed: int, epoch: int, ids: NDArray[np.int64], num: int, occurrence: int | NDArray[np.int64] = 0
) -> NDArray[np.float64]:
    """Return each sample's own uniforms in [0, 1), float64 (B, num).

    A row is a function of (seed, epoch, its id, its occurrence) and of nothing else, neither of the other rows
    nor of their order. `occurrence` is the crop's number or the n-th repeat of an id in the epoch, one for all
    or int64 (B,). Raises ValueError for a seed or an epoch outside [0, 2**64).
    """
    return uniforms(key("draws", seed=seed, epoch=epoch), ids + (occurrence << _ID_BITS), num)


def _mix_int(counter: int) -> int:
    """`mix` of one Python int below 2**64."""
    counter = (counter ^ counter >> 30) * _FIRST & _MASK
    counter = (counter ^ counter >> 27) * _SECOND & _MASK
    return counter ^ counter >> 31
