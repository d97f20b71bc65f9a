"""One round of one trial, in the process that is nothing else: `python -m pipeline.bench.child --trial 3 --round 0`.

Who starts it writes the pickled `Round` to its standard input and holds that open: when the pipe closes, because the
other one died, this process ends as well. The arguments are for people who look at a list of processes.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import BenchConfig
from pipeline.training.replacing import replace_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What to measure and where to leave the result; picklable."""

    config: BenchConfig
    number: int
    sitting: str
    """Equal for rounds that ran in alternation with each other."""
    references: bool
    path: str
    """The JSON file to write; there only when whole."""
    go: int = -1
    """The descriptor from which a byte comes for each turn to work."""
    done: int = -1
    """The descriptor that gets a byte whenever a part is done and this process rests."""


SIZE_BYTES = 8
"""Before the pickle comes its size, as a little-endian number of so many bytes: the pipe stays open behind it."""


def main() -> int:
    """Measure one round; the exit code is 1 if it failed, with the reason in the file and the traceback on stderr."""
    round: Round = pickle.loads(_from_parent())
    try:
        result = _measure(round)
    except Exception as error:
        traceback.print_exc()
        result = {"status": "failed", "error": _one_line(error)}
    replace_json(Path(round.path), result)
    return int(result["status"] != "completed")


def _measure(round: Round) -> dict[str, Any]:
    from pipeline.bench.trial import measure  # not above: what fails to import is this trial's failure

    for pipe in (round.go, round.done):
        os.set_inheritable(pipe, False)

    def wait_turn() -> None:
        os.write(round.done, b".")
        if not os.read(round.go, 1):
            os._exit(1)  # nobody is there any more to give the next turn

    result = measure(round.config, repeats=1, references=round.references, wait_turn=wait_turn)
    for repeat in result["repeats"]:
        repeat |= {"round": round.number, "sitting": round.sitting}
    return result


def _from_parent() -> bytes:
    """What the parent wrote to standard input, which is empty from then on; and end when the parent does.

    The thread that waits for its end has a descriptor and no file: a file's lock, held by a thread that reads, is held
    for ever in a forked process, and torch's workers close `sys.stdin` first of all.
    """
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with open(pipe, "rb", closefd=False) as file:
        size = int.from_bytes(file.read(SIZE_BYTES), "little")
        data = file.read(size)

    def end_with_parent() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return data


def _one_line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    of_sample = [f" ({note})" for note in getattr(error, "__notes__", ()) if "sample id" in note]
    return f"{type(error).__name__}: {first}{''.join(of_sample[:1])}"


if __name__ == "__main__":
    sys.exit(main())
