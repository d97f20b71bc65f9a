"""main_script.py: what the user's main script defines, in another process."""

from __future__ import annotations

import functools
import io
import operator
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.transforms import v2

from pipeline.main_script import MainScript, _globals_in, main_script_of, refuse_while_importing

HANDS_OVER = """
if __name__ == "__main__":
    import pickle
    from pipeline.main_script import main_script_of
    value = eval(sys.argv[2])
    with open(sys.argv[1], "wb") as file:
        pickle.dump((main_script_of(value), pickle.dumps(value, 5)), file)
"""
"""The end of a main script: `script FILE EXPRESSION` writes the value of EXPRESSION and how to import what it needs."""

SCRIPT = f"""
import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

print("imported as", __name__)

def double(number: 1 + 1):
    return 2 * number

def arguments(number):
    return sys.argv[2:]

def annotations(number):
    return double.__annotations__["number"]

class Outer:
    class Inner:
        def __init__(self, factor):
            self.factor = factor
        def __call__(self, number):
            return self.factor * number
        def times(self, number):
            return self(number)

class Failure(Exception):
    pass

def module_of_failure(number):
    return Failure.__module__

COUNT = 0

def count(number):
    global COUNT
    COUNT += number
    return sys.modules["__main__"].COUNT
{HANDS_OVER}"""

TAKES_OVER = """
import pickle, sys
from pipeline.main_script import import_main_script, refuse_while_importing
with open(sys.argv[1], "rb") as file:
    script, value = pickle.load(file)
import_main_script(script)
refuse_while_importing("nothing")
print("result", pickle.loads(value)(21))
"""
"""A worker: `TAKES_OVER FILE` loads what a script handed over and calls it."""


def run(*arguments: str | Path, cwd: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    # The package under test, also where the working directory is another's.
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def handed_over(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a main script, given as Python's arguments, and then a worker, elsewhere, whose process is returned."""

    def hand_over(*script: str | Path, cwd: Path = tmp_path, expression: str = "double") -> Any:
        payload, elsewhere = tmp_path / "payload", tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        made = run(*script, payload, expression, cwd=cwd)
        assert made.returncode == 0, made.stderr
        return run("-P", "-c", TAKES_OVER, payload, cwd=elsewhere)

    return hand_over


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        pytest.param("double", "42", id="function"),
        pytest.param("Outer.Inner(3)", "63", id="instance of a nested class"),
        pytest.param("Outer.Inner(3).times", "63", id="bound method"),
        pytest.param("partial(double)", "42", id="partial"),
        pytest.param("Outer.Inner", "<__main__.Outer.Inner object", id="class"),
        pytest.param("arguments", "['arguments']", id="its arguments"),
        pytest.param("annotations", "2", id="its own future"),
        pytest.param("count", "21", id="its globals"),
        pytest.param("module_of_failure", "__mp_main__", id="the name that multiprocessing knows"),
    ],
)
def test_what_a_main_script_defines_is_found_in_another_process(
    handed_over: Any, tmp_path: Path, expression: str, result: str
) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    worker = handed_over("main.py", expression=expression)
    assert worker.returncode == 0, worker.stderr
    imported, answered = worker.stdout.splitlines()
    assert imported == "imported as __mp_main__"
    assert answered.replace("__mp_main__.Outer", "__main__.Outer").startswith(f"result {result}")


def test_importing_a_script_writes_nothing_beside_it(handed_over: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "main").write_text(SCRIPT)
    assert handed_over("main", cwd=home).returncode == 0
    assert [path.name for path in home.iterdir()] == ["main"]


def test_a_script_finds_its_neighbours(handed_over: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "neighbour.py").write_text("FACTOR = 5\n")
    (home / "main.py").write_text(
        f"import sys\nfrom neighbour import FACTOR\ndef double(number):\n    return FACTOR * number\n{HANDS_OVER}"
    )
    worker = handed_over("home/main.py")
    assert worker.stdout == "result 105\n", worker.stderr


