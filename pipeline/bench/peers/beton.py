"""FFCV's file, written by FFCV: `python -m pipeline.bench.peers.beton PATH`, a pickled `FileSource` on standard input.

A process of its own, because FFCV's writer leaves two processes behind that would be counted as the trial's.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.writer import DatasetWriter

from pipeline.sources import FileSource


class JpegField(RGBImageField):  # type: ignore[misc]  # FFCV has no types
    """FFCV's image field for what is a JPEG already; its own encodes decoded images, at a quality of its choice."""

    def encode(self, destination: Any, image: bytes, malloc: Any) -> None:
        """Keep the bytes of `image`; FFCV's writer calls it."""
        height, width, _, _ = simplejpeg.decode_jpeg_header(image, strict=False)
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(image))
        storage[:] = np.frombuffer(image, np.uint8)


class _BytesAndIds:
    def __init__(self, source: FileSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, id: int) -> tuple[bytes, int]:
        return self._source.read(int(id)), int(id)


def main(path: Path, source: FileSource) -> None:
    """Write fields `image` and `id`; what cannot be read is waited for without end."""
    writer = DatasetWriter(str(path), {"image": JpegField(), "id": IntField()}, num_workers=1)
    writer.from_indexed_dataset(_BytesAndIds(source))


if __name__ == "__main__":
    main(Path(sys.argv[1]), pickle.load(sys.stdin.buffer))
