"""Slots: when one is used again, when a batch is copied, what stays valid."""

from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from fakes import ROW_SHAPE, FakeSample, make_loader

from pipeline.loader.batch import Batch
from pipeline.loader.slots import SlotRing


def ring_of(rows: int = 4, in_flight: int = 2) -> SlotRing:
    return SlotRing(ROW_SHAPE, np.float32, rows, in_flight=in_flight)


def test_a_slot_is_used_again_after_its_last_view_died_and_not_before() -> None:
    ring = ring_of()
    slot = ring.take()
    rows, _ = ring.lend(slot, 4)
    images = torch.from_numpy(rows).permute(0, 3, 1, 2)
    del rows
    view = images[1:][0]
    del images
    gc.collect()
    assert ring.take() != slot
    del view
    assert ring.take() == slot


def test_a_short_batch_returns_its_slot_too() -> None:
    ring = ring_of()
    slot = ring.take()
    rows, _ = ring.lend(slot, 1)
    assert rows.shape == (1, *ROW_SHAPE)
    del rows
    assert ring.take() == slot


def test_a_consumer_who_drops_batches_uses_only_a_few_slots() -> None:
    with make_loader(FakeSample(), num_samples=400, num_workers=2, prefetch_factor=2) as loader:
        for _ in loader:
            pass
        assert loader._ring.num_slots <= 2 + 2
        assert loader.stats_counters.copied_batches == 0


@pytest.mark.parametrize("in_flight", [1, 3])
def test_batches_held_beyond_the_bound_are_private_copies(in_flight: int) -> None:
    with make_loader(FakeSample(), num_samples=100, num_workers=1, prefetch_factor=in_flight) as loader:
        kept = list(loader)
        assert len(kept) == 25
        assert loader._ring.num_slots <= 2 * in_flight + 2
        assert loader.stats_counters.copied_batches == 25 - (in_flight + 2)
        values = [batch.images[:, 0, 0, 0].floor().long() for batch in kept]
        assert torch.equal(torch.cat(values), torch.cat([batch.ids for batch in kept]))


def test_lending_counts_slots_until_they_come_back() -> None:
    ring = ring_of(in_flight=1)
    held = [ring.lend(ring.take(), 4) for _ in range(4)]
    assert [copied for _, copied in held] == [False, False, False, True]
    assert ring.num_lent == 3
    del held
    assert ring.num_lent == 0


def test_a_batch_unpacks_moves_and_survives_pickling() -> None:
    batch = Batch(torch.ones(2, 3, 4, 4), torch.tensor([5, 6]), ids=torch.tensor([8, 9]), epoch=1, step=2)
    images, labels = batch
    assert images is batch.images
    assert labels is batch.labels
    half = batch.to(torch.float16)
    assert half.images.dtype is torch.float16
    assert half.labels.dtype is torch.int64
    assert half.ids.tolist() == [8, 9]
    again = pickle.loads(pickle.dumps(batch))
    assert (again.epoch, again.step, again.ids.tolist()) == (1, 2, [8, 9])
    assert batch.to("cpu").images is images
    assert "epoch=1, step=2" in repr(batch)


def test_pinning_without_cuda_changes_nothing() -> None:
    batch = Batch(torch.ones(1, 3, 2, 2), torch.tensor([1]), ids=torch.tensor([1]))
    assert batch.pin_memory() is batch or torch.cuda.is_available()


def test_slots_go_with_their_ring_and_wait_for_no_garbage_collector() -> None:
    gc.disable()
    try:
        ring = SlotRing((4, 4, 3), np.uint8, 8, in_flight=2)
        ring.give_back(ring.take())
        gone = weakref.ref(ring)
        del ring
        assert gone() is None
    finally:
        gc.enable()
