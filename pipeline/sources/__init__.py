"""Where samples come from. Every source answers `len`, `read(id)`, `label(id)`, `where(id)` and `fingerprint()`.

Importing this costs NumPy and nothing more; what a source needs beyond that is imported where it is used.
"""

from pipeline.sources.cifar10 import open_cifar10
from pipeline.sources.files import ArraySource, FileSource
from pipeline.sources.folder import open_folder
from pipeline.sources.manifest import open_manifest
from pipeline.sources.paths import AnyPath, PathTable
from pipeline.sources.source import Source
from pipeline.sources.split import Split
from pipeline.sources.synthetic import generate_synthetic, open_synthetic
from pipeline.sources.tar import TarSource, open_tar

__all__ = [
    "AnyPath",
    "ArraySource",
    "FileSource",
    "PathTable",
    "Source",
    "Split",
    "TarSource",
    "generate_synthetic",
    "open_cifar10",
    "open_folder",
    "open_manifest",
    "open_synthetic",
    "open_tar",
]
