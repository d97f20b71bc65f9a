"""Batches through a device that does everything as late, or as early, as it may: the values tell what was forgotten."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from contracts import worker_threads
from fakes import make_loader
from late_device import LateDevice
from samples import Painted
from torch import Tensor

from pipeline.loader.batch import Batch
from pipeline.loader.loader import Loader
from pipeline.loader.slots import max_slots
from pipeline.prefetch import PrefetchLoader

SCHEDULES = pytest.mark.parametrize(
    "early",
    [{"eager_copies": False, "eager_kernels": True}, {"eager_copies": True, "eager_kernels": False}],
    ids=["late copies", "late kernels"],
)
BACKENDS: dict[str, dict[str, Any]] = {
    "serial": {},
    "threads": {"num_workers": 2},
    "processes": {"num_workers": 1, "backend": "processes"},
}


def loader_of(backend: str, device: LateDevice | None = None) -> Loader:
    pin = None if device is None else device.pin
    return make_loader(Painted(), num_samples=42, pin=pin, **BACKENDS[backend])


def read_all(batches: PrefetchLoader, device: LateDevice, *, num_epochs: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels as the consumer's kernels find them, which run when they have to."""
    seen: list[Tensor] = []
    for _ in range(num_epochs):
        for images, labels in batches:
            device.read(images, seen)
            device.read(labels, seen)
            del images, labels
    device.synchronize()
    return list(zip(seen[::2], seen[1::2], strict=True))


@SCHEDULES
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_consumer_reads_what_the_loader_made_however_late_things_happen(
    early: dict[str, bool], backend: str
) -> None:
    with loader_of("serial") as loader:
        expected = [(images.clone(), labels) for _ in range(3) for images, labels in loader]
    device = LateDevice(**early)
    with loader_of(backend, device) as loader, PrefetchLoader(loader, "cpu", streams=device) as batches:
        seen = read_all(batches, device, num_epochs=3)
        assert device.pinned, "no slot was page-locked"
    assert len(seen) == len(expected) == 33
    for (images, labels), (wanted, wanted_labels) in zip(seen, expected, strict=True):
        assert torch.equal(images, wanted)
        assert torch.equal(labels, wanted_labels)


@SCHEDULES
def test_a_stage_reads_the_batch_after_its_copy_and_the_consumer_after_the_stage(early: dict[str, bool]) -> None:
    device = LateDevice(**early)

    def doubled(batch: Batch) -> Batch:
        return batch.with_images(device.compute(batch.images, lambda images: images * 2))

    with loader_of("serial") as loader:
        expected = [images * 2 for images, _ in loader]
    with loader_of("threads", device) as loader, PrefetchLoader(loader, "cpu", streams=device, stage=doubled) as made:
        seen = read_all(made, device, num_epochs=1)
    assert all(torch.equal(images, wanted) for (images, _), wanted in zip(seen, expected, strict=True))


@SCHEDULES
def test_memory_of_the_device_is_that_of_the_batches_in_flight_however_many_epochs(early: dict[str, bool]) -> None:
    device = LateDevice(**early)
    with (
        loader_of("threads", device) as loader,
        PrefetchLoader(loader, "cpu", num_batches=2, streams=device) as batches,
    ):
        for _ in range(6):
            for images, _labels in batches:
                device.read(images, [])
                device.synchronize()  # the consumer keeps up
                del images, _labels
        gc.collect()
        # Images and labels, of whole batches and of the last; those ahead, the consumer's, and one that is being moved.
        assert device.num_blocks <= 2 * 2 * (2 + 1 + 1)
        assert device.num_free == device.num_blocks, "a batch is still referenced"
        assert len(device.pinned) <= max_slots(in_flight=2)


@SCHEDULES
def test_memory_of_the_device_stays_over_ten_epochs_of_changing_shapes(early: dict[str, bool]) -> None:
    device = LateDevice(**early)
    shapes = [(size % 3 + 2, 3, size, size) for size in (8, 12, 9, 16, 8, 11)]
    epochs = [shapes, shapes[::-1], shapes[2:] + shapes[:2]]
    num_blocks: list[int] = []
    for number in range(10):
        loader = [(torch.full(shape, float(number)), torch.arange(shape[0])) for shape in epochs[number % 3]]
        with PrefetchLoader(loader, "cpu", num_batches=2, streams=device) as batches:
            for images, _labels in batches:
                device.read(images, [])
                device.synchronize()
                del images, _labels
        gc.collect()
        num_blocks.append(device.num_blocks)
        assert device.num_free == device.num_blocks, f"a batch of epoch {number} is still referenced"
    # Of each size as many as are in flight at once, at most; how many were depends on the threads' turns.
    assert num_blocks[-1] <= len({(*shape,) for shape in shapes}) * 2 * (2 + 1 + 1)
    assert num_blocks[-1] - num_blocks[4] <= len(shapes)


def test_a_slot_is_held_until_its_copy_has_happened_and_no_longer() -> None:
    device = LateDevice(eager_copies=False, eager_kernels=False)
    with (
        loader_of("threads", device) as loader,
        PrefetchLoader(loader, "cpu", num_batches=3, streams=device) as batches,
    ):
        iterator = iter(batches)
        device.wait_until_asked(2 * 3)
        assert loader._ring.num_lent == 3, "their copies have not happened, for nobody waited"
        for batch in iterator:
            device.synchronize()
            del batch
        assert loader._ring.num_lent == 0
        assert loader.stats_counters.copied_batches == 0, "no slot was free in time"
    assert not device.num_overwritten


@pytest.mark.parametrize("how", ["at its end", "broken off", "with an error of the stage", "with an error of a copy"])
def test_however_an_epoch_ends_no_slot_goes_back_before_its_copy_has_happened(how: str) -> None:
    device = LateDevice(eager_copies=False, eager_kernels=False)
    before = worker_threads()

    def fail(batch: Batch) -> Batch:
        if batch.step == 1 and how == "with an error of the stage":
            raise ArithmeticError("a kernel that cannot be")
        return batch

    device.fails_at_copy = 4 if how == "with an error of a copy" else None  # labels, after the images of step 1
    with loader_of("threads", device) as loader:
        with PrefetchLoader(loader, "cpu", streams=device, stage=fail) as batches:
            try:
                for batch in batches:
                    if how == "broken off" and batch.step == 1:
                        break
            except (ArithmeticError, MemoryError):
                assert "error" in how
        assert device.num_waiting == 0, "slots went back that copies have yet to read"
        gc.collect()
        assert loader._ring.num_lent == 0
    assert worker_threads() == before


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_pages_are_unlocked_when_the_loader_and_the_last_batch_are_gone(backend: str) -> None:
    device = LateDevice(eager_copies=True, eager_kernels=True)
    loader = loader_of(backend, device)
    held = next(iter(loader))
    loader.close()
    assert device.pinned
    del loader
    gc.collect()
    assert device.pinned, "a batch views memory that is not locked any more"
    del held
    gc.collect()
    assert not device.pinned
