"""A contender in a process of its own: `python peer_child.py NAME MANIFEST` prints JSON about four epochs.

The images are those that `test_peers.py` paints: their id is in the level of two channels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.bench import peers
from pipeline.config import Bench, BenchConfig, Loader, ManifestData, Transforms

BATCH_SIZE = 6
ID_STEP, ID_OFFSET = 6, 10
"""The channels that are not the brightest have level ID_OFFSET + ID_STEP * id."""


def config(contender: str, manifest: str, **changes: Any) -> BenchConfig:
    """Two workers, 32 pixels, a normalisation that is nobody's default; `changes` are whole groups."""
    groups = {
        "data": ManifestData(path=manifest),
        "loader": Loader(batch_size=BATCH_SIZE, num_workers=2),
        "transforms": Transforms(size=32, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3]),
        **changes,
    }
    return BenchConfig(bench=Bench(contender=contender), **groups)


def look_at(images: Any, labels: Any, transforms: Transforms) -> list[dict[str, Any]]:
    """What each image of a batch shows, the normalisation undone: pixels in [0, 1]."""
    mean, std = (np.array(values)[:, None, None] for values in (transforms.mean, transforms.std))
    shown = np.asarray(images, dtype=np.float64) * std + mean
    half = shown.shape[3] // 2
    slopes = shown[..., half:].mean((1, 2, 3)) - shown[..., :half].mean((1, 2, 3))
    means = shown.mean((2, 3))
    return [
        {
            "label": int(label),
            "shown_id": round((255 * np.sort(row)[:2].mean() - ID_OFFSET) / ID_STEP),
            "brightest": int(row.argmax()),
            "brightness": row.max(),
            "slope": slope,
        }
        for label, row, slope in zip(labels, means, slopes, strict=True)
    ]


def measure(cfg: BenchConfig, num_epochs: int) -> dict[str, Any]:
    """The contender's words about itself, and its batches, epoch by epoch."""
    epochs: list[list[list[dict[str, Any]]]] = []
    with peers.open_contender(cfg, torch.device("cpu")) as contender:
        for _ in range(num_epochs):
            batches = []
            for _ in range(contender.batches_per_epoch):
                images, labels = next(contender.stream)
                batches.append(look_at(images, labels, cfg.transforms))
            epochs.append(batches)
        last = torch.as_tensor(images)
        channels_last = last.is_contiguous(memory_format=torch.channels_last)
        return {
            "epochs": epochs,
            "dtype": str(last.dtype),
            "shape": list(last.shape),
            "layout": "channels-last" if channels_last else "contiguous" if last.is_contiguous() else "neither",
            **{name: getattr(contender, name) for name in ("num_samples", "num_workers", "resize", "served_from")},
            "says_layout": contender.layout,
            "deviations": contender.deviations,
        }


def written() -> dict[str, int]:
    """The files that `prepare` has made below the current directory, and when."""
    return {str(path): path.stat().st_mtime_ns for path in Path("data").rglob("*") if path.is_file()}


def main(name: str, manifest: str) -> None:
    """Prepare twice, run four epochs, close, and look for what is left."""
    cfg = config(name, manifest)
    peers.prepare(cfg)
    first = written()
    peers.prepare(cfg)
    seen = measure(cfg, num_epochs=4) | {"prepared": first, "prepared_again": written()}
    print(json.dumps(seen | {"processes": len(psutil.Process().children(recursive=True))}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
