"""Hands tasks to worker processes, and deals with their deaths and stalls. Runs in one thread, which owns them."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.loader.deaths import Deaths
from pipeline.loader.errors import WorkerDiedError
from pipeline.loader.hands import Hands, InHand
from pipeline.loader.job import Task
from pipeline.loader.reports import blame, death_report, stall, too_many_deaths
from pipeline.loader.wire import Done, Failure, Hello, Ready, Ring, Unable, Work
from pipeline.loader.worker_process import Launch, WorkerProcess
from pipeline.machine import oom_kills, release_freed_memory
from pipeline.shared import Arena
from pipeline.stats import StageClock

POLL_S = 1.0
"""How often stalls are looked for; everything else wakes the thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """What every worker of a loader is started with."""

    num_workers: int
    threads_per_worker: int
    hello: Hello
    arena: Arena
    hands_fd: int
    hands: Hands
    launch: Launch
    where: Callable[[int], str]
    max_restarts: int
    stall_timeout_s: float

    def threads_of(self, number: int) -> range:
        """The lines of worker `number` in `hands`."""
        return range(number * self.threads_per_worker, (number + 1) * self.threads_per_worker)


class RingFile:
    """A ring of slots, and the descriptor of the memory it lies in, closed when nobody has tasks for it any more."""

    def __init__(self, ring: Ring, fd: int) -> None:
        self.ring = ring
        self.fd = fd
        self.close = weakref.finalize(self, os.close, fd)


