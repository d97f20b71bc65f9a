"""Real processes, ranks of one host as a launcher would start them, that come to share an anonymous file."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from contracts import worker_threads
from watching import ANSWER_S, environment

from pipeline.cache.host import HostRank, host_rank, share_file
from pipeline.config.checks import ConfigError
from pipeline.shared import anonymous_file

LAUNCH = {"TORCHELASTIC_RESTART_COUNT": "0", "MASTER_PORT": "29500", "GROUP_RANK": "0"}
LONG_S = ANSWER_S / 2
"""For a wait that must not end by itself."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks share through Linux's abstract sockets")

RANK = """
import gc, json, logging, os, resource, socket, sys, threading, warnings
from pipeline.cache.host import host_rank, share_file
from pipeline.shared import anonymous_file

logging.basicConfig(level=logging.INFO, format="%(message)s")
files, children = [], []

def share(name, limit_s):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shared = share_file(name, lambda: anonymous_file("host", 4096), host_rank(), limit_s=limit_s)
    files.append(shared)
    return {"made_here": shared.made_here, "warnings": [str(warning.message) for warning in caught]}

def write(number, position, text):
    return os.pwrite(files[number].fd, text.encode(), position)

def read(number, position, count):
    return os.pread(files[number].fd, count, position).decode()

def inherits(number):
    return os.get_inheritable(files[number].fd)

def close(number):
    files[number].close()
    files[number].close()

def collect(number):
    threads = [thread for thread in threading.enumerate() if thread.name == "headrace-host"]
    files[number] = None
    gc.collect()
    for thread in threads:
        thread.join(60)

def holds():
    gc.collect()
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}

def fork_that_ends(name):
    # The child asks too, then closes what it inherited, and ends as an interpreter does.
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(into, json.dumps(share(name, 0.1)).encode())
        for shared in files:
            shared.close()
        sys.exit(0)
    os.close(into)
    assert os.waitpid(child, 0)[1] == 0
    with open(out) as answer:
        return json.load(answer)

def fork_that_stays():
    out, into = os.pipe()
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(into)
        os.write(begin, b"!")
        os.read(out, 1)  # until the parent dies
        os._exit(0)
    os.close(out)
    children.append(into)
    os.read(begun, 1)
    return child

def limit_descriptors(more):
    limit = len(os.listdir("/proc/self/fd")) - 1 + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def become(uid):
    os.setuid(uid)

def ask(address):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\\0" + address + "-1")
        sock.connect("\\0" + address)
        answer, fds, _, _ = socket.recv_fds(sock, 16, 4)
    return {"answer": answer.decode(), "fds": len(fds)}

def answer_at(address):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\\0" + address)
    listener.listen()
    def serve():
        while True:
            connection, _ = listener.accept()
            socket.send_fds(connection, [b"here"], [anonymous_file("evil", 4096)])
    threading.Thread(target=serve, daemon=True).start()

print("ready", flush=True)
for line in sys.stdin:
    command, *arguments = json.loads(line)
    try:
        reply = globals()[command](*arguments)
    except Exception as error:
        reply = {"error": repr(error)}
    print(json.dumps(reply), flush=True)
"""


class Rank:
    """A process that does what it is told, one line at a time."""

    def __init__(self, script: Path, local_rank: int, local_world_size: int, launch: dict[str, str]) -> None:
        ours = {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_world_size), **LAUNCH, **launch}
        self.process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | ours,
        )
        assert self._line() == "ready\n"

    def tell(self, command: str, *arguments: object) -> None:
        """Give a command and do not wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        return json.loads(self._line())

    def do(self, command: str, *arguments: object) -> Any:
        self.tell(command, *arguments)
        return self.answer()

    def complaint(self) -> str:
        """The next line that it logs."""
        assert self.process.stderr is not None
        assert select.select([self.process.stderr], [], [], ANSWER_S)[0], "it had nothing to say"
        return self.process.stderr.readline()

    def stop(self) -> None:
        """Return when all its threads stand still."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Let it end by itself, whatever it has open."""
        _, errors = self.process.communicate(timeout=ANSWER_S)
        assert self.process.returncode == 0, errors

    def _line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], ANSWER_S)[0], "no answer"
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return line


