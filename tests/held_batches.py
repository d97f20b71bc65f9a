"""A program: holds and drops batches at random under few descriptors; prints what it has open after each epoch.

`python held_batches.py BATCHES HELD`
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys

import numpy as np
from fakes import make_loader
from samples import Painted

EPOCHS = 10


def main(num_batches: int, most_held: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    choose = random.Random(0)
    num_samples = 4 * num_batches // EPOCHS
    held = []
    with make_loader(
        Painted(), backend="processes", num_workers=2, num_samples=num_samples, row_shape=(32, 32, 3)
    ) as loader:
        for _ in range(EPOCHS):
            for batch in loader:
                if choose.random() < 0.5:
                    held.append(batch)
                if len(held) >= most_held or choose.random() < 0.01:
                    for _ in range(choose.randrange(len(held) + 1)):
                        held.pop(choose.randrange(len(held)))
            for batch in held:
                drawn = batch.images[:, 0, 0, 0].numpy() - batch.ids.numpy()
                assert np.all((drawn >= 0) & (drawn <= 1)), "a batch is not its samples'"  # 1: rounded to float32
            counts = {"descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}
            print(json.dumps(counts))  # noqa: T201


main(int(sys.argv[1]), int(sys.argv[2]))
