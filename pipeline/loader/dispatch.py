"""Hands tasks to worker processes, and deals with their deaths and stalls. Runs in one thread, which owns them."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.loader.deaths import DEATHS_ALONE, Deaths
from pipeline.loader.errors import WorkerDiedError, WorkerStalledError
from pipeline.loader.hands import Hands, InHand
from pipeline.loader.job import Task
from pipeline.loader.wire import Done, Failure, Hello, Ready, Ring, Unable, Work
from pipeline.loader.worker_process import Death, WorkerProcess
from pipeline.machine import oom_kills
from pipeline.stats import StageClock

POLL_S = 1.0
"""How often stalls are looked for; everything else wakes the thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """What every worker of a loader is started with."""

    num_workers: int
    threads_per_worker: int
    hello: Hello
    fds: list[int]
    hands: Hands
    where: Callable[[int], str]
    max_restarts: int
    stall_timeout_s: float

    def threads_of(self, number: int) -> range:
        """The lines of worker `number` in `hands`."""
        return range(number * self.threads_per_worker, (number + 1) * self.threads_per_worker)


class RingFile(NamedTuple):
    """A ring of slots, and the descriptor of the memory it lies in."""

    ring: Ring
    fd: int


@dataclass(slots=True)
class Inbox:
    """What other threads want of the dispatcher. They write, then `wake`."""

    tasks: deque[tuple[RingFile, Task]] = field(default_factory=deque)
    closing: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    next_ticket: int = 0
    """Tickets below have been given out, or will never be."""
    bell: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def wake(self) -> None:
        """Have the dispatcher look; a bell that rings already is enough."""
        try:
            self.bell[1].send(b"!", socket.MSG_DONTWAIT)
        except OSError:  # full, or closed with the dispatcher
            return


