"""A program: prints the memory of a loader's process tree with 4 workers, without a cache and with all of it cached.

`python store_memory.py JPEG RECORDS POLICY`
"""

from __future__ import annotations

import gc
import json
import os
import sys

import psutil
import torch
from watching import own_pss_bytes

from pipeline.build import assemble
from pipeline.config import Cache, CachePolicy, Data, Loader, PipelineConfig, SamplerName, Transforms
from pipeline.sources import FileSource


def main(path: str, count: int, policy: str) -> None:
    transforms = Transforms.named("light", size=16).resolved()
    seen = {}
    for name in ("none", policy):
        config = PipelineConfig(
            data=Data(),
            cache=Cache(policy=CachePolicy(name), store="decoded" if name != "none" else "auto"),  # type: ignore[arg-type]
            loader=Loader(backend="processes", num_workers=4, batch_size=16),  # type: ignore[arg-type]
            transforms=transforms,
        )
        source, device = FileSource([path] * count, range(count)), torch.device("cpu")
        options = {"transforms": transforms, "sampler": SamplerName.shuffle, "device": device, "name": "memory"}
        with assemble(source, config, **options) as pipeline:  # type: ignore[arg-type]
            for _ in range(2):
                for _ in pipeline:
                    pass
            gc.collect()
            tree = [os.getpid(), *(child.pid for child in psutil.Process().children())]
            seen[name] = sum(map(own_pss_bytes, tree))
            seen["cached"] = int(pipeline.stats().get("cache_bytes", 0))
            seen["entries"] = int(pipeline.stats().get("cache_entries", 0))
    print(json.dumps([seen["none"], seen[policy], seen["cached"], seen["entries"]]))  # noqa: T201


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
