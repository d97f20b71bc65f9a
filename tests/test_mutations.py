"""Every named breakage is caught by the test that is there for it: all by `make soak`, a sixth by `make test`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import CONTROL, MUTATIONS, ROOT, Mutation
from watching import SOAK

NUM_PARTS = 6
"""All of them take ten minutes of two cores; each commit tries another part."""


def _names() -> list[str]:
    names = [mutation.name for mutation in MUTATIONS]
    if SOAK:
        return names
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    commit = int(asked.stdout.strip() or "0", 16)  # none in an archive of the code
    return names[commit % NUM_PARTS :: NUM_PARTS]


NAMES = _names()

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    script = Path(__file__).with_name("mutations.py")
    finished = subprocess.run([sys.executable, str(script), *NAMES], capture_output=True, text=True, check=False)
    assert finished.stdout, finished.stderr
    answer: dict[str, str] = json.loads(finished.stdout)
    return answer


@pytest.mark.soak
def test_without_a_breakage_every_one_of_those_tests_passes(results: dict[str, str]) -> None:
    assert results[CONTROL] == "passed"


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_breakage_is_caught(name: str, results: dict[str, str]) -> None:
    assert results[name] == "caught"


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_breakage_edits_stands_in_the_code_once_and_its_test_is_there(mutation: Mutation) -> None:
    assert (ROOT / "pipeline" / mutation.file).read_text().count(mutation.old) == 1
    file, _, test = mutation.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / "tests" / file).read_text()
