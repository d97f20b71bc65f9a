"""The conditions of a measurement: versions, machine and commit. Plain values, for JSON and checkpoints."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.machine import num_cores

_PACKAGES = (
    "headrace", "torch", "torchvision", "numpy", "opencv-python-headless", "simplejpeg", "pillow", "hydra-core",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """The versions that decide what a run computes and how fast; None: not there."""
    return {"python": platform.python_version(), "cuda": torch.version.cuda} | {
        package: _version(package) for package in _PACKAGES
    }


def host() -> dict[str, Any]:
    """The machine: its cores and those this process may use, memory, torch's threads now, GPU."""
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": num_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "num_torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str | None:
    """The git commit of this source, with `-dirty` after it if files differ; None outside a checkout."""
    source = Path(__file__).resolve()
    try:
        # An installed copy can lie inside somebody else's checkout (a .venv): only a tracked file counts.
        _git("ls-files", "--error-unmatch", source.name, folder=source.parent)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=source.parent)
    except (OSError, subprocess.SubprocessError):
        return None


def plain(value: Any) -> Any:
    """The same in dicts, lists and scalars only: dataclasses by field, enums by value, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git(*arguments: str, folder: Path) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
