"""A device whose streams do everything as late, or as early, as they are allowed to, and reuse memory at once.

What is right only because a copy or a kernel happened to be quick is wrong here: a batch that is read before its copy,
a slot that is filled anew before its copy read it, memory that is given away while kernels of the consumer still read
it. Its memory is the CPU's, so that values tell.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

POISON = -7.0
"""What device memory holds before anything was copied there."""


class LateDevice:
    """Two streams over memory in blocks: the prefetcher's, and the consumer's.

    With `eager_copies` a copy happens when it is issued, else when somebody waits for it; with `eager_kernels` the
    consumer's work does, else at the very end.
    """

    def __init__(self, *, eager_copies: bool, eager_kernels: bool) -> None:
        self.pinned: dict[int, int] = {}
        """Addresses of page-locked memory, with their sizes in bytes."""
        self.num_blocks = 0
        self.num_free = 0
        self.fails_at_copy: int | None = None
        """The copy, counted from 1, for which there is no memory."""
        self.num_copies = 0
        self.num_overwritten = 0
        """Copies from page-locked memory that found something else there than when they were asked for."""
        self._eager_copies, self._eager_kernels = eager_copies, eager_kernels
        self._inside = threading.local()
        self._lock = threading.RLock()
        self._asked = threading.Condition(self._lock)
        self._side: deque[tuple[int, Callable[[], None]]] = deque()
        self._num_issued = 0
        self._consumer: deque[Callable[[], None]] = deque()
        self._num_consumed = self._num_asked = 0
        self._free: dict[int, list[tuple[Tensor, int]]] = {}
        self._used_until: dict[int, int] = {}

    @contextmanager
    def side(self) -> Iterator[None]:
        self._inside.side = True
        yield
        self._inside.side = False

    def move(self, tensor: Tensor) -> Tensor:
        """The copy reads the tensor's memory when it happens, and holds no reference to it, as hardware."""
        assert getattr(self._inside, "side", False), "a copy was issued on the consumer's stream"
        with self._lock:
            self.num_copies += 1
            self._asked.notify_all()
            if self.num_copies == self.fails_at_copy:
                raise MemoryError("the device has no memory left")
            copy = self._allocate(tensor)
            address, num_bytes = tensor.data_ptr(), tensor.nbytes
            if not any(first <= address < first + size for first, size in self.pinned.items()):
                source = tensor.clone()  # pageable memory is read before the call returns
                self._issue(lambda target=copy.data: target.copy_(source))  # type: ignore[misc]
                return copy
            wanted, target = tensor.clone(), copy.data

            def happen() -> None:
                memory = torch.frombuffer((ctypes.c_byte * num_bytes).from_address(address), dtype=wanted.dtype)
                target.copy_(memory.as_strided(wanted.shape, wanted.stride()))
                self.num_overwritten += not torch.equal(target, wanted)

            self._issue(happen)
            return copy

    def compute(self, tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A kernel of the prefetcher's stream."""
        assert getattr(self._inside, "side", False), "a stage ran on the consumer's stream"
        with self._lock:
            result, source = self._allocate(tensor), tensor.data
            self._issue(lambda target=result.data: target.copy_(function(source)))  # type: ignore[misc]
            return result

    @property
    def num_waiting(self) -> int:
        """Copies and kernels of the prefetcher's stream that have not happened."""
        return len(self._side)

    def wait_until_asked(self, num_copies: int) -> None:
        """Return when so many copies were asked for."""
        with self._asked:
            assert self._asked.wait_for(lambda: self.num_copies >= num_copies, 60), f"only {self.num_copies}"

    def record(self) -> int:
        assert getattr(self._inside, "side", False), "the event does not follow the copies"
        with self._lock:
            return self._num_issued

    def wait(self, event: int) -> None:
        with self._lock:
            self._ask(lambda: self._run_side(event))

    def keep(self, tensor: Tensor) -> None:
        with self._lock:
            self._used_until[tensor.data_ptr()] = -1  # until what the consumer asks for before it drops the tensor

    def is_over(self, event: int) -> bool:
        with self._lock:
            return not self._side or self._side[0][0] > event

    def finish(self, event: int) -> None:
        with self._lock:
            self._run_side(event)

    def pin(self, memory: np.ndarray[Any, Any]) -> Callable[[], None]:
        address = memory.ctypes.data
        assert address % 4096 == 0, "pages are shared with other memory"
        self.pinned[address] = memory.nbytes
        return lambda: self.pinned.pop(address) and None

    def read(self, tensor: Tensor, into: list[Tensor]) -> None:
        """A kernel of the consumer's that reads `tensor`, without a reference, when its turn comes."""
        with self._lock:
            memory = tensor.data.view(tensor.shape)
            self._ask(lambda: into.append(memory.clone()))

    def synchronize(self) -> None:
        """Everything that was asked for happens."""
        with self._lock:
            self._run_consumer()
            self._run_side(self._num_issued)

    def _run_consumer(self) -> None:
        while self._consumer:
            self._num_consumed += 1
            self._consumer.popleft()()

    def _ask(self, work: Callable[[], None]) -> None:
        self._consumer.append(work)
        self._num_asked += 1
        if self._eager_kernels:
            self._run_consumer()

    def _issue(self, work: Callable[[], None]) -> None:
        self._num_issued += 1
        self._side.append((self._num_issued, work))
        if self._eager_copies:
            self._run_side(self._num_issued)

    def _run_side(self, event: int) -> None:
        while self._side and self._side[0][0] <= event:
            self._side.popleft()[1]()

    def _allocate(self, like: Tensor) -> Tensor:
        """Memory that was freed, as soon as the stream that asks may write to it."""
        free = self._free.setdefault(like.nbytes, [])
        usable = [number for number, (_, used_until) in enumerate(free) if self._num_consumed >= used_until]
        if usable:
            block, _ = free.pop(usable[0])
            self.num_free -= 1
        else:
            block = torch.empty(like.nbytes, dtype=torch.uint8)
            block.view(like.dtype).fill_(POISON)
            self.num_blocks += 1
        tensor = torch.empty(0, dtype=like.dtype)
        tensor.set_(block.view(like.dtype).untyped_storage(), 0, like.shape, like.stride())
        weakref.finalize(tensor, self._collect, block).atexit = False
        return tensor

    def _collect(self, block: Tensor) -> None:
        with self._lock:
            kept = self._used_until.pop(block.data_ptr(), None)
            # Work of the side stream is in order of itself; of the consumer's the allocator knows what it is told.
            used_until = self._num_asked if kept is not None else 0
            self._free.setdefault(block.nbytes, []).append((block, used_until))
            self.num_free += 1
