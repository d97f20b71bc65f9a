"""The user's main script in another process: what it defines is in `__main__` there too.

Worker processes do not import the main script, so that it needs no `if __name__ == "__main__"`. They have to when a
callable of the user is defined in it: pickle calls it `__main__.X`.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import pickletools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from types import CodeType, ModuleType
from typing import Any

# The second is the name that multiprocessing runs a main script under. What the script defines is known by it in the
# ranks that `torch.multiprocessing.spawn` starts, and it is an alias of the first wherever multiprocessing is imported.
_NAMES = ("__main__", "__mp_main__")

_EXPLANATION = 'this script is being imported to find your transform; put the rest under `if __name__ == "__main__"`'

_importing: str | None = None
"""Path of the script that `import_main_script` is running."""


@dataclass(frozen=True, slots=True)
class MainScript:
    """How another process on this machine imports what is `__main__` in this one; picklable."""

    path: str
    """Of its file, absolute."""
    module: str | None
    """Its full name if `python -m` ran it; None if it was run by its path."""
    needed: tuple[str, ...]
    """The names in it that are to be found."""
    argv: tuple[str, ...]
    """`sys.argv`, which its top level may look at."""
    search_path: tuple[str, ...]
    """`sys.path`, which begins with the script's own directory."""


def main_script_of(value: object) -> MainScript | None:
    """How to import what `value` refers to of the main script; None if nothing in its pickle is of that script.

    Raises:
        TypeError: it was defined where no other process can import it: in a notebook, in an interactive session.
        Exception: `value` cannot be pickled; `pickling.check_picklable` says it better.
    """
    # Read from the pickle itself: what it names is what unpickling will look up, however it came to be named.
    needed = tuple(
        name for module, name in _globals_in(pickle.dumps(value, 5, buffer_callback=_leave_out)) if module in _NAMES
    )
    if not needed:
        return None
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    # The main file of a directory that was run is called `__main__` and nothing more, and has to be run by its path.
    module = None if spec is None or spec.name in _NAMES else spec.name
    path = os.path.abspath(getattr(main, "__file__", None) or "")
    if module is None and not os.path.isfile(path):
        raise TypeError(
            f"{', '.join(needed)} cannot be imported by worker processes, being defined in a notebook, an "
            "interactive session or on the command line; move it to a module"
        )
    return MainScript(path, module, needed, tuple(sys.argv), tuple(sys.path))


def _leave_out(_: pickle.PickleBuffer) -> bool:
    """Large buffers name nothing, and need not be copied."""
    return False


def _globals_in(pickled: bytes) -> Iterator[tuple[str, str]]:
    """The (module, name) of everything that unpickling a pickle of protocol 4 or 5 looks up."""
    memo: list[Any] = []
    # The last two things pushed, where these were strings. STACK_GLOBAL takes a module and a name, which the pickler
    # pushes immediately before it.
    module: Any = None
    name: Any = None
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "MEMOIZE":
            memo.append(name)
            continue
        if opcode.name == "FRAME":  # may stand anywhere and pushes nothing
            continue
        if opcode.name == "STACK_GLOBAL":
            yield module, name
        from_memo = opcode.name in ("BINGET", "LONG_BINGET")
        module, name = name, memo[argument] if from_memo else argument


def import_main_script(script: MainScript) -> None:
    """Run the script as a module, so that `if __name__ == "__main__"` is false, and make it this process's `__main__`.

    For a worker process, before it unpickles what needs the script: `sys.argv` and `sys.path` become those of the
    process that made `script`. What the script raises propagates, and `__main__` is then what it was.

    Raises:
        RuntimeError: the script exits while it is imported.
        AttributeError: it does not define all that is needed of it unless it is `__main__`.
    """
    global _importing
    sys.argv[:], sys.path[:] = script.argv, script.search_path
    module, code = _prepared(script)
    replaced = {name: sys.modules.get(name) for name in _NAMES}
    # Both, and before it runs: importing multiprocessing, as torch does, makes the second an alias of the first.
    sys.modules.update(dict.fromkeys(_NAMES, module))
    _importing = script.path
    try:
        exec(code, module.__dict__)
        _check_needed(script, module)
    except BaseException as error:
        for name, earlier in replaced.items():
            sys.modules.pop(name, None)
            if earlier is not None:
                sys.modules[name] = earlier
        if isinstance(error, SystemExit):
            raise RuntimeError(f"sys.exit was called by {script.path}: {_EXPLANATION}") from error
        raise
    finally:
        _importing = None


def refuse_while_importing(what: str) -> None:
    """Raise RuntimeError if `what` is called because `import_main_script` is running a script."""
    if _importing is not None:
        raise RuntimeError(f"{what} was called by {_importing}: {_EXPLANATION}")


def _prepared(script: MainScript) -> tuple[ModuleType, CodeType]:
    """A module with what the script finds in its globals, and the script's code."""
    if script.module is None:
        module = ModuleType("__mp_main__")
        module.__file__ = script.path
        with io.open_code(script.path) as file:
            # Compiled here, as an import would write bytecode beside the script; without this file's own __future__.
            return module, compile(file.read(), script.path, "exec", dont_inherit=True)
    spec = importlib.util.find_spec(script.module)
    if spec is None:
        raise ModuleNotFoundError(
            f"{script.module} was run by `python -m` and is not found any more to import your transform from",
            name=script.module,
        )
    module = importlib.util.module_from_spec(spec)
    module.__name__ = "__mp_main__"
    loader: Any = spec.loader
    return module, loader.get_code(script.module)


def _check_needed(script: MainScript, module: ModuleType) -> None:
    for name in script.needed:
        try:
            attrgetter(name)(module)
        except AttributeError:
            raise AttributeError(
                f"{script.path} does not define {name} when it is imported to find your transform; "
                'define it before and not under `if __name__ == "__main__"`'
            ) from None
