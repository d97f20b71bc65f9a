"""Keeps the next batches ready on the device.

A thread pulls batches from a loader, moves them, and queues them. Every copy runs on one side stream, and three things
keep it right, each with a test that fails without it:

- the consumer's stream waits for the event behind copy and stage before it touches the batch;
- the allocator is told that the consumer's stream uses memory that the side stream allocated, so that a batch dropped
  by the consumer is not handed out again while its kernels still run;
- the loader's batch is held until the event behind its copy has happened: its slot is written to again right after.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sized
from queue import SimpleQueue
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from pipeline.loader.batch import Batch
from pipeline.stats import TRANSFER, StageClock
from pipeline.streams import Streams, streams_for

EXIT_LIMIT_S = 5.0
"""How long a collected prefetcher, or the interpreter's exit, waits for a thread that does not end."""

BatchStage = Callable[[Any], Any]
"""Work on a batch that is on the device; runs on the side stream."""


class _Ready(NamedTuple):
    batch: Any
    event: Any
    state: Any
    """The loader's `state_dict()` after this batch, from the thread that took it; None where it has none."""


class _Failed(NamedTuple):
    error: BaseException


_END = object()


class _Pull:
    """The thread of one epoch: loader -> device -> queue, at most `num_batches` ahead of the consumer."""

    def __init__(
        self, loader: Any, streams: Streams, stage: BatchStage | None, num_batches: int, clock: StageClock
    ) -> None:
        """Begin the loader's next epoch, in the calling thread, then pull it in another."""
        self.ready: SimpleQueue[_Ready | _Failed | None] = SimpleQueue()
        self._num_batches = num_batches
        self._room = threading.Semaphore(num_batches)
        self._stopping = False
        self._is_over = False
        batches, state_dict = iter(loader), getattr(loader, "state_dict", None)
        self.first_state = state_dict() if state_dict is not None else None
        self._thread = threading.Thread(
            target=self._run, args=(batches, state_dict, streams, stage, clock), name="headrace-prefetch", daemon=True
        )
        self._thread.start()

    @property
    def num_ready(self) -> int:
        """Batches that the consumer would not wait for."""
        return max(0, self.ready.qsize() - self._is_over)

    def took_one(self) -> None:
        """The consumer has room for one more."""
        self._room.release()

    def stop(self, limit_s: float | None = None) -> None:
        """End the thread and drop what it made; give up waiting for it after `limit_s` seconds."""
        self._stopping = True
        self._room.release()
        if self._thread is not threading.current_thread():
            self._thread.join(limit_s)

    def _run(
        self,
        batches: Iterator[Any],
        state_dict: Callable[[], Any] | None,
        streams: Streams,
        stage: BatchStage | None,
        clock: StageClock,
    ) -> None:
        copying: deque[tuple[Any, Any]] = deque()
        try:
            while True:
                self._room.acquire()
                if self._stopping:
                    return
                batch = next(batches, _END)
                if batch is _END:
                    break
                state = state_dict() if state_dict is not None else None
                began = time.perf_counter()
                with streams.side():
                    try:
                        moved = map_tensors(streams.move, batch)
                    finally:  # also where the second tensor finds no room: the first one's copy is on its way
                        copying.append((streams.record(), batch))
                    if stage is not None:
                        moved = stage(moved)
                    self.ready.put(_Ready(moved, streams.record(), state))
                clock.add(TRANSFER, time.perf_counter() - began, _num_samples(batch))
                del batch, moved
                _let_go(copying, streams, self._num_batches)
        except BaseException as error:
            self._is_over = True
            self.ready.put(_Failed(error))
        else:
            self._is_over = True
            self.ready.put(None)
        finally:
            _let_go(copying, streams, 0)


def _let_go(copying: deque[tuple[Any, Any]], streams: Streams, max_held: int) -> None:
    """Drop the batches, oldest first, whose copies are over, and wait for that while more than `max_held` are held.

    `copying` has events and the loader's batches that the copies before them read.
    """
    while copying and (len(copying) > max_held or streams.is_over(copying[0][0])):
        streams.finish(copying[0][0])
        copying.popleft()


