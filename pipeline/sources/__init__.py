"""Where samples come from. Every source answers `len`, `read(id)`, `label(id)`, `where(id)` and `fingerprint()`.

Names are imported when first used: a worker process needs one kind of source, and every module is memory there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.sources.arrays import open_arrays
    from pipeline.sources.cifar import open_cifar10, open_cifar100
    from pipeline.sources.files import ArraySource, FileSource
    from pipeline.sources.folder import open_folder
    from pipeline.sources.manifest import open_manifest
    from pipeline.sources.own import open_own
    from pipeline.sources.parquet import ParquetSource, open_parquet
    from pipeline.sources.paths import AnyPath, PathTable
    from pipeline.sources.remote import Remote, is_remote
    from pipeline.sources.remote_files import open_remote_folder, open_remote_manifest
    from pipeline.sources.source import Source
    from pipeline.sources.split import Split
    from pipeline.sources.subset import Subset, at_most
    from pipeline.sources.synthetic import generate_synthetic, open_synthetic
    from pipeline.sources.tar import TarSource, open_tar

__all__ = [
    "AnyPath",
    "ArraySource",
    "FileSource",
    "ParquetSource",
    "PathTable",
    "Remote",
    "Source",
    "Split",
    "Subset",
    "TarSource",
    "at_most",
    "generate_synthetic",
    "is_remote",
    "open_arrays",
    "open_cifar10",
    "open_cifar100",
    "open_folder",
    "open_manifest",
    "open_own",
    "open_parquet",
    "open_remote_folder",
    "open_remote_manifest",
    "open_synthetic",
    "open_tar",
]

_HOMES = {
    "AnyPath": "paths",
    "ArraySource": "files",
    "FileSource": "files",
    "ParquetSource": "parquet",
    "PathTable": "paths",
    "Remote": "remote",
    "Source": "source",
    "Split": "split",
    "Subset": "subset",
    "TarSource": "tar",
    "at_most": "subset",
    "is_remote": "remote",
    "generate_synthetic": "synthetic",
    "open_arrays": "arrays",
    "open_cifar10": "cifar",
    "open_cifar100": "cifar",
    "open_folder": "folder",
    "open_manifest": "manifest",
    "open_own": "own",
    "open_parquet": "parquet",
    "open_remote_folder": "remote_files",
    "open_remote_manifest": "remote_files",
    "open_synthetic": "synthetic",
    "open_tar": "tar",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
