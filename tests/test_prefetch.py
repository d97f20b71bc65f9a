"""The prefetcher: order of copies, waits and uses; any loader's batches; nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from contracts import worker_threads
from fakes import FakeSample, make_loader
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from pipeline.loader.batch import Batch
from pipeline.prefetch import PrefetchLoader, map_tensors
from pipeline.streams import CudaStreams, MpsStreams, streams_for


class RecordingStreams:
    """Streams that do nothing and remember everything, in one list."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self._inside = False
        self._events = 0

    @contextmanager
    def side(self) -> Iterator[None]:
        self._inside = True
        yield
        self._inside = False

    def move(self, tensor: Tensor) -> Tensor:
        assert self._inside, "a copy was issued on the consumer's stream"
        copy = tensor.clone()
        self.log.append(("copy", copy.data_ptr()))
        return copy

    def record(self) -> int:
        assert self._inside, "the event does not follow the copies"
        self._events += 1
        self.log.append(("record", self._events))
        return self._events

    def wait(self, event: int) -> None:
        self.log.append(("wait", event))

    def keep(self, tensor: Tensor) -> None:
        self.log.append(("keep", tensor.data_ptr()))

    def is_over(self, event: int) -> bool:
        return event < 0  # not before somebody waits

    def finish(self, event: int) -> None:
        self.log.append(("finish", event))


class Pair(NamedTuple):
    image: Tensor
    more: dict[str, Any]


def test_every_batch_is_copied_recorded_waited_for_and_kept_before_the_consumer_has_it() -> None:
    streams = RecordingStreams()
    batches = [torch.full((2,), float(number)) for number in range(5)]
    for number, batch in enumerate(PrefetchLoader(batches, "cpu", streams=streams), start=1):
        log = list(streams.log)
        copied = log.index(("copy", batch.data_ptr()))
        recorded, waited = log.index(("record", 2 * number)), log.index(("wait", 2 * number))
        kept = log.index(("keep", batch.data_ptr()), waited)
        assert copied < recorded < waited < kept


def test_the_stage_runs_on_the_side_stream_before_the_event() -> None:
    streams = RecordingStreams()

    def stage(batch: Tensor) -> Tensor:
        streams.log.append(("stage", None))
        return batch + 1

    (batch,) = PrefetchLoader([torch.zeros(2)], "cpu", streams=streams, stage=stage)
    assert batch.tolist() == [1, 1]
    assert [what for what, _ in streams.log if what != "finish"] == [
        "copy",
        "record",
        "stage",
        "record",
        "wait",
        "keep",
    ]


@pytest.mark.parametrize("num_batches", [1, 2, 5])
def test_no_more_than_num_batches_are_made_ahead(num_batches: int) -> None:
    made: list[int] = []

    def numbers() -> Iterator[Tensor]:
        for number in range(20):
            made.append(number)
            yield torch.tensor([number])

    with PrefetchLoader(_Once(numbers), "cpu", num_batches=num_batches) as loader:
        for taken, batch in enumerate(loader):
            assert batch.item() == taken
            assert len(made) <= taken + 1 + num_batches


