"""The design's promises about structure: who imports whom, and what must not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent

LEAVES = {
    "_compat",
    "config",
    "draws",
    "launched",
    "lock",
    "machine",
    "main_script",
    "named",
    "native",
    "pickling",
    "shared",
    "stats",
}
"""Rooms that any other may import; they import nothing but each other."""

FLOW = [
    "sources",
    "sampler",
    "cache",
    "preload",
    "orientation",
    "decode",
    "transforms",
    "loader",
    "streams",
    "prefetch",
    "quarantine",
    "build_estimate",
    "build_budget",
    "build_loader",
    "build_prefetch",
    "build_source",
    "build_pack",
    "build_store",
    "build_loading",
    "build_transform",
    "build_batches",
    "build",
    "dataset",
    "api",
    "model",
    "dist",
    "stalls",
    "training",
    "bench",
    "cli_lines",
    "cli",
    "doctor",
    "equivalence",
]
"""Data flows down this list: a room imports only rooms above it."""

BESIDES = {("cache", "sources"), ("cache", "decode"), ("preload", "sources"), ("preload", "decode")}
"""Above, and yet not to be imported: `build` hands caches and preload a `load(id)`."""

RUNS_IN_WORKERS = [
    "pipeline",
    "pipeline.config",
    "pipeline.sources",
    "pipeline.sampler",
    "pipeline.draws",
    "pipeline.cache",
    "pipeline.cache.host",
    "pipeline.cache.load",
    "pipeline.cache.pack",
    "pipeline.cache.packed",
    "pipeline.preload",
    "pipeline.decode",
    "pipeline.transforms",
    "pipeline.transforms.sample",
    "pipeline.loader",
    "pipeline.loader.job",
    "pipeline.loader.executors",
    "pipeline.loader.sample",
    "pipeline.loader.processes",
    "pipeline.loader.worker",
    "pipeline.main_script",
    "pipeline.pickling",
    "pipeline.transforms.callables",
    "pipeline.shared",
    "pipeline.stats",
    "pipeline.machine",
    "pipeline.lock",
    "pipeline.launched",
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Rooms that a file imports, lazily or not, type checking aside."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pipeline.")}
    return found - {room_of(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    room = room_of(path)
    assert room in LEAVES or room in FLOW, f"{room} has no place in the flow"
    allowed = LEAVES if room in LEAVES else LEAVES | set(FLOW[: FLOW.index(room)])
    allowed = {other for other in allowed if (room, other) not in BESIDES}
    assert imports_of(path) <= allowed


def test_what_runs_in_a_worker_imports_no_torch() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {RUNS_IN_WORKERS!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'torchvision', 'hydra', 'omegaconf', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_importing_the_package_loads_nothing_until_a_name_is_used() -> None:
    script = (
        "import sys, pipeline\n"
        "assert 'numpy' not in sys.modules\n"
        "assert set(pipeline.__all__) <= set(dir(pipeline)) | set(pipeline._HOMES)\n"
        "pipeline.create_dataloader\n"
        "assert 'torch' in sys.modules\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_streams_are_made_and_waited_on_in_one_file() -> None:
    for path in FILES:
        if path.name != "streams.py":
            text = path.read_text()
            assert not any(word in text for word in ("cuda.Stream", "wait_event", "record_stream", "wait_stream")), path


def test_no_room_is_called_utils() -> None:
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "common", "helpers", "core", "base", "misc"}


def test_every_package_is_installed() -> None:
    configured = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert found <= set(configured)
