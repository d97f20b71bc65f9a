"""What is said about workers that died or stall: who, how, what was in hand, and the key to change."""

from __future__ import annotations

from pipeline.loader.deaths import DEATHS_ALONE
from pipeline.loader.errors import WorkerDiedError, WorkerStalledError
from pipeline.loader.worker_process import Death, WorkerProcess

LAST_LINES = 20


def death_report(worker: WorkerProcess, death: Death, in_hand: list[str], for_memory: int) -> str:
    """How `worker` ended, with the samples it had `in_hand`; `for_memory` processes were killed by the kernel since."""
    held = f"when last heard of it held {worker.private_bytes / 1e6:.0f} MB of its own"
    lines = [
        f"worker process {worker.number} (pid {worker.pid}) ended {death}; "
        + (held if worker.is_ready else "it had not begun to work")
    ]
    if for_memory:
        lines.append(f"the kernel killed {for_memory} for memory meanwhile (its oom_kill count rose)")
    else:
        lines.append("the kernel's oom_kill count did not rise")
    lines += [f"in hand: {name}" for name in in_hand] or ["no sample was in hand"]
    return "\n  ".join([*lines, *worker.last_words().splitlines()[-LAST_LINES:]])


def too_many_deaths(report: str, max_restarts: int) -> WorkerDiedError:
    """The error that ends a loader."""
    return WorkerDiedError(
        f"{report}\nThat is more than loader.max_restarts={max_restarts}; raise it if such deaths are expected, "
        "and use fewer loader.num_workers if memory is short"
    )


def blame(id: int, where: str, report: str) -> WorkerDiedError:
    """The error of a sample that kills whoever makes it."""
    error = WorkerDiedError(f"a sample killed {DEATHS_ALONE} workers that had nothing else in hand: {report}")
    error.add_note(f"stage decode or transform, sample id {id}, {where}")
    return error


def stall(worker: WorkerProcess, late: list[str], stall_timeout_s: float) -> WorkerStalledError:
    """The error that ends a loader, with the stacks of `worker` as it answers now."""
    stacks = worker.stacks() if worker.is_ready else ""
    text = "\n  ".join([f"worker process {worker.number} (pid {worker.pid}) does not go on", *late])
    return WorkerStalledError(
        f"{text}\nThat is longer than loader.stall_timeout_s={stall_timeout_s:g}; raise it if that is "
        f"expected. Its stacks:\n{stacks or '(it did not answer)'}"
    )
