"""Resuming: a run that was killed, whenever and however often, gives the batches of one that was not."""

from __future__ import annotations

import hashlib
import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from contracts import digest
from fakes import FakeSample, make_loader
from samples import Painted
from watching import script, workers_left_by

from pipeline import create_dataloader
from pipeline.build_source import order_fingerprint
from pipeline.sampler import ShuffleSampler

GLOBAL_BATCH = 4
BACKENDS = {"serial": ("threads", 0), "threads": ("threads", 2), "processes": ("processes", 2)}

TRAINER = """
import hashlib, json, os, signal, sys
from pathlib import Path
from pipeline import create_dataloader

log, kill_at, options, paths = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
world_size = options.pop("world_size")
loaders = [
    create_dataloader(
        paths, list(range(len(paths))), img_size=16, cache_size=0, seed=3, rank=rank, world_size=world_size, **options
    )
    for rank in range(world_size)
]
lines = log.read_text().splitlines()
if lines:
    for loader in loaders:
        loader.load_state_dict(json.loads(lines[-1])["state"])
done = len(lines)
with log.open("a") as file:
    while done < 12:
        for parts in zip(*loaders, strict=True):
            ids = [None] * sum(len(part.ids) for part in parts)
            hashes = list(ids)
            for rank, part in enumerate(parts):
                ids[rank::world_size] = part.ids.tolist()
                images = [image.contiguous().numpy().tobytes() for image in part.images]
                hashes[rank::world_size] = [hashlib.sha256(image).hexdigest() for image in images]
            done += 1
            line = {
                "epoch": parts[0].epoch, "step": parts[0].step, "ids": ids, "hashes": hashes,
                "state": loaders[0].state_dict(),
            }
            file.write(json.dumps(line) + "\\n")
            file.flush()
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
for loader in loaders:
    loader.close()
"""


class Stage(NamedTuple):
    """One life of the training script; it ends itself with SIGKILL after batch `kill_at` of the run, if not 0."""

    backend: str
    num_workers: int
    kill_at: int
    world_size: int = 1
    prefetch_device: str | None = None
    batch_size: int | None = None


# Six batches an epoch, two epochs.
RUNS = {
    "workers 4, 0, 3": [Stage("processes", 4, 1), Stage("threads", 0, 9), Stage("processes", 3, 0)],
    "threads on 2 ranks, processes on 1 with a prefetcher, processes on 2": [
        Stage("threads", 2, 6, world_size=2),
        Stage("processes", 2, 8, prefetch_device="cpu", batch_size=7),
        Stage("processes", 1, 0, world_size=2),
    ],
}


@pytest.fixture(scope="module")
def uninterrupted(jpegs: list[Path]) -> list[dict[str, Any]]:
    """What the training script writes when nobody kills it, without its states."""
    lines = []
    with create_dataloader(
        jpegs, list(range(23)), GLOBAL_BATCH, num_workers=0, img_size=16, cache_size=0, seed=3
    ) as loader:
        for _ in range(2):
            lines += [
                {
                    "epoch": batch.epoch,
                    "step": batch.step,
                    "ids": batch.ids.tolist(),
                    "hashes": [_hash(image) for image in batch.images],
                }
                for batch in loader
            ]
    return lines