class PrefetchLoader:
    """Any loader of (nested) tensors, with the next batches already on `device`.

    `for batch in PrefetchLoader(loader, device)` yields what `loader` yields, with every tensor on `device`: tuples,
    named tuples, lists, dicts and `Batch` keep their type. A batch may be kept for as long as wanted. Breaking off
    early is fine. On the CPU the same thread works ahead and the tensors are the loader's own.
    """

    def __init__(
        self,
        loader: Any,
        device: torch.device | str,
        *,
        num_batches: int = 2,
        stage: BatchStage | None = None,
        streams: Streams | None = None,
    ) -> None:
        """Wrap `loader`, which stays the caller's to close.

        Args:
            loader: an iterable of batches; its `len` and attributes show through.
            device: where batches are wanted, `cpu`, `cuda[:n]` or `mps`.
            num_batches: batches ready or being made ahead of the consumer.
            stage: work on every batch once it is on the device, ordered before the consumer.
            streams: how copies are ordered; by default what `device` needs.
        """
        if num_batches < 1:
            raise ValueError(f"prefetch.num_batches must be >= 1, got {num_batches}")
        self.loader = loader
        self.device = torch.device(device)
        self.wait_s = 0.0
        self.clock = StageClock()
        """What the thread has spent on moving batches, as the stage `transfer`: a `Batch` counts its samples."""
        self.batches = 0
        """Batches that the consumer was given."""
        self.ready_batches = 0
        """Batches that were ready when one of these was asked for, added up."""
        self._stage = stage
        self._num_batches = num_batches
        self._streams = streams if streams is not None else streams_for(self.device)
        self._pull: _Pull | None = None
        self._live: weakref.ref[Iterator[Any]] | None = None
        self._stop_pull: weakref.finalize[..., Any] | None = None
        self._state: Any = None
        self._closed = False

    def __len__(self) -> int:
        """The loader's length."""
        return len(cast(Sized, self.loader))

    def __getattr__(self, name: str) -> Any:
        """The loader's other attributes: `dataset`, `batch_size`, `sampler`, ..."""
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        """Begin the loader's next epoch. RuntimeError when another iterator is live, or after `close`."""
        if self._closed:
            raise RuntimeError("close() was already called on this prefetcher")
        if self._live is not None and self._live() is not None:
            raise RuntimeError(
                "this prefetcher already has a live iterator; drop that one first, or call stop() to abandon it"
            )
        self.stop()
        pull = self._pull = _Pull(self.loader, self._streams, self._stage, self._num_batches, self.clock)
        self._state = pull.first_state
        self._stop_pull = weakref.finalize(self, pull.stop, EXIT_LIMIT_S)
        iterator = self._batches(pull, _length(self.loader))
        self._live = weakref.ref(iterator)
        return iterator

    def set_epoch(self, epoch: int) -> None:
        """Abandon a live iterator, then the loader's (or else its sampler's) `set_epoch`."""
        self.stop()
        self._state = None
        target = self.loader if hasattr(self.loader, "set_epoch") else self.loader.sampler
        target.set_epoch(epoch)

    def state_dict(self) -> Any:
        """The loader's state after the last batch that the consumer was given, not after those pulled ahead."""
        return self.loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: Any) -> None:
        """Abandon a live iterator, then the loader's `load_state_dict`."""
        self.stop()
        self._state = None
        self.loader.load_state_dict(state)

    @property
    def num_batches(self) -> int:
        """Batches ready or being made ahead of the consumer, at most."""
        return self._num_batches

    def stop(self) -> None:
        """End the thread of the epoch in progress, if any; the next `iter()` begins another. The state stays."""
        self._live = None
        if self._pull is not None:
            self._pull.stop()
        if self._stop_pull is not None:
            self._stop_pull.detach()
        self._pull = self._stop_pull = None

    def close(self) -> None:
        """Stop for good; the wrapped loader stays open. May be called twice."""
        self.stop()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _batches(self, pull: _Pull, length: int | None) -> Iterator[Any]:
        num_batches = 0
        while pull is self._pull:
            began = time.perf_counter()
            num_ready = pull.num_ready
            item = pull.ready.get()
            self.wait_s += time.perf_counter() - began
            if item is None:
                self.stop()
                return
            if isinstance(item, _Failed):
                self.stop()
                try:
                    raise item.error
                finally:
                    del item  # the error's traceback refers to this frame: a cycle would keep all it holds
            pull.took_one()
            self.batches += 1
            self.ready_batches += num_ready
            self._streams.wait(item.event)
            map_tensors(self._keep, item.batch)
            batch, self._state = item.batch, item.state
            del item
            num_batches += 1
            is_last = (batch.step + 1 if isinstance(batch, Batch) else num_batches) == length
            if is_last:
                self._live = None  # whoever counts batches may never ask for the one after the last
            yield batch
            del batch
            if is_last and pull is not self._pull:
                return
        raise RuntimeError("this iterator was abandoned by stop() or close()")

    def _keep(self, tensor: Tensor) -> Tensor:
        self._streams.keep(tensor)
        return tensor


def _length(loader: Any) -> int | None:
    """`len(loader)`; None where it has none, as a `DataLoader` over an `IterableDataset` finds out when asked."""
    try:
        return len(loader)
    except TypeError:
        return None


def _num_samples(batch: Any) -> int:
    return len(batch.ids) if isinstance(batch, Batch) else 1


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """`batch` with every tensor replaced by `function(tensor)`; containers keep their type, other values stay."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Batch):
        return batch.map(function)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(function, value) for value in batch)
    if isinstance(batch, dict):
        return type(batch)((key, map_tensors(function, value)) for key, value in batch.items())
    return batch
