"""Starts the ranks of a run on this host, and ends them together: `dist.nproc`.

torchrun's own agent does the work. What is added is what a person sees: the first cause as itself and not a table of
exit codes, one Ctrl-C that reaches every rank once, and handlers of signals as they were before.
"""

from __future__ import annotations

import logging
import logging.config
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipeline.launched import LostRankError, is_launched
from pipeline.pickling import portable_error

SHUTDOWN_S = 30
"""Seconds that ranks have to save what they can before the agent kills them; torch's own number."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended: what it returned, or what it raised, and when."""

    result: Any
    error: BaseException | None
    at_s: float


class RanksInterrupted(KeyboardInterrupt):
    """A signal ended the ranks before the first of them could say where it stopped."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def run_ranks(
    rank_main: Callable[..., Result], *args: Any, nproc: int, logging_config: dict[str, Any] | None = None
) -> Result:
    """Runs `rank_main(*args)` in `nproc` processes, which find their world by `join_world`; gives rank 0's result.

    `rank_main` is a function of a module, `args` are pickled. When a rank fails, the others are ended. SIGINT and
    SIGTERM, unless they are ignored, are handed to each rank once; ranks have `SHUTDOWN_S` then. Rank 0 logs by
    `logging_config` (logging's dictConfig), the others log warnings to stderr.

    Raises:
        BaseException: what the first rank to fail raised, as itself; or, where none failed, the KeyboardInterrupt of
            the first rank. A note holds its traceback and names the rank.
        RanksInterrupted: a signal came before there was one.
        RuntimeError: a rank was killed, or this process is a rank itself.
    """
    if is_launched():
        raise RuntimeError("this process is a rank that torchrun started: it cannot start ranks of its own")
    with tempfile.TemporaryDirectory(prefix="headrace-ranks-") as notes, _none_left(), _handlers_put_back() as handled:
        failures, asked = _run_agent(nproc, Path(notes), handled, rank_main, args, logging_config)
        ended = _read_all(Path(notes))
    error = first_cause(failures, ended, nproc=nproc)
    if error is not None:
        raise error
    if asked is not None and 0 not in ended:
        raise RanksInterrupted(asked)
    if asked is not None:
        signal.raise_signal(asked)  # all were through: it is for whatever comes next
    result: Result = ended[0].result
    return result


def _rank(
    main: Callable[..., Any], args: tuple[Any, ...], notes: Path, logging_config: dict[str, Any] | None
) -> None:
    """What runs in each process: `main`, and a note of how it ended for the one that started it."""
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's Ctrl-C goes to the one that started the ranks, who hands it on
    if signal.SIGINT in signal.sigpending():
        os._exit(128 + signal.SIGINT)  # it came while this process began: there is nothing to save, nor to tell
    for number in _handled():
        signal.signal(number, lambda *_: None)  # `main` has handlers of its own; after it the note is to be written
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    rank = int(os.environ["RANK"])
    if rank == 0 and logging_config is not None:
        logging.config.dictConfig(logging_config)
    try:
        ended = Ended(main(*args), None, time.time())
    except BaseException as error:
        at_s = time.time()
        notes_of_error = list(getattr(error, "__notes__", ()))
        portable, story = portable_error(error)
        portable.__notes__ = [f"in rank {rank}:\n{story}", *notes_of_error]
        ended = Ended(None, portable, at_s)
    unfinished = notes / f"{rank}.part"
    unfinished.write_bytes(pickle.dumps(ended))
    unfinished.rename(notes / str(rank))
    if ended.error is not None:
        sys.exit(1)  # who returns instead is kept until all have, also by an agent that is asked to end them


def _run_agent(
    nproc: int,
    notes: Path,
    handled: list[int],
    main: Callable[..., Any],
    args: tuple[Any, ...],
    logging_config: dict[str, Any] | None,
) -> tuple[dict[int, int], int | None]:
    """Lets torchrun's agent run the ranks: the exit codes of those that failed, by rank; the signal that ended it."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=notes.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=",".join(signal.Signals(number).name for number in handled),
        logs_specs=DefaultLogsSpecs(log_dir=str(notes / "agent")),
    )
    try:
        with _quiet("torch.distributed.elastic", "torch.multiprocessing"), _ctrl_c_blocked_for_children():
            elastic_launch(config, _rank)(main, args, notes, logging_config)
    except ChildFailedError as failed:
        return {number: failure.exitcode for number, failure in failed.failures.items()}, None
    except SignalException as asked:
        return {}, asked.sigval
    return {}, None


def _read_all(notes: Path) -> dict[int, Ended]:
    return {int(path.name): pickle.loads(path.read_bytes()) for path in notes.iterdir() if path.name.isdigit()}


def first_cause(exit_codes: dict[int, int], ended: dict[int, Ended], *, nproc: int) -> BaseException | None:
    """What the one who started the ranks raises; None if all ended well.

    `exit_codes` are those of the ranks that the agent saw fail, which may be only the first that it saw, and that one
    a rank that had lost another; `ended` is what each rank noted that came to note anything.
    """
    errors = [ended[rank] for rank in sorted(ended) if ended[rank].error is not None]
    own = [end for end in errors if not isinstance(end.error, LostRankError | KeyboardInterrupt)]
    if own:
        return min(own, key=lambda end: end.at_s).error
    silent = [rank for rank in (*exit_codes, *range(nproc)) if rank not in ended]
    if exit_codes and silent:
        return RuntimeError(f"rank {silent[0]} {_how(exit_codes.get(silent[0]))}; the other ranks were ended")
    stopped = [end for end in errors if isinstance(end.error, KeyboardInterrupt)]
    return next((end.error for end in (*stopped, *errors)), None)


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended without a word: it was killed, or its interpreter crashed"
    if exit_code >= 0:
        return f"ended without a word, with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + (" (by the kernel, if memory ran out)" if name == "SIGKILL" else "")


def _handled() -> list[int]:
    """The signals that end a run here: what is ignored, as by nohup, stays so."""
    return [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def _none_left() -> Iterator[None]:
    """Kills ranks that are left at the end of the block: a second Ctrl-C leaves the agent no time to."""
    before = _spawned()
    try:
        yield
    finally:
        left = _spawned() - before
        for rank in left:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
        psutil.wait_procs(left, timeout=SHUTDOWN_S)


def _spawned() -> set[psutil.Process]:
    """Children that multiprocessing spawned, which its own tracker of resources is not: that one stays for the next."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any("multiprocessing.spawn" in word for word in child.cmdline()):
                found.add(child)
    return found


@contextmanager
def _handlers_put_back() -> Iterator[list[int]]:
    """Gives the signals that the agent is to handle; it leaves its handlers behind, and a variable for its children."""
    handled = _handled()
    before = {number: signal.getsignal(number) for number in handled}
    try:
        yield handled
    finally:
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def _ctrl_c_blocked_for_children() -> Iterator[None]:
    """Processes begin with SIGINT blocked, which would end their imports with a traceback; this one gets it as before.

    They have the mask of the thread that starts them. Another thread takes the signal here, whose handler runs in the
    main thread nevertheless.
    """
    resource_tracker.ensure_running()  # else the first process starts it, and that unblocks SIGINT
    over = threading.Event()
    threading.Thread(target=over.wait, name="headrace-signals", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """No log lines of these loggers and those below them: what they tell of failures is told better."""
    below = [name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{name}." for name in names))]
    loggers = [logging.getLogger(name) for name in (*names, *below)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
