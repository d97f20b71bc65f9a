"""The loader: order, bounds, failures, epochs, state."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from contracts import assert_same_batches, digest, worker_threads
from fakes import FakeSample, Gates, make_loader

from pipeline.sampler import Sampler, SequentialSampler, ShuffleSampler, WeightedSampler

WORKERS = [0, 1, 3]


@pytest.mark.parametrize("num_workers", WORKERS)
def test_every_sample_comes_once_an_epoch_in_the_samplers_order(num_workers: int) -> None:
    with make_loader(FakeSample(), num_samples=10, sampler=SequentialSampler(10), num_workers=num_workers) as loader:
        batches = list(loader)
    assert [batch.ids.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert batches[2].labels.tolist() == [80, 90]
    assert batches[2].images.shape == (2, 3, 2, 2)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    loaders = [make_loader(FakeSample(), num_samples=50, num_workers=n) for n in WORKERS]
    assert_same_batches(loaders, epochs=3)
    for loader in loaders:
        loader.close()


def test_a_batch_that_is_ready_early_waits_for_its_turn() -> None:
    gates = Gates({0})
    sample = FakeSample(gates)
    with make_loader(sample, sampler=SequentialSampler(20), num_workers=2, batch_size=1) as loader:
        iterator = iter(loader)
        sample.wait_until_made(1)
        gates.open(0)
        assert [next(iterator).ids.item() for _ in range(3)] == [0, 1, 2]


def test_one_slow_sample_does_not_stop_the_rest_of_its_batch() -> None:
    gates = Gates({0})
    sample = FakeSample(gates)
    with make_loader(sample, sampler=SequentialSampler(20), num_workers=2, batch_size=8) as loader:
        iterator = iter(loader)
        sample.wait_until_made(*range(1, 16))
        gates.open(0)
        assert next(iterator).ids.tolist() == list(range(8))


def test_a_batch_is_handed_over_only_when_its_last_sample_is_made() -> None:
    gates = Gates({0})
    sample = FakeSample(gates)
    with make_loader(sample, sampler=SequentialSampler(20), num_workers=2, batch_size=8) as loader:
        iterator = iter(loader)
        sample.wait_until_made(*range(1, 8))
        opening = threading.Timer(0.05, gates.open, [0])
        opening.start()
        next(iterator)
        assert 0 in sample.made
        opening.join()


@pytest.mark.parametrize("prefetch_factor", [1, 2, 4])
def test_prefetch_factor_bounds_the_batches_in_flight(prefetch_factor: int) -> None:
    sample = FakeSample()
    loader = make_loader(sample, num_samples=100, num_workers=2, prefetch_factor=prefetch_factor)
    iterator = iter(loader)
    for taken in range(1, 6):
        next(iterator)
        sample.wait_until_count(4 * (taken + prefetch_factor))
    loader.close()
    assert len(sample.made) == 4 * (5 + prefetch_factor)


def test_serial_makes_a_batch_only_when_it_is_asked_for() -> None:
    sample = FakeSample()
    with make_loader(sample) as loader:
        iterator = iter(loader)
        assert sample.made == []
        next(iterator)
        assert len(sample.made) == 4


@pytest.mark.parametrize("num_workers", WORKERS)
def test_a_second_live_iterator_is_refused_until_the_first_is_dropped(num_workers: int) -> None:
    with make_loader(FakeSample(), num_workers=num_workers) as loader:
        first = iter(loader)
        next(first)
        with pytest.raises(RuntimeError, match="live iterator"):
            iter(loader)
        del first
        assert len(list(loader)) == 5


def test_set_epoch_abandons_a_live_iterator() -> None:
    with make_loader(FakeSample(), num_workers=2) as loader:
        first = iter(loader)
        next(first)
        loader.set_epoch(7)
        assert {batch.epoch for batch in loader} == {7}
        with pytest.raises(RuntimeError, match="abandoned"):
            next(first)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_set_epoch_gives_the_same_batches_as_counting_up_to_it(num_workers: int) -> None:
    with make_loader(FakeSample(), num_workers=num_workers, read_ahead=True) as loader:
        for _ in range(2):
            list(loader)
        third = [digest(batch) for batch in loader]
        loader.set_epoch(2)
        assert [digest(batch) for batch in loader] == third
        assert {batch.epoch for batch in loader} == {3}


@pytest.mark.parametrize("num_workers", WORKERS)
def test_a_failure_arrives_at_its_position_as_itself(num_workers: int) -> None:
    class UnreadableError(Exception):
        pass

    def fail(id: int) -> None:
        if id == 9:
            raise UnreadableError("nine")

    with make_loader(FakeSample(fail), sampler=SequentialSampler(20), num_workers=num_workers) as loader:
        iterator = iter(loader)
        assert next(iterator).ids.tolist() == [0, 1, 2, 3]
        assert next(iterator).ids.tolist() == [4, 5, 6, 7]
        with pytest.raises(UnreadableError, match="nine"):
            next(iterator)
        with pytest.raises(StopIteration):
            next(iterator)


def test_ctrl_c_in_a_serial_loader_loses_no_batch() -> None:
    interrupts = iter([KeyboardInterrupt()])

    def interrupt(id: int) -> None:
        if id == 5:
            for error in interrupts:
                raise error

    with make_loader(FakeSample(interrupt), sampler=SequentialSampler(12)) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        assert [batch.ids.tolist() for batch in iterator] == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_failure_keeps_nothing_alive_once_it_is_dropped() -> None:
    def fail(id: int) -> None:
        raise ValueError(f"sample {id}")

    gc.disable()
    try:
        loader = make_loader(FakeSample(fail), num_workers=2)
        with pytest.raises(ValueError, match="sample"):
            next(iter(loader))
        gone = weakref.ref(loader)
        del loader
        assert gone() is None, "a cycle holds the loader and its threads until the next garbage collection"
    finally:
        gc.enable()


def test_a_refused_state_leaves_the_iteration_as_it_was() -> None:
    with make_loader(FakeSample()) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(ValueError, match="seed"):
            loader.load_state_dict(loader.state_dict() | {"seed": 9})
        assert len(list(iterator)) == 4


def test_of_two_failures_in_a_batch_the_first_row_wins_whichever_came_first() -> None:
    gates = Gates({0, 7})
    gates.open(7)

    def fail(id: int) -> None:
        gates(id)
        raise ValueError(f"sample {id}")

    with make_loader(FakeSample(fail), sampler=SequentialSampler(8), num_workers=2, batch_size=8) as loader:
        iterator = iter(loader)
        gates.arrived[7].wait(60)
        gates.open(0)
        with pytest.raises(ValueError, match="sample 0"):
            next(iterator)


def test_the_next_epoch_is_made_while_the_last_batches_are_consumed() -> None:
    sample = FakeSample()
    with make_loader(sample, num_workers=2, read_ahead=True) as loader:
        for _ in loader:
            pass
        sample.wait_until_count(20 + 2 * 4)
        assert {batch.epoch for batch in loader} == {1}
        sample.wait_until_count(2 * 20 + 2 * 4)


def test_nothing_is_made_after_the_known_last_epoch() -> None:
    sample = FakeSample()
    with make_loader(sample, num_workers=2, read_ahead=True, num_epochs=2) as loader:
        for _ in range(2):
            list(loader)
        assert not loader._pending
    assert len(sample.made) == 40


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_loaded_state_continues_to_the_bit_under_other_workers(num_workers: int, taken: int) -> None:
    with make_loader(FakeSample(), num_workers=2, read_ahead=True) as loader:
        first = [digest(batch) for batch in loader]
        second = [digest(batch) for batch in loader]
        loader.set_epoch(0)
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        state = loader.state_dict()
    with make_loader(FakeSample(), num_workers=num_workers) as resumed:
        resumed.load_state_dict(state)
        rest = [digest(batch) for batch in resumed]
        following = [digest(batch) for batch in resumed]
    if taken == 5:
        assert rest == second
    else:
        assert rest == first[taken:]
        assert following == second


def test_the_state_counts_batches_handed_over_not_batches_made_ahead() -> None:
    sample = FakeSample()
    with make_loader(sample, num_workers=2) as loader:
        iterator = iter(loader)
        next(iterator)
        sample.wait_until_count(12)
        assert loader.state_dict()["position"] == 4


def test_a_state_keeps_its_global_batch_under_another_world_size() -> None:
    with make_loader(FakeSample(), batch_size=2, world_size=2) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with make_loader(FakeSample(), batch_size=4) as single:
        whole = [batch.ids.tolist() for batch in single]
    with make_loader(FakeSample(), batch_size=7) as resumed:
        resumed.load_state_dict(state)
        assert resumed.batch_size == 4
        assert [batch.ids.tolist() for batch in resumed] == whole[1:]
    with make_loader(FakeSample(), world_size=3) as three, pytest.raises(ValueError, match="world_size=3"):
        three.load_state_dict(state)


@pytest.mark.parametrize("change", [{"seed": 1}, {"order": "other"}, {"version": 0}])
def test_a_state_of_another_order_is_refused(change: dict[str, object]) -> None:
    with make_loader(FakeSample()) as loader, pytest.raises(ValueError, match=next(iter(change))):
        loader.load_state_dict(loader.state_dict() | change)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_every_global_batch_between_them(world_size: int) -> None:
    with make_loader(FakeSample(), batch_size=6) as single:
        whole = [batch.ids.tolist() for batch in single]
    parts = []
    for rank in range(world_size):
        with make_loader(FakeSample(), batch_size=6 // world_size, rank=rank, world_size=world_size) as loader:
            parts.append([batch.ids.tolist() for batch in loader])
    assert len({len(part) for part in parts}) == 1
    for step, ids in enumerate(whole):
        assert sorted(id for part in parts for id in part[step]) == sorted(ids)


def test_a_rank_whose_part_is_empty_gets_an_empty_batch() -> None:
    with make_loader(FakeSample(), num_samples=5, batch_size=2, rank=1, world_size=2) as loader:
        sizes = [len(batch.ids) for batch in loader]
    assert sizes == [2, 0]


@pytest.mark.parametrize("num_workers", WORKERS)
def test_an_epoch_without_batches_yields_none(num_workers: int) -> None:
    with make_loader(FakeSample(), num_samples=3, drop_last=True, num_workers=num_workers, read_ahead=True) as loader:
        assert len(loader) == 0
        assert list(loader) == []
        assert list(loader) == []


def test_after_break_no_more_than_the_bound_is_in_flight_and_close_ends_the_threads() -> None:
    sample = FakeSample()
    loader = make_loader(sample, num_samples=100, num_workers=2)
    for _ in loader:
        break
    sample.wait_until_count(12)
    loader.close()
    loader.close()
    assert len(sample.made) == 12
    assert not worker_threads()
    with pytest.raises(RuntimeError, match="close"):
        iter(loader)


def test_close_does_not_wait_for_samples_that_have_not_begun() -> None:
    gates = Gates({0})
    sample = FakeSample(gates)
    loader = make_loader(sample, sampler=SequentialSampler(100), num_samples=100, num_workers=1, batch_size=50)
    iter(loader)
    gates.arrived[0].wait(60)
    closing = threading.Thread(target=loader.close)
    closing.start()
    assert loader._executor._stopping.wait(60)  # type: ignore[attr-defined]
    gates.open(0)
    closing.join(60)
    assert not closing.is_alive()
    assert len(sample.made) <= 8, "tasks behind the one that ran were made all the same"


def test_an_abandoned_batch_is_waited_for_before_its_slot_is_used_again() -> None:
    gates = Gates({0})
    sample = FakeSample(gates)
    with make_loader(sample, sampler=SequentialSampler(20), num_workers=2) as loader:
        iter(loader)
        gates.arrived[0].wait(60)
        opening = threading.Timer(0.05, gates.open, [0])
        opening.start()
        loader.set_epoch(3)
        assert 0 in sample.made, "the slot of a batch that is still written to was given back"
        opening.join()
        assert len(list(loader)) == 5


def test_draws_follow_the_id_and_not_the_position() -> None:
    def draws_of(sampler: Sampler) -> dict[int, float]:
        with make_loader(FakeSample(), sampler=sampler) as loader:
            return {
                id: row for batch in loader for id, row in zip(batch.ids.tolist(), batch.draws.tolist(), strict=True)
            }

    assert draws_of(SequentialSampler(20)) == draws_of(ShuffleSampler(20, seed=0))


def test_copies_of_an_id_in_an_epoch_have_draws_of_their_own() -> None:
    sampler = WeightedSampler([1.0] + [0.0] * 19, seed=0)
    with make_loader(FakeSample(), sampler=sampler) as loader:
        draws = [float(value) for batch in loader for value in batch.draws[:, 0]]
    assert len(set(draws)) == 20


def test_a_collected_loader_ends_its_threads() -> None:
    loader = make_loader(FakeSample(), num_workers=2)
    next(iter(loader))
    gone = weakref.ref(loader)
    del loader
    gc.collect()
    assert gone() is None
    assert not worker_threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_loader_refuses_to_work_in_a_forked_child() -> None:
    with make_loader(FakeSample(), num_workers=1) as loader:
        child = os.fork()
        if child == 0:
            try:
                iter(loader)
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_interpreter_exits_with_a_loader_left_open_in_the_middle_of_an_epoch() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from fakes import FakeSample, make_loader\n"
        "loader = make_loader(FakeSample(), num_samples=1000, num_workers=2)\n"
        "iterator = iter(loader); kept = [next(iterator) for _ in range(20)]\n"
        "print('left', len(kept))\n"
    )
    command = [sys.executable, "-c", script, os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "left 20\n", "")


def test_wrong_sizes_and_ranks_are_refused_by_name() -> None:
    with make_loader(FakeSample()) as loader:
        with pytest.raises(ValueError, match=r"loader\.batch_size must be >= 1, got 0"):
            replace(loader.order, batch_size=0)
        with pytest.raises(ValueError, match=r"rank must be in \[0, world_size=2\), got 2"):
            replace(loader.order, rank=2, world_size=2)
        with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
            loader.set_epoch(-1)
    with pytest.raises(ValueError, match=r"loader\.prefetch_factor must be >= 1, got 0"):
        make_loader(FakeSample(), num_workers=1, prefetch_factor=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 3}, r"position=3, which is not the beginning of a global batch of 4"),
        ({"position": 1000}, r"position=1000, which is not the beginning"),
        ({"position": "8"}, r"position='8', which no loader has given"),
        ({"epoch": -1}, r"epoch=-1, which no loader has given"),
        ({"global_batch_size": 0}, r"global_batch_size=0, which no loader has given"),
    ],
)
def test_a_state_that_no_loader_has_given_is_refused(change: dict[str, object], message: str) -> None:
    with make_loader(FakeSample()) as loader:
        state = loader.state_dict()
        with pytest.raises(ValueError, match=message):
            loader.load_state_dict(state | change)
        assert len(list(loader)) == 5
