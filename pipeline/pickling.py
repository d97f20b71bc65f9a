"""What cannot be pickled, and where it is, as a path that a user recognises; and errors that another process raises."""

from __future__ import annotations

import copyreg
import pickle
import reprlib
import traceback
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

_PROTOCOL = 5

# Pickled by their names alone: nothing inside them is looked at.
_BY_NAME = (type, FunctionType, ModuleType)
_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType)

_SHORT = reprlib.Repr()  # of the keys of dicts; unlike repr() it survives any object
_SHORT.maxstring = 100


def check_picklable(value: object, name: str, cure: str) -> None:
    """Return if `value` can be pickled.

    Raises:
        TypeError: it cannot; one line that names the innermost thing at fault by its path from `name`, then the
            `cure`. The pickler's own error is the cause.
    """
    found = unpicklable_path(value, name)
    if found is not None:
        path, error = found
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TypeError(f"{path} cannot be sent to worker processes ({reason}); {cure}") from error


def portable_error(error: BaseException) -> tuple[BaseException, str]:
    """`error` if pickling keeps it what it is, else a RuntimeError with its words; and its story.

    The story is the traceback, with those of its causes. Notes are in neither: they travel by themselves. `error`
    itself loses its traceback and its causes.
    """
    told = traceback.TracebackException.from_exception(error)
    told.__notes__ = None
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        copy = pickle.loads(pickle.dumps(error))
        faithful = type(copy) is type(error) and copy.args == error.args
    except Exception:  # an exception class can do anything in there
        faithful = False
    if not faithful:
        error = RuntimeError(f"{type(error).__name__}: {_words(error)}")
    return error, "".join(told.format()).rstrip()


def unpicklable_path(value: object, name: str) -> tuple[str, Exception] | None:
    """Where in `value` pickling fails, as `name.transforms[2].lambd`, and how; None when it does not.

    The path leads to the innermost part that fails by itself. Only what pickling would look at is looked at: an
    attribute that `__getstate__` leaves out is never at fault. Where a part has no name of its own, the path says how
    to come by it: `list(name)[0]` is in a set or a key of a dict, `name.__reduce_ex__(5)[1][0]` an argument.
    """
    error = _failure(value)
    if error is None:
        return None
    return _innermost(value, name, error, {}) or (name, error)


def _innermost(value: object, path: str, error: Exception, visited: dict[int, object]) -> tuple[str, Exception] | None:
    """The innermost failure in `value`, which fails with `error`; None when it is in one of the `visited` instead.

    `visited` keeps what it has seen alive: the number of a dead object may be given to another.
    """
    visited[id(value)] = value
    found_any = False
    try:
        parts = [] if isinstance(error, RecursionError) else list(_parts(value, path))
    except Exception:  # of a user's __reduce__ and what it returned; then there is nothing further in
        parts = []
    for part_path, part in parts:
        failure = _failure(part)
        if failure is None:
            continue
        found_any = True
        found = None if id(part) in visited else _innermost(part, part_path, failure, visited)
        if found is not None:
            return found
    return None if found_any else (path, error)


def _failure(value: object) -> Exception | None:
    try:
        pickle.Pickler(_Nowhere(), _PROTOCOL).dump(value)
    except Exception as error:  # a user's __reduce__ may raise anything
        return error
    return None


class _Nowhere:
    """A file that keeps nothing: a transform may hold gigabytes."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes


def _parts(value: object, path: str) -> Iterator[tuple[str, object]]:
    """What pickling `value` pickles in turn, each with its path."""
    kind = type(value)  # not isinstance(), which asks the object, and a proxy may answer anything
    if issubclass(kind, _BY_NAME):
        return
    if kind in (list, tuple):
        yield from _items(value, path)
    elif kind is dict:
        yield from _entries(value.items(), path)  # type: ignore[attr-defined]  # it is a dict
    elif kind in (set, frozenset):
        yield from _items(value, f"list({path})")
    else:
        yield from _reduced_parts(value, path)


def _reduced_parts(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The parts of an object that is pickled by its `__reduce_ex__`, or by what `copyreg` has for its class."""
    reducer = copyreg.dispatch_table.get(type(value))
    reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(_PROTOCOL)
    if isinstance(reduced, str):
        return
    function, arguments, state, list_items, entries, set_state = (*reduced, *[None] * 6)[:6]
    kind = type(value)
    if any(part is kind for part in (function, *arguments)) and _failure(kind) is not None:
        return  # then the object itself is at fault, whatever it holds
    names = _names(value, path)
    for number, part in enumerate(arguments):
        yield names.get(id(part), f"{path}.__reduce_ex__({_PROTOCOL})[1][{number}]"), part
    yield from _state_parts(state, names, path)
    yield from _items(list_items or (), path)
    yield from _entries(entries or (), path)
    yield f"{path}.__reduce_ex__({_PROTOCOL})[0]", function
    yield f"{path}.__reduce_ex__({_PROTOCOL})[5]", set_state


def _state_parts(state: Any, names: dict[int, str], path: str) -> Iterator[tuple[str, object]]:
    """A dict of attributes, or it and another of slots, or whatever `__getstate__` returned."""
    is_pair = type(state) is tuple and len(state) == 2 and all(part is None or type(part) is dict for part in state)
    for part in state if is_pair else (state,):
        if type(part) is dict:
            for attribute, held in part.items():
                yield f"{path}.{attribute}", held
        elif type(part) in (tuple, list):
            for number, held in enumerate(part):
                yield names.get(id(held), f"{path}.__getstate__()[{number}]"), held
        else:
            yield names.get(id(part), f"{path}.__getstate__()"), part


def _items(items: Any, path: str) -> Iterator[tuple[str, object]]:
    for number, item in enumerate(items):
        yield f"{path}[{number}]", item


def _entries(entries: Any, path: str) -> Iterator[tuple[str, object]]:
    for number, (entry_key, entry) in enumerate(entries):
        yield f"list({path})[{number}]", entry_key
        yield f"{path}[{_SHORT.repr(entry_key)}]", entry


def _names(value: object, path: str) -> dict[int, str]:
    """Paths of what `value` refers to by a slot, a field or an attribute written in C, by `id`."""
    names: dict[int, str] = {}
    attributes = [
        name for base in type(value).__mro__ for name, found in vars(base).items() if isinstance(found, _DESCRIPTORS)
    ]
    for name in [*attributes, *getattr(type(value), "_fields", ())]:
        try:
            names[id(getattr(value, name))] = f"{path}.{name}"
        except Exception:  # an empty slot, or an attribute that will not be read: it keeps its number
            continue
    return names


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own words fail it
        return "(it cannot say what it is)"