@dataclass(slots=True)
class Inbox:
    """What other threads want of the dispatcher. They write, then `wake`."""

    tasks: deque[tuple[RingFile, Task]] = field(default_factory=deque)
    closing: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    news: deque[str] = field(default_factory=deque)
    """Deaths, a line each, for the consumer's thread to log: this one must never wait for a lock of the program's."""
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
        """Rows that were in hand at a death: each is made alone, before anything else, the one wanted first first."""
        self._accused: set[int] = set()
        self._deaths = Deaths(crew.max_restarts)
        self._has_released = False
        self._selector = selectors.DefaultSelector()
        # The two latest counts: one that rose with a death may have been read before that death was heard of.
        self._oom_kills = deque([oom_kills() or 0], maxlen=2)
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
                    self._oom_kills.append(oom_kills() or 0)
                    self._find_stalls()
        except BaseException as error:
            self._inbox.failure = error
        finally:
            self._inbox.closing.set()
            self._end()

    # Starting and ending.

    def _start(self, number: int) -> WorkerProcess:
        self._crew.hands.clear(self._crew.threads_of(number))
        crew = self._crew
        fds = [*crew.arena.fds, *crew.arena.files, crew.hands_fd]
        worker = WorkerProcess(number, crew.hello._replace(number=number), fds, crew.launch)
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
            task.cancel()

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
        ids, draws = job.ids[task.start : task.stop], job.plan.draws[task.start : task.stop]
        work = Work(ticket, job.slot, task.start, ids, draws, job.plan.epoch)
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
        messages: list[object] | None = None
        is_dead = False
        try:
            messages = worker.connection.receive(0)
        except EOFError:
            is_dead = True
        if is_dead:
            self._bury(worker)
        for message in messages or ():
            self._hear(worker, message)

    def _hear(self, worker: WorkerProcess, message: object) -> None:
        if isinstance(message, Done):
            self._clock.merge(message.clock)
            if not self._has_released:
                self._has_released = True
                release_freed_memory()  # of lists and arrays that became the shared index, let go by now
            worker.private_bytes = message.private_bytes
            worker.num_answers += 1
            _, task = worker.outstanding.pop(message.ticket)
            worker.is_alone = False
            if self._accused:
                self._acquit(task.job.ids[task.start : task.start + message.num_made])
            task.job.add_bad(message.bad, first=task.start)
            if message.failure is not None:
                task.job.failures.append((message.failure.row, _noted(message.failure)))
            task.job.finish_task()
        elif isinstance(message, Ready):
            worker.is_ready = True
            worker.private_bytes = message.private_bytes
        elif isinstance(message, Unable):
            raise _noted(message.failure)

    def _acquit(self, made: list[int]) -> None:
        for id in made:
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
        was_alone = worker.is_alone
        self._hear_the_rest(worker)
        self._selector.unregister(worker.connection)
        if worker.pidfd is not None:
            self._selector.unregister(worker.pidfd)
        in_hand = [held for held in self._held(worker) if held.ticket in worker.outstanding]
        self._oom_kills.append(oom_kills() or 0)
        for_memory = self._oom_kills[-1] - self._oom_kills[0]
        blamed = self._deaths.add(
            [worker.outstanding[held.ticket][1].job.ids[row] for held in in_hand for row in held.rows],
            alone=was_alone,
            from_outside=not death.is_crash and not for_memory,
        )
        names = [name for held in in_hand for name in self._names(worker, held)]
        report = death_report(worker, death, names, for_memory)
        self._put_back(worker, in_hand, blamed, report, was_alone=was_alone)
        self._inbox.news.append(report.splitlines()[0])
        if self._deaths.is_enough:
            raise too_many_deaths(report, self._crew.max_restarts)
        worker.close()
        try:
            self._workers[worker.number] = self._start(worker.number)
        except OSError as error:
            raise WorkerDiedError(f"{report}\nNo other could be started in its place: {error}") from error

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

    def _put_back(
        self, worker: WorkerProcess, in_hand: list[InHand], blamed: int | None, report: str, *, was_alone: bool
    ) -> None:
        """Rows in hand become suspects, each on its own; the others of their tasks, and other tasks, wait in front."""
        held_rows = {held.ticket: held.rows for held in in_hand}
        for ticket, (ring_file, task) in reversed(worker.outstanding.items()):
            job, rows = task.job, held_rows.get(ticket)
            if rows is None:
                queue = self._suspects if was_alone else self._inbox.tasks
                queue.appendleft((ring_file, task))
                continue
            pieces = [Task(job, task.start, rows.start), Task(job, rows.stop, task.stop)]
            others = [piece for piece in pieces if piece.start < piece.stop]
            job.add_tasks(len(others) + len(rows) - 1)
            self._inbox.tasks.extendleft((ring_file, piece) for piece in reversed(others))
            for row in rows:
                id = job.ids[row]
                if id == blamed:
                    self._accused.discard(id)
                    job.failures.append((row, blame(id, self._crew.where(id), report)))
                    job.finish_task()
                else:
                    self._accused.add(id)
                    self._suspects.append((ring_file, Task(job, row, row + 1)))
        worker.outstanding.clear()
        self._suspects = deque(sorted(self._suspects, key=_turn))

    def _names(self, worker: WorkerProcess, held: InHand) -> list[str]:
        if held.ticket not in worker.outstanding:
            return ["a sample that was just made"]
        _, task = worker.outstanding[held.ticket]
        return [f"sample id {id}, {self._crew.where(id)}" for id in task.job.ids[held.rows.start : held.rows.stop]]

    # Stalls.

    def _find_stalls(self) -> None:
        for worker in self._workers:
            there: list[InHand | int] = [*self._held(worker)]
            if not worker.is_ready or (worker.outstanding and not there):
                there.append(worker.num_answers)  # no sample is to be named: it waits for its start, or does nothing
            late = [(what, s) for what, s in worker.watch.look(there) if s > self._crew.stall_timeout_s]
            if late:
                names = [self._late_name(worker, what, seconds) for what, seconds in late]
                raise stall(worker, names, self._crew.stall_timeout_s)

    def _late_name(self, worker: WorkerProcess, what: InHand | int, waited_s: float) -> str:
        if isinstance(what, InHand):
            return f"{'; '.join(self._names(worker, what))} has been in hand for {waited_s:.0f} s"
        if worker.is_ready:
            return f"for {waited_s:.0f} s it has had work and taken none of it into its hands"
        return f"it has not finished its imports after {waited_s:.0f} s"


def _noted(failure: Failure) -> BaseException:
    failure.error.__notes__ = failure.notes
    return failure.error


def _turn(entry: tuple[RingFile, Task]) -> tuple[int, int, int]:
    _, task = entry
    return task.job.plan.epoch, task.job.plan.step, task.start


def _next_wanted(queue: deque[tuple[RingFile, Task]]) -> tuple[RingFile, Task] | None:
    """The first task that is still wanted; those before it end here.

    Rows behind one that failed are not: the loop will be told of that one, and each of them might cost three workers.
    """
    while queue:
        ring_file, task = queue.popleft()
        if not task.job.cancelled and all(row > task.start for row, _ in task.job.failures):
            return ring_file, task
        task.job.finish_task()
    return None