class Dispatcher:
    """The workers, and the tasks they have and will have. Everything here belongs to the thread in `run`."""

    def __init__(self, crew: Crew, inbox: Inbox, clock: StageClock) -> None:
        self._crew = crew
        self._inbox = inbox
        self._clock = clock
        self._workers: list[WorkerProcess] = []
        self._suspects: deque[tuple[RingFile, Task]] = deque()
        """Rows that were in hand at a death: each is made alone, before anything else."""
        self._accused: set[int] = set()
        self._deaths = Deaths(crew.max_restarts)
        self._selector = selectors.DefaultSelector()
        self._oom_kills = oom_kills() or 0
        # One more than can be worked on, so that no worker waits for this thread between two tasks.
        self._depth = crew.threads_per_worker + 1

    def run(self) -> None:
        """Work until the inbox closes or something cannot be mended; ends every worker and task before it returns."""
        try:
            self._selector.register(self._inbox.bell[0], selectors.EVENT_READ, self._drain_bell)
            for number in range(self._crew.num_workers):
                self._workers.append(self._start(number))
            looked_s = time.monotonic()
            while not self._inbox.closing.is_set():
                self._assign()
                for key, _ in self._selector.select(POLL_S):
                    key.data()
                if time.monotonic() - looked_s > POLL_S:
                    looked_s = time.monotonic()
                    self._find_stalls()
        except BaseException as error:
            self._inbox.failure = error
        finally:
            self._inbox.closing.set()
            self._end()

    # Starting and ending.

    def _start(self, number: int) -> WorkerProcess:
        self._crew.hands.clear(self._crew.threads_of(number))
        worker = WorkerProcess(number, self._crew.hello._replace(number=number), self._crew.fds)
        self._selector.register(worker.connection, selectors.EVENT_READ, lambda: self._listen(worker))
        if worker.pidfd is not None:
            self._selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._bury(worker))
        return worker

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.reap()
            worker.close()
        self._selector.close()
        for end in self._inbox.bell:
            end.close()
        for task in self._all_tasks():
            task.job.cancelled = True
            task.job.finish_task()

    def _all_tasks(self) -> Iterator[Task]:
        for worker in self._workers:
            yield from (task for _, task in worker.outstanding.values())
            worker.outstanding.clear()
        for queue in (self._suspects, self._inbox.tasks):
            while queue:
                yield queue.popleft()[1]

    # Work out, rows in.

    def _drain_bell(self) -> None:
        self._inbox.bell[0].recv(4096)

    def _assign(self) -> None:
        """Give every worker what it may have; suspects first, each to a worker that has nothing else."""
        idle = [worker for worker in self._workers if worker.is_ready and not worker.outstanding]
        while idle and (suspect := _next_wanted(self._suspects)):
            worker = idle.pop()
            worker.is_alone = True
            self._give(worker, *suspect)
        # While suspects wait, the others' hands are left to become empty.
        depth = 1 if self._suspects else self._depth
        for level in range(depth):
            for worker in self._workers:
                if worker.is_ready and not worker.is_alone and len(worker.outstanding) == level:
                    task = _next_wanted(self._inbox.tasks)
                    if task is None:
                        return
                    self._give(worker, *task)

    def _give(self, worker: WorkerProcess, ring_file: RingFile, task: Task) -> None:
        job = task.job
        ticket = self._inbox.next_ticket
        self._inbox.next_ticket = ticket + 1
        worker.outstanding[ticket] = ring_file, task
        work = Work(
            ticket, job.slot, task.start, job.ids[task.start : task.stop], job.plan.draws[task.start : task.stop]
        )
        try:
            if worker.ring is not ring_file:
                worker.connection.send(ring_file.ring, [ring_file.fd])
                worker.ring = ring_file
            worker.connection.send(work)
        except OSError:  # it is dead, or takes nothing any more: its end is heard of, and then its task is mended
            worker.kill()

    def _listen(self, worker: WorkerProcess) -> None:
        if worker not in self._workers:
            return  # buried in this same round: its process was heard of before its socket
        try:
            messages = worker.connection.receive(0)
        except EOFError:
            self._bury(worker)
            return
        for message in messages or ():
            self._hear(worker, message)

    def _hear(self, worker: WorkerProcess, message: object) -> None:
        if isinstance(message, Done):
            self._clock.merge(message.clock)
            worker.rss_bytes = message.rss_bytes
            _, task = worker.outstanding.pop(message.ticket)
            worker.is_alone = False
            worker.idle_since_s = None
            if self._accused:
                self._acquit(task)
            if message.failure is not None:
                task.job.failures.append((message.failure.row, _noted(message.failure)))
            task.job.finish_task()
        elif isinstance(message, Ready):
            worker.is_ready = True
            worker.rss_bytes = message.rss_bytes
        elif isinstance(message, Unable):
            raise _noted(message.failure)

    def _acquit(self, task: Task) -> None:
        for id in task.job.ids[task.start : task.stop]:
            if id in self._accused:
                self._accused.remove(id)
                self._deaths.clear(id)

    # Deaths.

    def _bury(self, worker: WorkerProcess) -> None:
        """Mend what a dead worker leaves: reap it, start another, have its rows made again."""
        if worker not in self._workers:
            return  # heard of twice, by its socket and by its process
        worker.kill()  # an end that closed its socket and lives on would still write rows
        death = worker.reap()
        self._hear_the_rest(worker)
        self._selector.unregister(worker.connection)
        if worker.pidfd is not None:
            self._selector.unregister(worker.pidfd)
        in_hand = [held for held in self._held(worker) if held.ticket in worker.outstanding]
        oom_kills_now = oom_kills() or 0
        for_memory, self._oom_kills = oom_kills_now - self._oom_kills, oom_kills_now
        blamed = self._deaths.add(
            [worker.outstanding[held.ticket][1].job.ids[held.row] for held in in_hand],
            alone=worker.is_alone,
            from_outside=not death.is_crash and not for_memory,
        )
        report = self._report(worker, death, in_hand, for_memory)
        self._put_back(worker, in_hand, blamed, report)
        if self._deaths.is_enough:
            raise WorkerDiedError(
                f"{report}\nThat is more than loader.max_restarts={self._crew.max_restarts}; raise it if such deaths "
                "are expected, and use fewer loader.num_workers if memory is short"
            )
        worker.close()
        self._workers[worker.number] = self._start(worker.number)

    def _hear_the_rest(self, worker: WorkerProcess) -> None:
        """What it said before it died counts."""
        try:
            while (messages := worker.connection.receive(0)) is not None:
                for message in messages:
                    self._hear(worker, message)
        except EOFError:
            return

    def _held(self, worker: WorkerProcess) -> list[InHand]:
        return self._crew.hands.held(self._crew.threads_of(worker.number))

    def _put_back(self, worker: WorkerProcess, in_hand: list[InHand], blamed: int | None, report: str) -> None:
        """Rows in hand become suspects, each on its own; the others of their tasks, and other tasks, wait in front."""
        held_rows = {held.ticket: held.row for held in in_hand}
        for ticket, (ring_file, task) in reversed(worker.outstanding.items()):
            job, held_row = task.job, held_rows.get(ticket)
            if held_row is None:
                self._inbox.tasks.appendleft((ring_file, task))
                continue
            pieces = [Task(job, task.start, held_row), Task(job, held_row + 1, task.stop)]
            others = [piece for piece in pieces if piece.start < piece.stop]
            job.add_tasks(len(others))
            self._inbox.tasks.extendleft((ring_file, piece) for piece in reversed(others))
            id = job.ids[held_row]
            if id == blamed:
                self._accused.discard(id)
                job.failures.append((held_row, _blame(id, self._crew.where(id), report)))
                job.finish_task()
            else:
                self._accused.add(id)
                self._suspects.append((ring_file, Task(job, held_row, held_row + 1)))
        worker.outstanding.clear()

    def _report(self, worker: WorkerProcess, death: Death, in_hand: list[InHand], for_memory: int) -> str:
        lines = [
            f"worker process {worker.number} (pid {worker.pid}) ended {death}; "
            f"when last heard of it held {worker.rss_bytes / 1e6:.0f} MB"
        ]
        if for_memory:
            lines.append(f"the kernel killed {for_memory} for memory meanwhile (the control group's oom_kill rose)")
        else:
            lines.append("the control group's oom_kill count did not rise")
        lines += [f"in hand: {self._name(worker, held)}" for held in in_hand] or ["no sample was in hand"]
        words = worker.last_words()
        return "\n  ".join([*lines, *words.splitlines()[-20:]])

    def _name(self, worker: WorkerProcess, held: InHand) -> str:
        if held.ticket not in worker.outstanding:
            return "a sample that was just made"
        _, task = worker.outstanding[held.ticket]
        id = task.job.ids[held.row]
        return f"sample id {id}, {self._crew.where(id)}"

    # Stalls.

    def _find_stalls(self) -> None:
        limit_s = self._crew.stall_timeout_s
        for worker in self._workers:
            held = self._held(worker)
            stalled = [hand for hand in held if hand.held_s > limit_s]
            if stalled:
                raise self._stall(
                    worker,
                    [f"{self._name(worker, hand)} has been in hand for {hand.held_s:.0f} s" for hand in stalled],
                )
            if not worker.is_ready and worker.age_s > limit_s:
                raise self._stall(worker, [f"it has not started after {worker.age_s:.0f} s"])
            if held or not worker.outstanding:
                worker.idle_since_s = None
            elif worker.idle_since_s is None:
                worker.idle_since_s = time.monotonic()
            elif time.monotonic() - worker.idle_since_s > limit_s:
                raise self._stall(worker, ["it has work and takes none of it into its hands"])

    def _stall(self, worker: WorkerProcess, what: list[str]) -> WorkerStalledError:
        stacks = worker.stacks() if worker.is_ready else ""
        text = "\n  ".join([f"worker process {worker.number} (pid {worker.pid}) does not go on", *what])
        return WorkerStalledError(
            f"{text}\nThat is longer than loader.stall_timeout_s={self._crew.stall_timeout_s:g}; "
            f"raise it if such samples are expected. Its stacks:\n{stacks or '(it did not answer)'}"
        )


def _noted(failure: Failure) -> BaseException:
    failure.error.__notes__ = failure.notes
    return failure.error


def _next_wanted(queue: deque[tuple[RingFile, Task]]) -> tuple[RingFile, Task] | None:
    """The first task of a batch that is still wanted; those before it end here."""
    while queue:
        ring_file, task = queue.popleft()
        if not task.job.cancelled:
            return ring_file, task
        task.job.finish_task()
    return None


def _blame(id: int, where: str, report: str) -> WorkerDiedError:
    error = WorkerDiedError(f"a sample killed {DEATHS_ALONE} workers that had nothing else in hand: {report}")
    error.add_note(f"stage decode or transform, sample id {id}, {where}")
    return error
