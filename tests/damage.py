"""What may become of files on disks and wires."""

from __future__ import annotations

import numpy as np


def mutated(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """`data` with bytes flipped anywhere or in its header, cut, spliced, or with a block zeroed, doubled or put in."""
    first, second = sorted(random.integers(1, len(data), 2).tolist())
    kind = int(random.integers(7))
    if kind <= 1:
        changed = bytearray(data)
        for at in random.integers(0, len(data) if kind == 0 else min(64, len(data)), random.integers(1, 9)).tolist():
            changed[at] = int(random.integers(256))
        return bytes(changed)
    return [
        data[:first],
        data[:first] + other[int(random.integers(len(other))) :],
        data[:first] + bytes(second - first) + data[second:],
        data[:second] + data[first:second] + data[second:],
        data[:first] + random.bytes(int(random.integers(1, 40))) + data[first:],
    ][kind - 2]
