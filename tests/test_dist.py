"""Training over several ranks: real processes, real kills, real torchrun."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import psutil
import pytest
import torch.distributed as dist
from fakes import write_jpegs
from runs import ROOT, assert_same_run, command, overrides_for, rows, run, short_run, summary
from watching import SOAK, run_aside

from pipeline.config import ConfigError
from pipeline.dist import ALONE
from pipeline.dist.launch import Ended, first_cause
from pipeline.dist.world import meet
from pipeline.launched import LostRankError
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.ranks import part_of

TWO = ("dist.nproc=2", "loader.batch_size=2")
"""Two ranks with the global batch that `command` gives to one process."""

RECORDER = """
import hashlib, json, os, sys
from pathlib import Path

sys.path.insert(0, {root!r})
from pipeline.training import learner as learning

take_step = learning.Learner.step

def step(learner, images, labels, **options):
    hashes = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]
    with open(os.environ["STEPS"], "a") as file:
        for row in zip(hashes, labels.tolist()):
            file.write(json.dumps([learner.num_steps, *row]) + "\\n")
    return take_step(learner, images, labels, **options)

learning.Learner.step = step

from train import main

if __name__ == "__main__":
    main()
"""
"""train.py, and the hash and label of every image of every step in a file; also in ranks, which import it again."""


@pytest.fixture(scope="module")
def pair(images: Path, faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of two ranks that nothing interrupted."""
    folder = tmp_path_factory.mktemp("pair")
    done = run(command(images, *TWO, "run.name=pair"), cwd=folder, faults=faults)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("in each of 2 ranks") == 1
    assert done.stdout.count("completed: 2 epochs, 8 steps") == 1
    return folder / "outputs/train/pair"


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, str(ROOT / "train.py")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def left_over(folder: Path) -> list[str]:
    """Processes that still work in `folder`, where a test's runs were started."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder):
            found.append(" ".join(process.info["cmdline"]))
    return found


# --- what is trained -------------------------------------------------------------------------------------------------


def test_ranks_leave_one_run_which_one_of_them_writes(pair: Path) -> None:
    assert sorted(path.name for path in pair.parent.iterdir()) == ["pair"]
    assert sorted(path.name for path in (pair / "checkpoints").iterdir()) == ["best.pt", "last.pt"]
    assert (pair / "train.log").read_text().count("epoch 1/2") == 1
    assert [row["epoch"] for row in rows(pair)] == ["1", "2"]
    assert (summary(pair)["status"], summary(pair)["steps"], summary(pair)["eval_num_samples"]) == ("completed", 8, 7)


def test_ranks_that_share_a_batch_take_the_step_of_one_process_that_has_all_of_it(tmp_path: Path) -> None:
    script = """
import json, os, sys
import torch
from torch import nn
from torch.nn import functional
from pipeline.dist import World, run_ranks
from pipeline.dist.world import join_world
from pipeline.training.compute import Compute
from pipeline.training.learner import Learner
from pipeline.training.loop import train_epoch
from pipeline.training.evaluate import evaluate

def batches():
    generator = torch.Generator().manual_seed(1)
    sizes = [6, 6, 3, 1]  # shared by two as 3+3, 3+3, 2+1 and 1+0
    return [(torch.rand(n, 3, 4, 4, generator=generator), torch.arange(n) % 3) for n in sizes]

class Observer:
    def advance(self): pass
    def show(self, totals): pass

def work(scratch):
    with join_world(on_cuda=False) as world:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        compute = Compute(device=torch.device("cpu"))
        learner = Learner(model=model, optimizer=optimizer, scheduler=schedule, compute=compute, world=world)
        mine = [(x[world.rank::world.size].double(), y[world.rank::world.size]) for x, y in batches()]
        totals = train_epoch(learner, mine, observer=Observer(), every_steps=2)
        scored = evaluate(model, mine, compute=compute, world=world)
        normal = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48, affine=False)).double()
        normal[1].running_mean[0] = world.rank  # as after training: each rank has seen other samples
        return {
            "by the first one's buffers": evaluate(normal, mine, compute=compute, world=world).loss,
            "weights": [p.flatten().tolist() for p in model.parameters()],
            "train": [totals.loss_sum, totals.num_right, totals.num_samples, totals.num_steps],
            "eval": [scored.loss, scored.top1, scored.num_samples],
        }

