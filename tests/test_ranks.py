"""Two real ranks that talk over gloo: what each of them gets of every global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from watching import environment

from pipeline import create_dataloader

WORLD_SIZE = 2
BACKENDS = {"serial": ("threads", 0), "threads": ("threads", 2), "processes": ("processes", 1)}

# Samples, batch size of a rank, and whether it is training (shuffled, augmented) or evaluation.
SETS = {"training": (23, 4, True), "evaluation": (23, 4, False), "fewer samples than ranks at the end": (5, 2, False)}

RANK = """
import hashlib, json, sys
import torch.distributed as dist
from pipeline import create_dataloader

rank, store, out, cases, paths = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
seen = {}
for name, (count, batch_size, augment, backend, num_workers) in cases.items():
    with create_dataloader(
        paths[:count], list(range(count)), batch_size, num_workers=num_workers, img_size=16, cache_size=0,
        augment=augment, backend=backend,
    ) as loader:
        seen[name] = []
        for _ in range(2):
            steps = []
            for batch in loader:
                dist.barrier()  # hangs unless every rank has as many batches
                hashes = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in batch.images]
                steps.append({"ids": batch.ids.tolist(), "labels": batch.labels.tolist(), "hashes": hashes})
            seen[name].append(steps)
every = [None, None]
dist.all_gather_object(every, seen)
if rank == 0:
    with open(out, "w") as file:
        json.dump(every, file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(jpegs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """For each rank, set and backend: the batches of two epochs."""
    directory = tmp_path_factory.mktemp("ranks")
    (directory / "rank.py").write_text(RANK)
    cases = {
        f"{name}, {label}": (*options, backend, num_workers)
        for name, options in SETS.items()
        for label, (backend, num_workers) in BACKENDS.items()
    }
    running = [
        subprocess.Popen(
            [
                sys.executable,
                *(directory / "rank.py", str(rank), directory / "store", directory / "out.json"),
                *(json.dumps(cases), *jpegs),
            ],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
            process.wait()
    every: list[dict[str, Any]] = json.loads((directory / "out.json").read_text())
    return every


@pytest.fixture(params=[(name, label) for name in SETS for label in BACKENDS], ids=lambda case: ", ".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A set, and who makes its batches."""
    chosen: tuple[str, str] = request.param
    return chosen


def test_every_rank_has_as_many_batches_empty_ones_included(case: tuple[str, str], ranks: list[dict[str, Any]]) -> None:
    count, batch_size, _ = SETS[case[0]]
    for every in zip(*(rank[", ".join(case)] for rank in ranks), strict=True):
        assert {len(steps) for steps in every} == {-(-count // (batch_size * WORLD_SIZE))}
    if count == 5:
        assert [len(step["ids"]) for step in ranks[1][", ".join(case)][0]] == [2, 0]


def test_the_ranks_parts_are_disjoint_and_together_the_global_batch_of_one_rank(
    case: tuple[str, str], ranks: list[dict[str, Any]], jpegs: list[Path]
) -> None:
    count, batch_size, augment = SETS[case[0]]
    with create_dataloader(
        jpegs[:count],
        list(range(count)),
        batch_size * WORLD_SIZE,
        num_workers=0,
        img_size=16,
        cache_size=0,
        augment=augment,
        rank=0,
        world_size=1,
    ) as single:
        for epoch in range(2):
            parts = [rank[", ".join(case)][epoch] for rank in ranks]
            for batch, *steps in zip(single, *parts, strict=True):
                ids = [id for step in steps for id in step["ids"]]
                assert len(set(ids)) == len(ids), "a sample went to two ranks"
                assert sorted(ids) == sorted(batch.ids.tolist())
                for rank, step in enumerate(steps):
                    assert step["ids"] == step["labels"] == batch.ids.tolist()[rank::WORLD_SIZE]


def test_no_epoch_repeats_a_sample_to_fill_a_batch(case: tuple[str, str], ranks: list[dict[str, Any]]) -> None:
    count = SETS[case[0]][0]
    for epoch in range(2):
        ids = [id for rank in ranks for step in rank[", ".join(case)][epoch] for id in step["ids"]]
        assert sorted(ids) == list(range(count))


@pytest.mark.parametrize("name", SETS)
def test_pixels_do_not_depend_on_who_makes_a_ranks_batches(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        serial, *others = (rank[f"{name}, {label}"] for label in BACKENDS)
        assert all(other == serial for other in others)