class _Once:
    """An iterable from a generator function."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __iter__(self) -> Iterator[Any]:
        return iter(self._function())


def test_nested_batches_keep_their_containers_and_other_values() -> None:
    batch = Pair(torch.ones(2), {"boxes": [torch.zeros(1), "name"], "n": 3})
    moved = map_tensors(lambda tensor: tensor + 1, (batch, 7))
    assert type(moved) is tuple
    pair, seven = moved
    assert seven == 7
    assert isinstance(pair, Pair)
    assert pair.image.tolist() == [2, 2]
    assert pair.more["boxes"][0].tolist() == [1]
    assert pair.more["boxes"][1] == "name"
    assert pair.more["n"] == 3


def test_a_torch_dataloader_can_be_wrapped() -> None:
    dataset = TensorDataset(torch.arange(10.0), torch.arange(10))
    inner = DataLoader(dataset, batch_size=4)
    with PrefetchLoader(inner, "cpu") as loader:
        assert loader.dataset is dataset
        assert len(loader) == 3
        for _ in range(2):
            assert torch.cat([labels for _, labels in loader]).tolist() == list(range(10))


def test_a_failure_of_the_loader_reaches_the_consumer_at_its_position() -> None:
    def numbers() -> Iterator[Tensor]:
        yield torch.tensor([0])
        raise OSError("the disk is gone")

    with PrefetchLoader(_Once(numbers), "cpu") as loader:
        iterator = iter(loader)
        assert next(iterator).item() == 0
        with pytest.raises(OSError, match="the disk is gone"):
            next(iterator)


def test_an_empty_loader_yields_nothing() -> None:
    with PrefetchLoader([], "cpu") as loader:
        assert list(loader) == []


def test_breaking_off_ends_the_thread_at_the_next_epoch_or_at_close() -> None:
    with make_loader(FakeSample(), num_workers=1) as inner:
        loader = PrefetchLoader(inner, "cpu")
        for _ in loader:
            break
        assert len(list(loader)) == 5
        for _ in loader:
            break
        loader.close()
        loader.close()
        assert {thread.name for thread in worker_threads()} == {"headrace-worker-0"}
        with pytest.raises(RuntimeError, match="close"):
            iter(loader)


def test_what_ends_an_epoch_is_no_batch_that_was_ready() -> None:
    with PrefetchLoader([torch.zeros(1)] * 3, "cpu", num_batches=4) as loader:
        batches = iter(loader)
        for thread in threading.enumerate():
            if thread.name == "headrace-prefetch":
                thread.join()
        assert len(list(batches)) == 3
        assert (loader.batches, loader.ready_batches) == (3, 3 + 2 + 1)


def test_an_epoch_more_is_no_clock_more() -> None:
    with make_loader(FakeSample(), num_workers=0) as inner, PrefetchLoader(inner, "cpu") as loader:
        stats = inner.stats_counters
        num_clocks = []
        for _ in range(4):
            assert len(list(loader)) == 5
            num_clocks.append(len(stats._clocks))
    assert num_clocks == num_clocks[:1] * 4
    assert stats.summary()["collate_count"] == 4 * 20


def test_a_second_live_iterator_is_refused() -> None:
    with PrefetchLoader([torch.zeros(1)] * 3, "cpu") as loader:
        first = iter(loader)
        next(first)
        with pytest.raises(RuntimeError, match="live iterator"):
            iter(loader)
        loader.stop()
        with pytest.raises(RuntimeError, match="abandoned"):
            next(first)


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"prefetch\.num_batches must be >= 1, got 0"):
        PrefetchLoader([], "cpu", num_batches=0)
    with pytest.raises(ValueError, match=r"prefetch\.device must be cpu, cuda or mps, got meta"):
        streams_for("meta")


def test_a_state_counts_batches_given_to_the_consumer_and_not_those_pulled_ahead() -> None:
    with make_loader(FakeSample(), num_workers=2) as inner, PrefetchLoader(inner, "cpu") as loader:
        positions = [loader.state_dict()["position"]]
        for _ in loader:
            positions.append(loader.state_dict()["position"])
        assert positions == [0, 4, 8, 12, 16, 0]
        assert loader.state_dict()["epoch"] == 1
        for _ in loader:
            break
        loader.close()
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 4)


def test_changing_the_epoch_after_a_break_stops_the_thread_first() -> None:
    with make_loader(FakeSample(), num_workers=2) as inner, PrefetchLoader(inner, "cpu") as loader:
        for epoch in range(0, 60, 2):
            loader.set_epoch(epoch)
            for batch in loader:
                assert batch.epoch == epoch
                break
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert next(iter(loader)).step == 1


def test_closing_the_loader_under_a_prefetcher_ends_both() -> None:
    for _ in range(20):
        inner = make_loader(FakeSample(), num_samples=1000, num_workers=2)
        loader = PrefetchLoader(inner, "cpu")
        iterator = iter(loader)
        next(iterator)
        inner.close()
        loader.close()
        del iterator
        assert not worker_threads()


def test_the_epoch_of_a_sampler_is_set_where_the_loader_has_none() -> None:
    sampler = DistributedSampler(range(8), num_replicas=2, rank=0)
    loader = PrefetchLoader(DataLoader(range(8), sampler=sampler), "cpu")  # type: ignore[arg-type]
    loader.set_epoch(3)
    assert sampler.epoch == 3


def test_loaders_without_a_length_and_batches_that_are_none_are_fine() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.arange(5.0))

    with PrefetchLoader(DataLoader(Stream(), batch_size=2), "cpu") as loader:
        assert [len(batch) for batch in loader] == [2, 2, 1]
    with PrefetchLoader([1, None, 2], "cpu") as loader:
        assert list(loader) == [1, None, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_cuda_device_says_what_to_use_instead() -> None:
    with pytest.raises(ValueError, match="use auto, cpu or none"):
        PrefetchLoader([], "cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Apple's GPU")
def test_mps_without_such_a_device_says_what_to_use_instead() -> None:
    with pytest.raises(ValueError, match=r"^prefetch\.device=mps needs .*use auto, cpu or none"):
        PrefetchLoader([], "mps")


def test_on_one_queue_every_tensor_is_copied_before_its_slot_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = torch.device("meta")  # a device that is there, and another than the CPU
    blocking = []
    to = Tensor.to

    def told(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        blocking.append(not options.get("non_blocking", False))
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", told)
    batches = [(torch.ones(2, 3, 4, 4), {"labels": torch.arange(2)})] * 3
    with PrefetchLoader(batches, device, streams=MpsStreams(device)) as loader:
        moved = list(loader)
    assert [(images.device, labels["labels"].device) for images, labels in moved] == [(device, device)] * 3
    assert len(blocking) == 6
    assert all(blocking)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="Apple's GPU only")
def test_batches_on_apples_gpu_equal_those_on_the_cpu() -> None:
    batches = [Batch(torch.rand(8, 3, 64, 64), torch.arange(8), ids=torch.arange(8)) for _ in range(50)]
    with PrefetchLoader(batches, "mps", stage=lambda batch: batch.map(torch.clone)) as loader:
        for batch, expected in zip(loader, batches, strict=True):
            assert batch.images.device.type == "mps"
            assert torch.equal((batch.images * 1).cpu(), expected.images)


@pytest.mark.gpu
def test_batches_on_the_gpu_equal_those_on_the_cpu() -> None:
    device = torch.device("cuda")
    batches = [Batch(torch.rand(8, 3, 64, 64), torch.arange(8), ids=torch.arange(8)) for _ in range(50)]

    def slowly(batch: Batch) -> Batch:
        torch.cuda._sleep(50_000_000)  # on the side stream, before the event: the consumer must wait for it
        return batch.map(torch.clone)

    with PrefetchLoader(batches, device, streams=CudaStreams(device), stage=slowly) as loader:
        for batch, expected in zip(loader, batches, strict=True):
            assert batch.images.device.type == "cuda"
            assert torch.equal((batch.images * 1).cpu(), expected.images)


@pytest.mark.gpu
def test_slots_on_the_gpu_are_read_before_they_are_filled_anew_and_are_page_locked() -> None:
    device = torch.device("cuda")
    streams = CudaStreams(device)

    def slowly(batch: Batch) -> Batch:
        torch.cuda._sleep(20_000_000)  # the next copy is behind it, while workers fill slots
        return batch

    shape = (64, 64, 3)
    with make_loader(FakeSample(), num_samples=400, row_shape=shape) as loader:
        expected = [batch.images.clone() for batch in loader]
    with (
        make_loader(FakeSample(), num_samples=400, row_shape=shape, num_workers=4, pin=streams.pin) as loader,
        PrefetchLoader(loader, device, streams=streams, stage=slowly) as batches,
    ):
        for batch, images in zip(batches, expected, strict=True):
            assert torch.equal((batch.images * 1).cpu(), images)
        slot = loader._ring._memory[0]
        assert torch.from_numpy(slot).is_pinned()