def _hash(image: Any) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("run", RUNS)
def test_a_run_killed_again_and_again_equals_one_that_was_not(
    run: str, jpegs: list[Path], tmp_path: Path, uninterrupted: list[dict[str, Any]]
) -> None:
    log = tmp_path / "batches.jsonl"
    log.touch()
    for stage in RUNS[run]:
        options = {
            "backend": stage.backend,
            "num_workers": stage.num_workers,
            "world_size": stage.world_size,
            "prefetch_device": stage.prefetch_device,
            "batch_size": stage.batch_size or GLOBAL_BATCH // stage.world_size,
        }
        with script(tmp_path, TRAINER, log, stage.kill_at, json.dumps(options), *jpegs) as process:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == (-signal.SIGKILL if stage.kill_at else 0), errors
        assert not workers_left_by(process.pid)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    states = [line.pop("state") for line in lines]
    assert lines == uninterrupted
    assert {state["global_batch_size"] for state in states} == {GLOBAL_BATCH}
    assert all(before != after for before, after in pairwise(states))


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
@pytest.mark.parametrize(("first", "then"), [("processes", "serial"), ("threads", "processes")])
def test_any_backend_continues_what_any_other_began(first: str, then: str, taken: int) -> None:
    def make(name: str) -> Any:
        backend, num_workers = BACKENDS[name]
        return make_loader(Painted(), backend=backend, num_workers=num_workers, read_ahead=True)

    with make_loader(FakeSample()) as undisturbed:
        whole = [[digest(batch) for batch in undisturbed] for _ in range(3)]
    with make(first) as loader:
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        state = json.loads(json.dumps(loader.state_dict()))
        del iterator
    with make(then) as resumed:
        resumed.load_state_dict(state)
        epochs = [[digest(batch) for batch in resumed] for _ in range(2)]
    assert epochs == ([whole[0][taken:], whole[1]] if taken < 5 else whole[1:]), "an epoch is not whole"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_state_under_another_world_size_keeps_its_global_batch(name: str) -> None:
    backend, num_workers = BACKENDS[name]
    with make_loader(FakeSample(), batch_size=2, world_size=2) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with make_loader(FakeSample(), batch_size=4) as single:
        whole = [[digest(batch) for batch in single] for _ in range(2)]
    with make_loader(Painted(), batch_size=7, backend=backend, num_workers=num_workers) as resumed:
        iterator = iter(resumed)
        kept = next(iterator)  # in a slot of the old size, which must stay as it is
        then = digest(kept)
        resumed.load_state_dict(state)
        assert [digest(batch) for batch in resumed] == whole[0][1:]
        assert [digest(batch) for batch in resumed] == whole[1]
        assert digest(kept) == then
        assert resumed.batch_size == 4


@pytest.mark.parametrize("prefetch_device", [None, "cpu"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_state_is_less_than_a_kilobyte_and_counts_what_the_loop_was_given(
    name: str, prefetch_device: str | None, jpegs: list[Path]
) -> None:
    backend, num_workers = BACKENDS[name]
    with create_dataloader(
        jpegs,
        list(range(23)),
        GLOBAL_BATCH,
        num_workers=num_workers,
        img_size=16,
        cache_size=0,
        backend=backend,
        prefetch_device=prefetch_device,
    ) as loader:
        loader.set_epoch(10**6)
        positions = []
        for _ in loader:
            state = loader.state_dict()
            assert len(json.dumps(state)) < 1000
            positions.append((state["epoch"] - 10**6, state["position"]))
    assert positions == [(0, 4), (0, 8), (0, 12), (0, 16), (0, 20), (1, 0)]


class CountingSampler(ShuffleSampler):
    """Counts the positions that were asked for."""

    asked = 0

    def ids(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        self.asked += len(positions)
        return super().ids(epoch, positions)


@pytest.mark.parametrize("position", [0, 4, 500_000, 999_996])
@pytest.mark.parametrize("name", BACKENDS)
def test_resuming_costs_the_same_at_every_position_of_a_million(name: str, position: int) -> None:
    backend, num_workers = BACKENDS[name]
    sampler = CountingSampler(1_000_000, seed=0)
    options = {"num_samples": 1_000_000, "backend": backend, "num_workers": num_workers, "read_ahead": True}
    with make_loader(Painted(), sampler=sampler, **options) as loader:
        loader.load_state_dict(loader.state_dict() | {"epoch": 3, "position": position})
        batch = next(iter(loader))
        assert (batch.epoch, batch.step) == (3, position // 4)
        expected = ShuffleSampler(1_000_000, seed=0).ids(3, np.arange(position, position + 4))
        assert batch.ids.tolist() == expected.tolist()
        assert sampler.asked <= 4 * (1 + 2), "more was planned than what is in flight"


def test_what_a_state_belongs_to_is_found_out_once(jpegs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*parts: Any) -> str:
        calls.append(parts)
        return order_fingerprint(*parts)

    monkeypatch.setattr("pipeline.build_batches.order_fingerprint", counted)
    with create_dataloader(jpegs, list(range(23)), 4, num_workers=0, img_size=16, cache_size=0) as loader:
        assert not calls, "a loader whose state nobody asks for need not hash its paths"
        states = [loader.state_dict() for _ in loader]
        loader.load_state_dict(states[0])
    assert len(calls) == 1
