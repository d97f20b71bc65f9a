"""Where another loader is installed: in an environment of its own that `build.py` made, or in this Python.

Of its own, because one loader's requirements need not agree with another's. It shares every package that this Python
has, torch and NumPy above all.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.bench import ContenderName

ENVIRONMENTS = Path(".peers")
"""Below the current directory, an environment for each loader."""
READY = "ready"
"""A file in an environment that `build.py` writes once the loader was seen to work there; holds its version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is installed for a loader, in the version that its module here was written against."""

    module: str
    """What is imported."""
    proof: str
    """Statements that fail where it does not work."""
    distribution: str
    """What pip calls it."""
    requirements: tuple[str, ...]
    """What pip installs, and what that requires in turn."""
    source: str | None = None
    """What is then compiled, without what it requires in turn; None: nothing."""
    libraries: tuple[str, ...] = ()
    """What pkg-config must know for that."""
    cure: str = ""
    """How to get what is not on pip's index."""


RECIPES = {
    # On the CPU it does not matter for which CUDA it was built.
    ContenderName.dali: Recipe(
        module="nvidia.dali",
        proof="import nvidia.dali.fn",
        distribution="nvidia-dali-cuda120",
        requirements=("nvidia-dali-cuda120==2.4.0",),
    ),
    # What it requires itself is listed here, less opencv-python: that is the project's, under another name.
    ContenderName.ffcv: Recipe(
        module="ffcv",
        proof="import ffcv.loader",
        distribution="ffcv",
        requirements=("assertpy", "fastargs", "numba", "pytorch-pfn-extras", "setuptools", "terminaltables", "wheel"),
        source="ffcv==1.0.2",
        libraries=("opencv4", "libturbojpeg"),
        cure="apt install libopencv-dev libturbojpeg0-dev pkg-config",
    ),
    # It imports without its compiled part.
    ContenderName.turboloader: Recipe(
        module="turboloader",
        proof="import turboloader; turboloader.DataLoader",
        distribution="turboloader",
        requirements=("turboloader==2.39.0",),
    ),
    # It looks for FFmpeg's libraries (4 to 9) when they are first used.
    ContenderName.spdl: Recipe(
        module="spdl.io",
        proof="import spdl.io.utils; spdl.io.utils.get_ffmpeg_versions()",
        distribution="spdl",
        requirements=("spdl==0.8.0",),
        cure="apt install ffmpeg",
    ),
}
"""The loaders that `make peers` installs; the other contenders need nothing but what the project has."""


def python_in(environment: Path) -> Path:
    """The interpreter of `environment`; not resolved, for the link is what makes it that environment's."""
    return environment.absolute() / "bin" / "python"


def interpreter(name: ContenderName) -> str | None:
    """The Python that can import the loader `name`: of `.peers/NAME` below the current directory, or this one.

    None where neither can. Nothing is imported: an environment counts when `build.py` has found it to work.
    """
    if name not in RECIPES:
        return sys.executable
    environment = ENVIRONMENTS / name
    if (environment / READY).exists() and python_in(environment).exists():
        return str(python_in(environment))
    return sys.executable if is_here(RECIPES[name].module) else None


def why_not(name: ContenderName) -> str:
    """One line for a trial that is skipped because `interpreter` found none."""
    return f"{name} is in no .peers/{name} here; run `make peers`, or python -m pipeline.bench.peers.build {name}"


def is_here(module: str) -> bool:
    """Whether this Python would find `module`; nothing but packages around it is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it would be in
        return False