StartRank = Callable[..., Rank]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartRank]:
    """Starts ranks that are gone when the test is over."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    with ExitStack() as resources:

        def start_rank(local_rank: int, local_world_size: int = 2, **launch: str) -> Rank:
            # A run of its own: the same test may be running elsewhere on this machine.
            rank = Rank(script, local_rank, local_world_size, {"TORCHELASTIC_RUN_ID": str(tmp_path)} | launch)
            resources.callback(rank.process.communicate)
            resources.callback(rank.process.kill)
            return rank

        yield start_rank


def addresses_of(pid: int) -> list[str]:
    """Names in the abstract namespace that a process answers at."""
    owned = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            owned.add(os.readlink(entry))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [line[7][1:] for line in lines if len(line) > 7 and line[7][0] == "@" and f"socket:[{line[6]}]" in owned]


SHARED = {"made_here": False, "warnings": []}
MADE = {"made_here": True, "warnings": []}


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_ranks_share_one_file_whoever_comes_first(order: tuple[int, ...], start: StartRank) -> None:
    ranks = {number: start(number, len(order)) for number in order}
    for rank in ranks.values():
        rank.tell("share", "a", LONG_S)
    assert {number: rank.answer() for number, rank in ranks.items()} == {
        number: SHARED if number else MADE for number in order
    }
    for number, rank in ranks.items():
        rank.do("write", 0, 8 * number, f"from {number}")
    for rank in ranks.values():
        assert [rank.do("read", 0, 8 * number, 6) for number in order] == [f"from {number}" for number in order]


def test_a_rank_that_waits_says_so_and_is_answered_when_local_rank_0_comes(start: StartRank) -> None:
    other = start(1)
    other.tell("share", "a", LONG_S)
    assert other.complaint() == "waiting for local rank 0 to share 'a', for 30 s at most\n"
    assert start(0).do("share", "a", LONG_S) == MADE
    assert other.answer() == SHARED


def test_a_rank_waits_for_a_local_rank_0_that_is_stopped(start: StartRank) -> None:
    first, other = start(0), start(1)
    first.do("share", "a", LONG_S)
    first.stop()
    other.tell("share", "a", LONG_S)
    assert other.complaint().startswith("waiting for local rank 0")
    first.process.send_signal(signal.SIGCONT)
    assert other.answer() == SHARED


def test_a_rank_without_local_rank_0_keeps_a_store_of_its_own_and_says_why(start: StartRank) -> None:
    other = start(1)
    answer = other.do("share", "a", 0.1)
    assert answer["made_here"]
    (warning,) = answer["warnings"]
    assert "'a' is not shared with local rank 1: local rank 0 did not offer it within 0.1 s" in warning
    assert "a store of its own" in warning
    other.do("write", 0, 0, "mine")
    assert other.do("read", 0, 0, 4) == "mine"


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", *LAUNCH])
def test_launches_at_once_do_not_meet(variable: str, start: StartRank, tmp_path: Path) -> None:
    values = (f"{tmp_path} 1", f"{tmp_path} 2")
    launches = [[start(number, **{variable: value}) for number in range(2)] for value in values]
    for launch in launches:
        assert [rank.do("share", "a", LONG_S) for rank in launch] == [MADE, SHARED]
    for number, (first, _) in enumerate(launches):
        first.do("write", 0, 0, f"launch {number}")
    assert [other.do("read", 0, 0, 8) for _, other in launches] == ["launch 0", "launch 1"]


def test_stores_are_told_apart_by_name_and_equal_names_by_their_order(start: StartRank) -> None:
    first, other = start(0), start(1)
    for name in ("a", "b", "a"):
        first.do("share", name, LONG_S)
    for name in ("b", "a", "a"):
        assert other.do("share", name, LONG_S) == SHARED
    for number, text in enumerate(("a 0", "b 0", "a 1")):
        first.do("write", number, 0, text)
    assert [other.do("read", number, 0, 3) for number in range(3)] == ["b 0", "a 0", "a 1"]


def test_the_others_go_on_when_local_rank_0_is_killed(start: StartRank) -> None:
    first, *others = (start(number, 3) for number in range(3))
    assert [rank.do("share", "a", LONG_S) for rank in (first, *others)] == [MADE, SHARED, SHARED]
    first.do("write", 0, 0, "kept")
    first.kill()
    others[0].do("write", 0, 8, "news")
    assert [others[1].do("read", 0, position, 4) for position in (0, 8)] == ["kept", "news"]


def test_a_rank_that_is_killed_takes_nothing_from_the_others(start: StartRank) -> None:
    first, killed, last = (start(number, 3) for number in range(3))
    first.do("share", "a", LONG_S)
    killed.do("share", "a", LONG_S)
    killed.kill()
    assert last.do("share", "a", LONG_S) == SHARED


@pytest.mark.parametrize("number", [0, 1])
def test_a_program_that_inherits_a_ranks_place_does_not_get_its_file(number: int, start: StartRank) -> None:
    ranks = [start(0), start(1)]
    assert [rank.do("share", "a", LONG_S) for rank in ranks] == [MADE, SHARED]
    answer = start(number).do("share", "a", LONG_S)
    assert answer["made_here"]
    assert f"another process that was started as local rank {number} has its place" in answer["warnings"][0]
    ranks[0].do("write", 0, 0, "still")
    assert ranks[1].do("read", 0, 0, 5) == "still"


def test_a_forked_child_has_a_file_of_its_own_and_stops_nothing_of_its_parents(start: StartRank) -> None:
    first, other = start(0, 3), start(1, 3)
    first.do("share", "a", LONG_S)
    assert first.do("fork_that_ends", "a") == MADE
    assert other.do("share", "a", LONG_S) == SHARED
    assert other.do("fork_that_ends", "a") == MADE
    first.do("share", "a", LONG_S)
    assert other.do("share", "a", LONG_S) == SHARED, "the child was counted"
    first.do("write", 1, 0, "second")
    assert other.do("read", 1, 0, 6) == "second"


def test_a_forked_child_that_outlives_local_rank_0_does_not_keep_its_place(start: StartRank) -> None:
    first = start(0)
    first.do("share", "a", LONG_S)
    child = first.do("fork_that_stays")
    assert (len(addresses_of(first.process.pid)), addresses_of(child)) == (1, [])


def test_close_leaves_no_thread_no_descriptor_and_no_address(start: StartRank) -> None:
    first, other = start(0), start(1)
    before = [rank.do("holds") for rank in (first, other)]
    for number, end in enumerate(("close", "collect")):
        for rank in (first, other):
            rank.do("share", "a", LONG_S)
        assert addresses_of(first.process.pid)
        for rank in (first, other):
            rank.do(end, number)
        assert [rank.do("holds") for rank in (first, other)] == before
        assert not addresses_of(first.process.pid)
    assert "close() was already called" in first.do("read", 0, 0, 1)["error"]


def test_close_returns_when_the_thread_has_ended(tmp_path: Path) -> None:
    rank = HostRank(0, 2, str(tmp_path))
    for _ in range(50):  # one that only told it to end would find it ended every other time
        with share_file("a", lambda: anonymous_file("host", 1), rank, limit_s=LONG_S):
            assert len(worker_threads()) == 1
        assert not worker_threads()


def test_a_wait_in_vain_leaves_no_descriptor(start: StartRank) -> None:
    other = start(1)
    before = other.do("holds")
    other.do("share", "a", 0.1)
    other.do("close", 0)
    assert other.do("holds") == before


def test_the_interpreter_exits_with_files_left_open(start: StartRank) -> None:
    first, other = start(0), start(1)
    for rank in (first, other):
        rank.do("share", "a", LONG_S)
    first.end()
    other.end()
    assert [rank.process.returncode for rank in (first, other)] == [0, 0]


def test_a_received_descriptor_is_not_inherited_by_programs(start: StartRank) -> None:
    first, other = start(0), start(1)
    for rank in (first, other):
        rank.do("share", "a", LONG_S)
    assert not other.do("inherits", 0)


def test_a_descriptor_that_cannot_be_opened_is_an_error_that_names_the_limit(start: StartRank) -> None:
    first, other = start(0), start(1)
    first.do("share", "a", LONG_S)
    other.do("limit_descriptors", 1)  # room for the socket alone
    assert "ulimit -n" in other.do("share", "a", LONG_S)["error"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nobody_but_this_user_is_answered(start: StartRank) -> None:
    first, foreign = start(0), start(1)
    first.do("share", "a", LONG_S)
    (address,) = addresses_of(first.process.pid)
    assert foreign.do("ask", address) == {"answer": "here", "fds": 1}
    foreign.do("become", 65534)
    assert foreign.do("ask", address) == {"answer": "", "fds": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_file_is_taken_from_another_user(start: StartRank) -> None:
    first, other, foreign = start(0), start(1), start(0)
    first.do("share", "a", LONG_S)
    (address,) = addresses_of(first.process.pid)
    first.do("close", 0)
    foreign.do("become", 65534)
    foreign.do("answer_at", address)
    answer = other.do("share", "a", LONG_S)
    assert answer["made_here"]
    assert "a process of another user (uid 65534) has local rank 0's place" in answer["warnings"][0]


def test_a_process_without_ranks_has_a_private_file() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(anonymous_file("host", 1))
        return made[-1]

    with share_file("a", make, host_rank({}), limit_s=LONG_S) as shared:
        assert (shared.made_here, [shared.fd]) == (True, made)
        assert not addresses_of(os.getpid())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])


def test_what_make_raises_is_raised_and_leaves_nobody_answering(tmp_path: Path) -> None:
    def make() -> int:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        share_file("a", make, HostRank(0, 2, str(tmp_path)), limit_s=LONG_S)
    assert not addresses_of(os.getpid())


def test_a_place_is_told_by_the_launchers_variables() -> None:
    place = host_rank({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_PORT": "29500", "SLURM_JOB_ID": "7"})
    assert place == HostRank(1, 4, "MASTER_PORT=29500 SLURM_JOB_ID=7")
    for alone in ({}, {"LOCAL_RANK": "0"}, {"LOCAL_WORLD_SIZE": "2"}, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}):
        assert host_rank(alone) is None


@pytest.mark.parametrize(
    ("local_rank", "local_world_size", "message"),
    [
        ("one", "2", "LOCAL_RANK must be a whole number >= 0, got 'one'; set it as torchrun does, or unset it"),
        ("-1", "2", "LOCAL_RANK must be a whole number >= 0, got '-1'"),
        ("0", "", "LOCAL_WORLD_SIZE must be a whole number >= 1, got ''"),
        ("0", "0", "LOCAL_WORLD_SIZE must be a whole number >= 1, got '0'"),
        ("2", "2", "LOCAL_RANK must be below LOCAL_WORLD_SIZE=2, got 2; set both, or unset both"),
    ],
)
def test_a_place_that_cannot_be_is_an_error_that_names_the_variable(
    local_rank: str, local_world_size: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        host_rank({"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_world_size})


TORCHRUN = """
import os, sys
from pipeline.cache.host import host_rank, share_file
from pipeline.shared import anonymous_file

fifo, out = sys.argv[1:]
rank = host_rank()
with share_file("a", lambda: anonymous_file("host", 64), rank, limit_s=60.0) as shared:
    if rank.local_rank == 0:
        with open(fifo) as other:  # until it has written
            other.read()
        with open(out, "wb") as file:
            file.write(os.pread(shared.fd, 6, 0))
    else:
        assert not shared.made_here
        with open(fifo, "w"):
            os.pwrite(shared.fd, b"from 1", 0)
"""


def test_the_ranks_that_torchrun_starts_share_a_file(tmp_path: Path) -> None:
    script, fifo, out = tmp_path / "rank.py", tmp_path / "fifo", tmp_path / "out"
    script.write_text(TORCHRUN)
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*(sys.executable, "-m", "torch.distributed.run", "--standalone"), "--nproc-per-node=2", script, fifo, out],
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"OMP_NUM_THREADS": "1"},
    )
    try:
        _, errors = process.communicate(timeout=2 * ANSWER_S)
        assert process.returncode == 0, errors
    finally:
        process.terminate()  # it ends its ranks
        process.communicate()
    assert out.read_bytes() == b"from 1"