if __name__ == "__main__":
    print(json.dumps([work(None), run_ranks(work, None, nproc=2)]))
"""
    path = tmp_path / "step.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, shared = json.loads(done.stdout.splitlines()[-1])
    for mine, theirs in zip(alone["weights"], shared["weights"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-12, abs=1e-15)
    assert shared["train"] == pytest.approx(alone["train"], rel=1e-12)
    assert shared["train"][2:] == [16, 4]
    assert shared["eval"] == pytest.approx(alone["eval"], rel=1e-12)
    key = "by the first one's buffers"
    assert shared[key] == pytest.approx(alone[key], rel=1e-12)


@pytest.mark.soak
def test_a_run_killed_at_random_goes_on_with_other_ranks_and_workers_on_the_same_images(
    images: Path, faults: Path, tmp_path: Path
) -> None:
    script = tmp_path / "recorder.py"
    script.write_text(RECORDER.format(root=str(ROOT)))
    epochs = 6 if SOAK else 2

    def part(name: str, *options: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, str(script), *overrides_for(images), *options, f"run.name={name}"]
        arguments += ["run.save_every_steps=1", "resume=auto", f"schedule.epochs={epochs}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STEPS", str(tmp_path / name))
            return run(arguments, cwd=tmp_path, faults=faults, fault=fault)

    random = Random(6)
    for number in range(10 if SOAK else 2):
        two = number % 2 == 0
        ranks = TWO if two else ("dist.nproc=1", "loader.batch_size=2")
        workers = ("loader.num_workers=0", "loader.num_workers=1", "loader.backend=processes")[number % 3]
        how, saves = random.choice(["SIGKILL", "SIGTERM"]), random.randint(2, 3)
        fault = f"os.rename|checkpoints/last.pt|{saves}|{how}" + ("|0" if two else "")
        ended = part("cut", *ranks, workers, fault=fault)
        assert ended.returncode in ({"SIGKILL": (1, -9), "SIGTERM": (143,)}[how]), ended.stderr
    assert part("cut", *TWO).returncode == 0
    assert part("whole", "loader.batch_size=4").returncode == 0
    whole, cut = (set((tmp_path / name).read_text().splitlines()) for name in ("whole", "cut"))
    assert len(whole) == epochs * 16
    assert cut == whole
    assert summary(tmp_path / "outputs/train/cut")["status"] == "completed"
    assert summary(tmp_path / "outputs/train/cut")["resumed"] >= (10 if SOAK else 2)


@pytest.mark.soak
def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_bits(
    images: Path, faults: Path, pair: Path, tmp_path: Path
) -> None:
    kills, length, whole = [(1, "open|.jpg|8"), (0, "os.rename|checkpoints/last.pt|2")], (), pair
    if SOAK:
        random, length = Random(10), ("schedule.epochs=8", "run.deterministic=true")
        events = [("open|.jpg|", 9), ("os.rename|checkpoints/last.pt|", 3)]
        kills = [(number % 2, f"{name}{random.randint(2, most)}") for number in range(5) for name, most in events]
        kills = [(0 if event.startswith("os.rename") else rank, event) for rank, event in kills]
        assert run(command(images, *TWO, *length, "run.name=whole"), cwd=tmp_path, faults=faults).returncode == 0
        whole = tmp_path / "outputs/train/whole"
    part = command(images, *TWO, *length, "run.name=cut", "run.save_every_steps=1", "resume=auto")
    workers = ("loader.num_workers=0", "loader.num_workers=1", "loader.backend=processes")
    for number, (rank, event) in enumerate(kills):
        # Another process than the rank's opens the images where there are worker processes.
        who = workers[number % 3 if event.startswith("os.rename") else number % 2]
        killed = run([*part, who], cwd=tmp_path, faults=faults, fault=f"{event}|SIGKILL|{rank}")
        assert killed.returncode == 1, killed.stderr
        assert f"rank {rank} was killed by SIGKILL" in killed.stderr
        assert left_over(tmp_path) == []
        assert summary(tmp_path / "outputs/train/cut")["status"] == "failed"
    backend = ("loader.backend=processes", "loader.num_workers=1")
    final = run([*command(images, *TWO, *length, "run.name=cut", "resume=auto"), *backend], cwd=tmp_path, faults=faults)
    assert final.returncode == 0, final.stderr
    assert_same_run(tmp_path / "outputs/train/cut", whole)


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_a_signal_stops_all_ranks_at_one_step_and_the_command_continues_them(
    images: Path, faults: Path, pair: Path, tmp_path: Path
) -> None:
    started = command(images, *TWO, "run.name=cut", "run.save_every_steps=3", "loader.num_workers=0")
    stopped = run(started, cwd=tmp_path, faults=faults, fault="open|.jpg|8|SIGINT|1|parent")
    assert stopped.returncode == 130, stopped.stderr
    lines = stopped.stderr.splitlines()
    assert [line.startswith("SIGINT: saved checkpoints/last.pt at step ") for line in lines].count(True) == 1
    run_dir = tmp_path / "outputs/train/cut"
    assert summary(run_dir)["status"] == "stopped"
    again = shlex.split(lines[-1].partition("continue with: python ")[2])
    finished = run([sys.executable, *again], cwd=tmp_path, faults=faults)
    assert finished.returncode == 0, finished.stderr
    assert_same_run(run_dir, pair)
    assert left_over(tmp_path) == []


def test_a_signal_at_one_rank_stops_all_of_them_at_one_step(images: Path, faults: Path, tmp_path: Path) -> None:
    started = command(images, *TWO, "run.name=cut", "loader.num_workers=0")
    stopped = run(started, cwd=tmp_path, faults=faults, fault="open|.jpg|6|SIGTERM|1")
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith("SIGTERM: saved checkpoints/last.pt at step ")


def test_ctrl_c_while_ranks_start_is_one_line(images: Path, faults: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(faults), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command(images, *TWO), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        ranks: list[psutil.Process] = []
        while len(ranks) < 2:
            assert started.poll() is None
            time.sleep(0.01)
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(started.pid).children()
                ranks = [child for child in children if "multiprocessing.spawn" in " ".join(child.cmdline())]
        os.killpg(started.pid, signal.SIGINT)  # as a terminal sends it
        _, told = started.communicate(timeout=120)
    assert started.returncode == 130
    assert "interrupted; what there is of the run is in " in told
    assert "Traceback" not in told
    assert not any(rank.is_running() for rank in ranks)


def test_the_first_cause_is_what_is_shown_when_a_rank_fails(
    images: Path, faults: Path, tmp_path: Path, broken_jpeg: Path
) -> None:
    for name in ("cats", "dogs"):
        write_jpegs(tmp_path / "images" / name, 12)
        (tmp_path / "images" / name / "00003.jpg").write_bytes(broken_jpeg.read_bytes())
    failed = run(command(tmp_path / "images", *TWO, "run.name=bad"), cwd=tmp_path, faults=faults)
    assert failed.returncode == 1
    assert "00003.jpg" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "LostRankError" not in failed.stderr
    assert not summary(tmp_path / "outputs/train/bad")["error"].startswith("LostRankError")
    assert left_over(tmp_path) == []


def test_a_wrong_setting_that_only_the_data_shows_is_one_line_and_not_one_for_each_rank(
    images: Path, faults: Path, tmp_path: Path
) -> None:
    refused = run(command(images, "dist.nproc=2", "loader.batch_size=50"), cwd=tmp_path, faults=faults)
    assert refused.returncode == 2
    assert refused.stderr.startswith("loader.drop_last leaves no batch: loader.batch_size is 50, ")
    assert refused.stderr.count("\n") == 1


def test_ranks_are_a_job_of_a_sweep_like_any_other(images: Path, faults: Path, tmp_path: Path) -> None:
    sweep = [*command(images, "loader.batch_size=2", "dist.nproc=2,1,3", "run.max_steps=2", "run.name=s"), "-m"]
    done = run(sweep, cwd=tmp_path, faults=faults)
    assert done.returncode == 0, done.stderr
    jobs = tmp_path / "outputs/train/multirun/s"
    assert [summary(jobs / name)["status"] for name in "012"] == ["stopped"] * 3
    sizes = [load_checkpoint(jobs / name / "checkpoints/last.pt")["loader"]["global_batch_size"] for name in "012"]
    assert sizes == [4, 2, 6]
    assert "resource_tracker" not in done.stderr


def ended(error: BaseException | None = None, at_s: float = 0.0) -> Ended:
    return Ended(None, error, at_s)


def test_the_first_cause_is_what_went_wrong_by_itself() -> None:
    own, late, lost = ValueError("own"), ValueError("late"), LostRankError("lost")
    stopped = KeyboardInterrupt("SIGTERM")
    assert first_cause({}, {0: ended(), 1: ended()}, nproc=2) is None
    assert first_cause({0: 1}, {0: ended(lost, 1), 1: ended(own, 2)}, nproc=2) is own
    assert first_cause({0: 1}, {0: ended(late, 2), 1: ended(own, 1)}, nproc=2) is own
    assert first_cause({1: 1}, {0: ended(stopped), 1: ended(stopped)}, nproc=2) is stopped
    assert first_cause({}, {0: ended(lost), 1: ended(stopped)}, nproc=2) is stopped
    assert first_cause({0: 1}, {0: ended(lost), 1: ended(lost)}, nproc=2) is lost
    for exit_codes in ({1: -9}, {0: 1, 1: -9}):
        killed = first_cause(exit_codes, {0: ended(lost)}, nproc=2)
        assert str(killed).startswith("rank 1 was killed by SIGKILL")
    unseen = first_cause({0: 1}, {0: ended(lost)}, nproc=2)
    assert str(unseen).startswith("rank 1 ended without a word: it was killed")
    assert "with exit code 3" in str(first_cause({1: 3}, {0: ended(lost)}, nproc=2))


def test_what_nohup_has_ignored_ends_no_rank(images: Path, faults: Path, tmp_path: Path) -> None:
    ignoring = ["sh", "-c", "trap '' TERM HUP; exec \"$@\"", "sh"]
    started = [*ignoring, *command(images, *TWO, "run.name=kept", "loader.num_workers=0")]
    done = run(started, cwd=tmp_path, faults=faults, fault="open|.jpg|6|SIGTERM|1|parent")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "outputs/train/kept")["status"] == "completed"


# --- torchrun --------------------------------------------------------------------------------------------------------


def test_torchrun_starts_the_same_run_and_its_restart_goes_on_from_the_last_checkpoint(
    images: Path, faults: Path, pair: Path, tmp_path: Path
) -> None:
    arguments = torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    arguments += [*overrides_for(images), "loader.batch_size=2", "loader.num_workers=0", "run.name=elastic"]
    done = run(
        [*arguments, "run.save_every_steps=1"], cwd=tmp_path, faults=faults,
        fault="os.rename|checkpoints/last.pt|3|SIGKILL|0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "outputs/train/elastic"
    assert_same_run(run_dir, pair)
    assert summary(run_dir)["resumed"] == 1
    assert sorted(path.name for path in run_dir.glob(".hydra*")) == [".hydra", ".hydra.1"]
    assert sorted(path.name for path in run_dir.glob("*.log")) == ["train.1.log", "train.log"]


def test_ranks_that_start_again_meet_each_other_and_not_what_is_left_of_those_before() -> None:
    store = dist.HashStore()

    def start(*ranks: int) -> list[Callable[[float], object]]:
        return [run_aside(partial(meet, store, rank, 3)) for rank in ranks]

    first = {name(20) for name in start(2, 0, 1)}
    assert len(first) == 1
    early = start(1, 2)  # the store has all that rank 0 wrote for those before them
    late = start(0)
    again = {name(20) for name in (*early, *late)}
    assert len(again) == 1
    assert not again & first


def test_the_ranks_of_torchrun_need_one_directory_and_bring_no_more_of_them(images: Path, tmp_path: Path) -> None:
    launched = os.environ | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}

    def refused(*overrides: str) -> str:
        done = subprocess.run(
            command(images, *overrides), cwd=tmp_path, env=launched, capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert not (tmp_path / "outputs").exists()
        return done.stderr

    assert "add run.name=NAME" in refused()
    assert "leave out dist.nproc=2" in refused("run.name=a", "dist.nproc=2")
    assert "use -m with dist.nproc" in refused("run.name=a", "loader.num_workers=0,1", "-m")


def test_ranks_that_were_started_with_different_configurations_say_in_what_they_differ(
    images: Path, tmp_path: Path
) -> None:
    port = free_port()
    processes = []
    for rank, lr in enumerate(("0.4", "0.5")):
        launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
        launched |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        processes.append(
            subprocess.Popen(
                command(images, "run.name=odd", f"optim.lr={lr}"), cwd=tmp_path, env=os.environ | launched,
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for process in processes:
        errors = process.communicate(timeout=200)[1]
        assert process.returncode == 2, errors
        assert "optim.lr: rank 0 has 0.4, rank 1 has 0.5" in errors


def test_a_node_that_is_lost_leaves_the_others_to_end_the_run(images: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=job"]
    options += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-conf=last_call_timeout=15"]
    arguments = [*torchrun(*options), *overrides_for(images), "loader.batch_size=2", "run.save_every_steps=1"]
    arguments += ["run.name=nodes", "schedule.epochs=40", "loader.num_workers=0", "run.eval_every=40"]
    run_dir = tmp_path / "outputs/train/nodes"
    with node(arguments, tmp_path) as host:
        wait_until(lambda: listens(port), host)  # the first one hosts the rendezvous
        with node(arguments, tmp_path) as other:
            wait_until((run_dir / "checkpoints/last.pt").exists, host)
            other.kill()
            assert host.wait(timeout=180) == 0
    assert (summary(run_dir)["status"], summary(run_dir)["epochs"]) == ("completed", 40)
    assert load_checkpoint(run_dir / "checkpoints/last.pt")["loader"]["global_batch_size"] == 4
    assert summary(run_dir)["resumed"] >= 1


@contextmanager
def node(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent as on another machine: no signal to this process reaches it. Killed at the end with all it started."""
    process = subprocess.Popen(arguments, cwd=folder, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        yield process
    finally:
        for left in [process.pid, *(child.pid for child in _children_of(process.pid))]:
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.wait()


def _children_of(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def wait_until(happens: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns when it has happened; it is the doing of `process`, which lives on."""
    deadline_s = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline_s, "it never happened"
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
            raise AssertionError(f"it ended with exit code {process.returncode}")


def test_a_number_of_ranks_that_cannot_share_the_batch_is_refused_with_one_that_can(images: Path) -> None:
    cfg = short_run(images)
    earlier = {"loader": {"global_batch_size": 48}}
    assert part_of(cfg, replace(ALONE, size=3), earlier).loader.batch_size == 16
    with pytest.raises(ConfigError, match=r"cannot be shared by 5 ranks; .* a number that divides it, such as 4"):
        part_of(cfg, replace(ALONE, size=5), earlier)