@pytest.mark.parametrize(
    ("file", "command"),
    [
        pytest.param("package/program.py", ["-m", "package.program"], id="module"),
        pytest.param("package/__main__.py", ["-m", "package"], id="package"),
    ],
)
def test_a_module_that_was_run_keeps_its_package(
    handed_over: Any, tmp_path: Path, file: str, command: list[str]
) -> None:
    home = tmp_path / "home"
    (home / "package").mkdir(parents=True)
    (home / "package" / "__init__.py").touch()
    (home / "package" / "neighbour.py").write_text("FACTOR = 5\n")
    (home / file).write_text(
        "import sys\nfrom .neighbour import FACTOR\nprint('imported as', __name__)\n"
        f"def double(number):\n    from . import neighbour\n    return FACTOR * number\n{HANDS_OVER}"
    )
    worker = handed_over(*command, cwd=home)
    assert worker.stdout == "imported as __mp_main__\nresult 105\n", worker.stderr


def test_a_directory_that_was_run_is_imported_by_its_file(handed_over: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "__main__.py").write_text(SCRIPT)
    worker = handed_over("home")
    assert worker.stdout.splitlines()[-1] == "result 42", worker.stderr


def test_a_rank_that_multiprocessing_spawned_has_the_same_script(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    (tmp_path / "main.py").write_text(
        "import multiprocessing, pickle, sys\n"
        "from pipeline.main_script import main_script_of\n"
        "def double(number):\n    return 2 * number\n"
        "def rank(path):\n"
        "    with open(path, 'wb') as file:\n"
        "        pickle.dump((main_script_of(double), pickle.dumps(double, 5)), file)\n"
        "if __name__ == '__main__':\n"
        "    spawned = multiprocessing.get_context('spawn').Process(target=rank, args=(sys.argv[1],))\n"
        "    spawned.start()\n    spawned.join()\n    sys.exit(spawned.exitcode)\n"
    )
    made = run("main.py", payload, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    worker = run("-P", "-c", TAKES_OVER, payload, cwd=tmp_path)
    assert worker.stdout == "result 42\n", worker.stderr


@pytest.mark.parametrize("imported", ["multiprocessing", "os"])
def test_a_script_is_both_mains_while_it_is_imported(handed_over: Any, tmp_path: Path, imported: str) -> None:
    (tmp_path / "main.py").write_text(
        f"import pickle, sys\nimport {imported}\n"
        "class Scale:\n    def __call__(self, number):\n        return 2 * number\n"
        "scale = pickle.loads(pickle.dumps(Scale()))\n"
        "def double(number):\n    return scale(number), sys.modules['__main__'] is sys.modules['__mp_main__']\n"
        f"{HANDS_OVER}"
    )
    worker = handed_over("main.py")
    assert worker.stdout == "result (42, True)\n", worker.stderr


@pytest.mark.parametrize("exits", [False, True], ids=["raises", "exits"])
@pytest.mark.parametrize("name", ["create_dataloader", "Pipeline"])
def test_the_rest_of_a_script_is_refused_at_once(handed_over: Any, tmp_path: Path, name: str, exits: bool) -> None:
    (tmp_path / "main.py").write_text(
        "import sys\nfrom pipeline.main_script import refuse_while_importing\n"
        "def double(number):\n    return 2 * number\n"
        f"{HANDS_OVER}"
        + ("if __name__ != '__main__': sys.exit(3)\n" if exits else f"refuse_while_importing({name!r})\n")
        + "print('went on')\n"
    )
    worker = handed_over("main.py")
    assert worker.returncode == 1
    assert worker.stdout == ""
    called = "sys.exit was called by" if exits else f"{name} was called by"
    assert worker.stderr.splitlines()[-1] == (
        f"RuntimeError: {called} {tmp_path}/main.py: this script is being imported to find your transform; "
        'put the rest under `if __name__ == "__main__"`'
    )


def test_what_is_defined_under_the_guard_is_named(handed_over: Any, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        f"import sys\nif __name__ == '__main__':\n    def double(number):\n        return 2 * number\n{HANDS_OVER}"
    )
    worker = handed_over("main.py")
    assert worker.stderr.splitlines()[-1] == (
        f"AttributeError: {tmp_path}/main.py does not define double when it is imported to find your transform; "
        'define it before and not under `if __name__ == "__main__"`'
    )


def test_an_error_of_the_script_propagates_and_main_is_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("half = 1\nraise LookupError('of the script')\n")
    done = run(
        "-c",
        "import sys\n"
        "from pipeline.main_script import MainScript, import_main_script, refuse_while_importing\n"
        "before = sys.modules['__main__']\n"
        f"script = MainScript({str(tmp_path / 'main.py')!r}, None, (), ('main.py',), tuple(sys.path))\n"
        "try:\n    import_main_script(script)\n"
        "except LookupError as error:\n    print(error)\n"
        "assert sys.modules['__main__'] is before\n"
        "assert '__mp_main__' not in sys.modules\n"
        "refuse_while_importing('nothing')\n",
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("of the script\n", "")


def test_a_module_that_has_gone_is_named(tmp_path: Path) -> None:
    done = run(
        "-c",
        "import sys\nfrom pipeline.main_script import MainScript, import_main_script\n"
        "import_main_script(MainScript('', 'no_such_program', (), (), tuple(sys.path)))\n",
        cwd=tmp_path,
    )
    assert "ModuleNotFoundError: no_such_program was run by `python -m` and is not found any more" in done.stderr


@pytest.mark.parametrize(
    ("options", "in_stdin"),
    [
        pytest.param(["-i"], True, id="interactive session"),
        pytest.param(["-"], True, id="standard input"),
        pytest.param(["-c"], False, id="command line"),
    ],
)
def test_what_no_file_defines_is_refused(tmp_path: Path, options: list[str], in_stdin: bool) -> None:
    code = (
        "import functools\nfrom pipeline.main_script import main_script_of\n"
        "def double(number): return 2 * number\n\n"
        "class Blur: pass\n\n"
        "try: main_script_of([functools.partial(double), Blur()])\n"
        "except TypeError as error: print(error)\n\n"
    )
    done = run(*options, *([] if in_stdin else [code]), cwd=tmp_path, stdin=code if in_stdin else "")
    assert done.stdout == (
        "double, Blur cannot be imported by worker processes, being defined in a notebook, an interactive session or "
        "on the command line; move it to a module\n"
    ), done.stderr


def module_function(number: int) -> int:
    return number


VALUES = [
    pytest.param(module_function, id="function of a module"),
    pytest.param(v2.Compose([v2.RandomResizedCrop(8), v2.ToImage()]), id="torchvision"),
    pytest.param(["__main__", {"__main__": "double", "double": "__main__"}, MainScript], id="strings"),
    pytest.param((np.arange(100_000), np.float32, "x" * 100_000, np.dtype("u1")), id="large things"),
    pytest.param([operator.methodcaller("map", len), len, [].append, OrderedDict(a=1)], id="built-ins"),
    pytest.param([functools.partial(module_function, n) for n in range(300)], id="a long memo"),
]


@pytest.mark.parametrize("value", VALUES)
def test_what_refers_to_nothing_in_main_needs_no_script(value: Any) -> None:
    assert main_script_of(value) is None


@pytest.mark.parametrize("value", VALUES)
def test_the_names_in_a_pickle_are_those_that_unpickling_looks_up(value: Any) -> None:
    looked_up = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            looked_up.append((module, name))
            return super().find_class(module, name)

    pickled = pickle.dumps(value, 5)
    Unpickler(io.BytesIO(pickled)).load()
    assert list(_globals_in(pickled)) == looked_up


def test_a_name_is_seen_across_the_border_of_two_frames() -> None:
    # The pickler begins a new frame after 64 KiB, wherever that is: here also between a module and a name.
    for padding in range(65_440, 65_540):
        pickled = pickle.dumps(["x" * padding, module_function], 5)
        assert list(_globals_in(pickled)) == [("test_main_script", "module_function")]


def test_nothing_is_refused_where_no_script_is_imported() -> None:
    assert refuse_while_importing("create_dataloader") is None


def test_a_script_is_described_and_survives_pickling(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    payload = tmp_path / "payload"
    assert run("main.py", payload, "[double, Outer.Inner(1), double]", cwd=tmp_path).returncode == 0
    script, _ = pickle.loads(payload.read_bytes())
    assert script.path == str(tmp_path / "main.py")
    assert script.module is None
    assert script.needed == ("double", "Outer.Inner")
    assert script.search_path[0] == str(tmp_path)
    assert script.argv == ("main.py", str(payload), "[double, Outer.Inner(1), double]")
