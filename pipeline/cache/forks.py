"""Locks in forked children."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """Has locks, which a forked child must not inherit as some other thread of the parent left them."""

    def renew_locks(self) -> None:
        """Make new locks; called in a forked child, where no other thread exists."""


_alive: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_after_fork(object: Renewable) -> None:
    """Have `object.renew_locks()` called in every child forked while `object` is alive."""
    _alive.add(object)


def _renew_all() -> None:
    for object in tuple(_alive):
        object.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
