"""A program: reads very many records for three epochs; prints the memory of its process tree after each.

`python many_records.py RECORDS`
"""

from __future__ import annotations

import gc
import json
import os
import sys

import numpy as np
import psutil
import torch
from fakes import jpeg_bytes, photo
from samples import OnePicture
from watching import own_pss_bytes

from pipeline.build import assemble
from pipeline.config import Data, Loader, PipelineConfig, SamplerName, Transforms
from pipeline.loader.slots import max_slots

SIZE, BATCH_SIZE, PREFETCH = 16, 256, 2


def main(count: int) -> None:
    paths = (f"images/{id:09d}.jpg" for id in range(count))
    source = OnePicture(paths, np.zeros(count, np.int64), jpeg_bytes(photo(0, 24, 32), 60))
    index_bytes = len(source.paths.packed) + 16 * count  # a path's end and its label have 8 bytes each
    loader = Loader(backend="processes", num_workers=4, batch_size=BATCH_SIZE, prefetch_factor=PREFETCH)
    transforms = Transforms.named("none", size=SIZE).resolved()
    config = PipelineConfig(data=Data(), loader=loader, transforms=transforms)
    pipeline = assemble(
        source, config, transforms=transforms, sampler=SamplerName.shuffle, device=torch.device("cpu"), name="many"
    )
    del source
    with pipeline:
        for _ in range(3):
            for _ in pipeline:
                pass
            gc.collect()
            tree = [os.getpid(), *(child.pid for child in psutil.Process().children())]
            seen = {
                "pss_bytes": sum(map(own_pss_bytes, tree)),
                "index_bytes": index_bytes,
                "slot_bytes": max_slots(PREFETCH) * BATCH_SIZE * SIZE * SIZE * 3 * 4,
            }
            print(json.dumps(seen), flush=True)  # noqa: T201


main(int(sys.argv[1]))
