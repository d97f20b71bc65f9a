"""Installs other loaders, each in an environment of its own: `python -m pipeline.bench.peers.build [NAME ...]`.

An environment is a venv of this Python plus a .pth file that names this Python's packages, so that pip adds only the
loader itself and what is missing. One that works is left as it is. Prints a line for each loader; the exit code is 1
only when none of them works.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from pipeline.bench.peers.environments import ENVIRONMENTS, READY, RECIPES, Recipe, is_here, python_in
from pipeline.config.bench import ContenderName
from pipeline.config.checks import nearest
from pipeline.lock import file_lock

_SHARED = "project.pth"
# torch too: an environment that does not find the project's packages, moved since, is of no use.
_CHECK = """
import importlib.metadata, sys, torch
exec(sys.argv[1])
print(importlib.metadata.version(sys.argv[2]))
"""


class NotInstalledError(Exception):
    """Why a loader could not be installed, in one line."""


def main(names: Sequence[str]) -> int:
    """Install the loaders called `names`, or all; returns the exit code."""
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        _say(f"there is no loader {unknown[0]!r} to install; {nearest(unknown[0], RECIPES)}")
        return 2
    ENVIRONMENTS.mkdir(exist_ok=True)
    worked = []
    with file_lock(str(ENVIRONMENTS / "lock"), waiting_for="it is installing loaders"):
        for name in map(ContenderName, names or RECIPES):
            line, works = build(name, RECIPES[name], ENVIRONMENTS / name)
            _say(line)
            worked.append(works)
    return 0 if any(worked) else 1


def build(name: str, recipe: Recipe, environment: Path, *, pip_options: Sequence[str] = ()) -> tuple[str, bool]:
    """Make sure that `recipe` works in `environment`, or in this Python.

    Returns the line to print, and whether it works.
    """
    try:
        version = _marked_version(environment, recipe)
        if version is None and is_here(recipe.module):
            version = _version(Path(sys.executable), recipe)
        if version is None:
            _say(f"{name}: installing; the log is {_log_of(environment)}")
            version = _install(recipe, environment, pip_options)
    except NotInstalledError as error:
        return f"{name}: not installed: {error}", False
    return f"{name}: {version} installed", True


def _marked_version(environment: Path, recipe: Recipe) -> str | None:
    """The version that works in `environment`, which is then marked as ready; None, and no mark, if none does."""
    version = _version(python_in(environment), recipe)
    ready = environment / READY
    if version is None:
        ready.unlink(missing_ok=True)
    else:
        ready.write_text(f"{version}\n")
    return version


def _version(python: Path, recipe: Recipe) -> str | None:
    if not python.exists():
        return None
    check = [str(python), "-P", "-c", _CHECK, recipe.proof, recipe.distribution]
    finished = subprocess.run(check, capture_output=True, text=True, check=False)
    return finished.stdout.split()[-1] if finished.returncode == 0 else None


def _install(recipe: Recipe, environment: Path, pip_options: Sequence[str]) -> str:
    """Make `environment` anew and return the version; of what fails nothing stays but the log."""
    _check_libraries(recipe)
    try:
        _make(environment)
        _pip(environment, *pip_options, *recipe.requirements)
        if recipe.source is not None:
            # Compiled where it is to run, against the NumPy that it will meet there.
            _pip(environment, *pip_options, "--no-deps", "--no-build-isolation", recipe.source)
        version = _marked_version(environment, recipe)
        if version is None:
            raise NotInstalledError(f"`{recipe.proof}` fails in it{f'; {recipe.cure}' if recipe.cure else ''}")
    except NotInstalledError:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    return version


def _check_libraries(recipe: Recipe) -> None:
    if not recipe.libraries:
        return
    missing = NotInstalledError(f"pkg-config must know {' and '.join(recipe.libraries)}; {recipe.cure}")
    try:
        found = subprocess.run(["pkg-config", "--exists", *recipe.libraries], capture_output=True, check=False)
    except FileNotFoundError:
        raise missing from None
    if found.returncode != 0:
        raise missing


def _make(environment: Path) -> None:
    _log_of(environment).unlink(missing_ok=True)
    try:
        venv.EnvBuilder(with_pip=True, clear=True, symlinks=os.name != "nt").create(environment)
    except (subprocess.CalledProcessError, OSError) as error:
        raise NotInstalledError(f"no environment can be made ({error}); install python3-venv") from error
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = environment / "lib" / version / "site-packages" / _SHARED
    shared.write_text("".join(f"{directory}\n" for directory in _packages()))


def _packages() -> list[str]:
    """The directories of this Python's installed packages, in the order that it looks into them."""
    directories = set(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        directories.add(site.getusersitepackages())
    return [entry for entry in sys.path if entry in directories]


def _pip(environment: Path, *arguments: str) -> None:
    """Install into `environment`; all that pip says goes to the log, the last fault into the error."""
    command = [
        str(python_in(environment)),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        *arguments,
    ]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    with _log_of(environment).open("a") as log:
        log.write(finished.stdout)
    if finished.returncode != 0:
        lines = finished.stdout.splitlines() or ["it said nothing"]
        faults = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise NotInstalledError(f"pip: {(faults or lines)[-1]}")


def _log_of(environment: Path) -> Path:
    return environment.with_name(f"{environment.name}.log")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
