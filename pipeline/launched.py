"""What started this process, and what it says of it (torchrun, or a script around another): needs no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

_LAUNCHED = frozenset({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


class LostRankError(RuntimeError):
    """Another rank of the run has ended: what went wrong is its to say."""


def is_launched() -> bool:
    """Whether a launcher has started this process as one of the ranks of a world.

    A world of one is torchrun's alone: some platforms set the variables for every job.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return os.environ.keys() >= _LAUNCHED and (by_torchrun or os.environ["WORLD_SIZE"] != "1")


def is_first_rank() -> bool:
    """Whether this process speaks and writes for its world; alone it always does."""
    return not is_launched() or os.environ["RANK"] == "0"


def end_with_agent() -> None:
    """Let no rank outlive the torchrun that started it: what is left of a lost node would train on beside the others.

    Does nothing where no torchrun has, nor where the kernel cannot (it is Linux's to do).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())


def die_with(parent_pid: int) -> None:
    """Have the kernel end this process with its parent; end at once if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def num_local_ranks() -> int:
    """The processes that share this host's cores; 1 where none says that there are more."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(ranks)) if ranks.isdigit() else 1
