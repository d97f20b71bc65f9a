"""What orders work on a device: streams and events. The only file that makes or waits on them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError

log = logging.getLogger(__name__)


class Streams(Protocol):
    """What a prefetcher asks of a device."""

    def side(self) -> AbstractContextManager[Any]:
        """Work issued inside runs on the side stream."""

    def move(self, tensor: Tensor) -> Tensor:
        """Begin the copy of a CPU tensor to the device."""

    def record(self) -> Any:
        """An event after everything issued on the side stream so far."""

    def wait(self, event: Any) -> None:
        """Let the consumer's current stream wait for `event`."""

    def keep(self, tensor: Tensor) -> None:
        """Guard the tensor's memory until the consumer's current stream is done with it."""

    def is_over(self, event: Any) -> bool:
        """Whether everything before `event` has happened."""

    def finish(self, event: Any) -> None:
        """Let the calling thread wait until everything before `event` has happened."""

    def pin(self, memory: NDArray[np.uint8]) -> Callable[[], None] | None:
        """Lock the pages of `memory`, which begins at one, so that copies need no other; returns what undoes it."""


class CpuStreams:
    """No streams: the batch stays where it is."""

    def side(self) -> AbstractContextManager[Any]:
        """Nothing to enter."""
        return nullcontext()

    def move(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor.cpu()

    def record(self) -> None:
        """Nothing to wait for."""

    def wait(self, event: Any) -> None:
        """Nothing to wait for."""

    def keep(self, tensor: Tensor) -> None:
        """Nothing to guard."""

    def is_over(self, event: Any) -> bool:
        """Nothing was begun."""
        return event is None

    def finish(self, event: Any) -> None:
        """Nothing to wait for."""

    def pin(self, memory: NDArray[np.uint8]) -> None:
        """Nothing copies from it."""


class MpsStreams(CpuStreams):
    """Apple's GPU, of which torch uses one queue for all threads: what is issued later comes later.

    Copies block the prefetcher's thread, so that nothing reads a loader's batch any more when they have returned.
    Tested without such a machine only.
    """

    def __init__(self, device: torch.device) -> None:
        """ConfigError when this machine has no such device."""
        if not torch.backends.mps.is_available():
            raise ConfigError("prefetch.device=mps needs Apple's GPU and torch sees none; use auto, cpu or none")
        self._device = device

    def move(self, tensor: Tensor) -> Tensor:
        """Copy, and return when that is over."""
        return tensor.to(self._device)


class CudaStreams:
    """One side stream for the life of the prefetcher, on `device` only: no other device's context is created."""

    def __init__(self, device: torch.device) -> None:
        """Make the side stream. ConfigError when this machine has no such CUDA device."""
        if not torch.cuda.is_available():
            raise ConfigError("prefetch.device=cuda needs a CUDA device and torch sees none; use auto, cpu or none")
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._pins = True

    def side(self) -> AbstractContextManager[Any]:
        """Make the side stream current in the calling thread."""
        return cast(AbstractContextManager[Any], torch.cuda.stream(self._stream))

    def move(self, tensor: Tensor) -> Tensor:
        """Copy from the tensor's own memory if that is page-locked, as slots are, and else by way of torch's.

        Torch's host allocator keeps its own until the copy is over; whoever gave a slot has to.
        """
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self._device, non_blocking=True)

    def record(self) -> torch.cuda.Event:
        """An event on the side stream."""
        return cast(torch.cuda.Event, self._stream.record_event())

    def wait(self, event: torch.cuda.Event) -> None:
        """Order the consumer's current stream after `event`; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def keep(self, tensor: Tensor) -> None:
        """`record_stream` on the consumer's current stream."""
        tensor.record_stream(torch.cuda.current_stream(self._device))

    def is_over(self, event: torch.cuda.Event) -> bool:
        """Ask the event; the host does not wait."""
        is_over: bool = event.query()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return is_over

    def finish(self, event: torch.cuda.Event) -> None:
        """Block the calling thread until the event has happened."""
        event.synchronize()

    def pin(self, memory: NDArray[np.uint8]) -> Callable[[], None] | None:
        """`cudaHostRegister`; where the driver refuses, copies go through torch's pinned memory, one pass more."""
        if not self._pins:
            return None
        with torch.cuda.device(self._device):
            refusal = int(_runtime().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
        if not refusal:
            return partial(_unpin, self._device, memory.ctypes.data)
        self._pins = False
        log.warning("%s bytes of batches could not be page-locked (CUDA error %d)", f"{memory.nbytes:,}", refusal)
        # The refusal stays this thread's last error, and would be raised over the next kernel's launch.
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)
        return None


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _unpin(device: torch.device, address: int) -> None:
    with torch.cuda.device(device):
        _runtime().cudaHostUnregister(address)


def streams_for(device: torch.device | str) -> Streams:
    """The streams of `device`. ValueError for a device type that has none here."""
    device = torch.device(device)
    if device.type == "cuda":
        return CudaStreams(device)
    if device.type == "mps":
        return MpsStreams(device)
    if device.type == "cpu":
        return CpuStreams()
    raise ValueError(f"prefetch.device must be cpu, cuda or mps, got {device}")
