"""Every named breakage is caught by the test that is there for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import CONTROL, MUTATIONS


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    script = Path(__file__).with_name("mutations.py")
    finished = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert finished.stdout, finished.stderr
    answer: dict[str, str] = json.loads(finished.stdout)
    return answer


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_without_a_breakage_every_one_of_those_tests_passes(results: dict[str, str]) -> None:
    assert results[CONTROL] == "passed"


@pytest.mark.parametrize("name", [mutation.name for mutation in MUTATIONS])
def test_a_breakage_is_caught(name: str, results: dict[str, str]) -> None:
    assert results[name] == "caught"


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
