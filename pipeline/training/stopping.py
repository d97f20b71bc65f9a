"""What ends a run early: Ctrl-C and SIGTERM, after the step in hand and to be continued; and its own errors.

Needs no torch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeVar

_Item = TypeVar("_Item")


class Ranks(Protocol):
    """What `StopSignals` needs of a `World`."""

    def greatest(self, number: float) -> float:
        """The greatest of the ranks' numbers."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run. `step` is that of the checkpoint saved for it; None: none was.

    A KeyboardInterrupt, and so no `Exception`: nothing on the way out takes it for a failure.
    """

    def __init__(self, signal_number: int, *, step: int | None = None) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal = signal.Signals(signal_number)
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self.signal),), self.__dict__

    @property
    def exit_code(self) -> int:
        """What a shell gives a process that the signal ended."""
        return 128 + self.signal


class RunError(RuntimeError):
    """Why a run cannot go on, in one line that says what to do: no line of code is at fault."""


class StopSignals:
    """Within its `with` block SIGINT and SIGTERM raise `Stopped`, or after `defer()` are noted until `check()`.

    A SIGINT while another signal waits raises KeyboardInterrupt at once. A signal that nobody came to check is
    delivered again after the block, to the handlers that were there before. Only a process's main thread may handle
    signals, and a signal that was ignored stays so: elsewhere the block does nothing.

    In a world of several ranks one rank's signal stops all of them, at the same point: `is_asked`, `check` and
    `checked` are for all ranks together.
    """

    def __init__(self) -> None:
        self._world: Ranks | None = None
        self._asked: int | None = None
        self._defers = False
        self._before: dict[int, Any] = {}

    def join(self, world: Ranks) -> None:
        """From now on, stop together with the other ranks of `world`."""
        self._world = world

    def defer(self) -> None:
        """From now on, note a signal and let the step in hand end."""
        self._defers = True

    @property
    def is_asked(self) -> bool:
        """Whether a signal waits, at any rank."""
        if self._world is None:
            return self._asked is not None
        agreed = int(self._world.greatest(self._asked or 0))  # a signal that comes meanwhile is the next call's
        if agreed:
            self._asked = agreed
        return agreed > 0

    def check(self, *, step: int | None = None) -> None:
        """Raises Stopped, with `step`, if a signal waits."""
        if self.is_asked and self._asked is not None:
            raise Stopped(self._asked, step=step)

    def checked(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields `items`, and raises Stopped between two of them if a signal waits."""
        for item in items:
            self.check()
            yield item
            del item  # else it would live on while the next one is waited for

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None is a handler from outside Python, which could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None and self._asked is not None:
            signal.raise_signal(self._asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self._defers:
            raise Stopped(number)
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = self._asked or number
