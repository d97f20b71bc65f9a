"""pickling.py: finding what cannot be pickled."""

from __future__ import annotations

import copyreg
import functools
import operator
import pickle
import threading
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from pipeline.pickling import check_picklable, unpicklable_path


def double(number: int) -> int:
    return 2 * number


class Holder:
    """Anything under any name."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def __call__(self, image: Any) -> Any:
        return image


class Slotted:
    __slots__ = ("empty", "first", "second")

    def __init__(self, first: Any, second: Any) -> None:
        self.first = first
        self.second = second


class SlottedToo(Slotted):
    """Slots of its base, and a dict beside them."""


@dataclass(frozen=True, slots=True)
class Record:
    number: int
    function: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Rebuilt:
    """Pickled as a call with an argument that is no attribute."""

    def __init__(self, factory: Any) -> None:
        self._make = factory

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make(),)


class Reduced:
    """Pickled as it is told to."""

    def __init__(self, *reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


class Registered:
    """Pickled by what `copyreg` has for it."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("not asked")


class Named:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> str:
        return "no_such_name"


class LeavesOut:
    """Holds a lock that its pickle does not, and something that it does."""

    def __init__(self, held: Any) -> None:
        self.lock = threading.Lock()
        self.held = held

    def __getstate__(self) -> dict[str, Any]:
        return {"held": self.held}


class Shy:
    """Pickling asks for nothing that this refuses to give; a curious reader would."""

    __slots__ = ("held",)

    @property
    def __class__(self) -> Any:
        raise RuntimeError("its class is private")

    def __init__(self, held: Any) -> None:
        self.held = held

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is private")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Shy, (object.__getattribute__(self, "held"),)


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("it has no repr")


class Angry:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not\nthis one")


class Malformed:
    def __reduce__(self) -> Any:
        return double, None


class ListOf(list[Any]):
    pass


UNPICKLABLE: list[Any] = [
    pytest.param(lambda f: f, "t", id="itself"),
    pytest.param(lambda f: Holder(f=f), "t.f", id="attribute"),
    pytest.param(lambda f: [0, [1, f]], "t[1][1]", id="list"),
    pytest.param(lambda f: (0, f), "t[1]", id="tuple"),
    pytest.param(lambda f: {"a": 0, "key": f}, "t['key']", id="dict"),
    pytest.param(lambda f: {0: 1, f: 2}, "list(t)[1]", id="key of a dict"),
    pytest.param(lambda f: {f}, "list(t)[0]", id="set"),
    pytest.param(lambda f: frozenset({f}), "list(t)[0]", id="frozenset"),
    pytest.param(lambda f: functools.partial(f, 1), "t.func", id="partial's function"),
    pytest.param(lambda f: functools.partial(double, 0, f), "t.args[1]", id="partial's argument"),
    pytest.param(lambda f: functools.partial(double, a=0, f=f), "t.keywords['f']", id="partial's keyword"),
    pytest.param(lambda f: functools.partial(functools.partial, f=Holder(f=f)), "t.keywords['f'].f", id="two deep"),
    pytest.param(lambda f: Holder(f=f).__call__, "t.__self__.f", id="bound method"),
    pytest.param(lambda f: [f].append, "t.__self__[0]", id="built-in bound method"),
    pytest.param(lambda f: Slotted(0, f), "t.second", id="slots"),
    pytest.param(lambda f: SlottedToo(f, 0), "t.first", id="slots and a dict"),
    pytest.param(lambda f: Record(1, f), "t.function", id="frozen dataclass with slots"),
    pytest.param(lambda f: Pair(0, f), "t.right", id="named tuple"),
    pytest.param(lambda f: OrderedDict(a=0, b=f), "t['b']", id="ordered dict"),
    pytest.param(lambda f: UserDict(a=f), "t.data['a']", id="user dict"),
    pytest.param(lambda f: defaultdict(f, a=1), "t.default_factory", id="default factory"),
    pytest.param(lambda f: ListOf([0, f]), "t[1]", id="subclass of list"),
    pytest.param(lambda f: LeavesOut(f), "t.held", id="what __getstate__ leaves"),
    pytest.param(lambda f: Rebuilt(lambda: [f]), "t.__reduce_ex__(5)[1][0][0]", id="argument without a name"),
    pytest.param(lambda f: Reduced(f, ()), "t.__reduce_ex__(5)[0]", id="function of a reduction"),
    pytest.param(
        lambda f: Reduced(double, (1,), 0, None, None, f), "t.__reduce_ex__(5)[5]", id="setter of a reduction"
    ),
    pytest.param(lambda f: Reduced(double, (1,), [f]), "t.__getstate__()[0]", id="state in a list"),
    pytest.param(lambda f: Reduced(double, (1,), (0, f)), "t.__getstate__()[1]", id="state of two"),
    pytest.param(lambda f: Reduced(double, (1,), {f}), "list(t.__getstate__())[0]", id="state in a set"),
    pytest.param(lambda f: operator.methodcaller("map", f), "t.__reduce_ex__(5)[1][1]", id="method caller"),
    pytest.param(lambda f: Named(f), "t", id="pickled by a wrong name"),
    pytest.param(lambda f: Shy(f), "t.held", id="attributes that cannot be read"),
    pytest.param(lambda f: Holder(angry=Angry(), f=f), "t.angry", id="error of its own"),
    pytest.param(lambda f: Holder(wrong=Malformed(), f=f), "t.wrong", id="no reduction"),
    pytest.param(lambda f: torch.nn.Sequential(torch.nn.ReLU(), v2.Lambda(f)), "t._modules['1'].lambd", id="module"),
    pytest.param(lambda f: v1.Compose([v1.ToTensor(), v1.Lambda(f)]), "t.transforms[1].lambd", id="torchvision v1"),
    pytest.param(
        lambda f: v2.Compose([v2.ToImage(), v2.RandomApply([v2.Lambda(f)])]),
        "t.transforms[1].transforms[0].lambd",
        id="torchvision v2",
    ),
]


@pytest.mark.parametrize(("hold", "path"), UNPICKLABLE)
def test_the_path_leads_to_the_innermost_thing_that_cannot_be_pickled(hold: Any, path: str) -> None:
    value = hold(lambda image: image)
    found = unpicklable_path(value, "t")
    assert found is not None
    assert found[0] == path
    with pytest.raises(type(found[1])):
        pickle.dumps(value, 5)


def test_a_lock_is_found_like_a_function() -> None:
    found = unpicklable_path(Holder(steps=[double, threading.Lock()]), "t")
    assert found is not None
    assert found[0] == "t.steps[1]"
    assert "cannot pickle '_thread.lock' object" in str(found[1])


def test_a_key_without_a_repr_does_not_stop_the_search() -> None:
    found = unpicklable_path({Mute(): lambda image: image}, "t")
    assert found is not None
    assert found[0].startswith("t[<Mute instance at ")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(double, id="function"),
        pytest.param(Holder, id="class"),
        pytest.param(Holder(f=double, g=[1, {"a": (2, None)}]), id="instance"),
        pytest.param(Holder(f=double).__call__, id="bound method"),
        pytest.param(functools.partial(double, 3), id="partial"),
        pytest.param(LeavesOut(5), id="a lock left out"),
        pytest.param(v2.Compose([v2.RandomResizedCrop(8), v2.ToImage()]), id="torchvision"),
    ],
)
def test_what_can_be_pickled_has_no_path(value: Any) -> None:
    assert unpicklable_path(value, "t") is None
    check_picklable(value, "t", "never shown")


def test_a_cycle_does_not_hide_the_fault_beyond_it() -> None:
    outer, inner = Holder(), Holder()
    outer.inner, inner.outer, outer.itself = inner, outer, outer
    assert unpicklable_path(outer, "t") is None
    inner.last = [lambda image: image]
    found = unpicklable_path(outer, "t")
    assert found is not None
    assert found[0] == "t.inner.last[0]"
    # Here `inner` fails as well, only by what leads back.
    del inner.last
    outer.later = lambda image: image
    found = unpicklable_path(outer, "t")
    assert found is not None
    assert found[0] == "t.later"


def test_a_fault_in_a_cycle_that_no_part_explains_is_that_of_the_whole() -> None:
    ring = Reduced()
    ring._reduced = (double, (1,), {"ring": ring}, "no iterator")
    found = unpicklable_path(ring, "t")
    assert found is not None
    assert found[0] == "t"
    assert isinstance(found[1], pickle.PicklingError)


def test_what_copyreg_has_for_a_class_is_followed() -> None:
    copyreg.pickle(Registered, lambda registered: (double, (registered.held,)))
    try:
        assert unpicklable_path(Registered(1), "t") is None
        found = unpicklable_path(Registered([double, lambda image: image]), "t")
    finally:
        del copyreg.dispatch_table[Registered]
    assert found is not None
    assert found[0] == "t.__reduce_ex__(5)[1][0][1]"


def test_a_local_class_is_at_fault_and_not_what_its_instances_would_hold() -> None:
    class Local:
        def __reduce_ex__(self, protocol: Any = 5) -> tuple[Any, ...]:
            return double, (lambda image: image,)

    found = unpicklable_path([Local], "t")
    assert found is not None
    assert found[0] == "t[0]"


def test_an_instance_of_a_local_class_is_itself_at_fault() -> None:
    class Local:
        def __init__(self) -> None:
            self.function = lambda image: image

    found = unpicklable_path(Holder(steps=[Local()]), "t")
    assert found is not None
    assert found[0] == "t.steps[0]"
    assert "Local" in str(found[1])


def test_nesting_too_deep_for_a_pickler_is_reported_and_not_followed() -> None:
    nested: list[Any] = []
    for _ in range(20_000):
        nested = [nested]
    found = unpicklable_path(nested, "t")
    assert found is not None
    assert found[0] == "t"
    assert isinstance(found[1], RecursionError)


def test_the_error_is_one_line_with_path_reason_and_cure() -> None:
    transform = v1.Compose([v1.ToTensor(), v1.RandomApply([v1.Lambda(lambda image: image)])])
    with pytest.raises(
        TypeError,
        match=r"^transform\.transforms\[1\]\.transforms\[0\]\.lambd cannot be sent to worker processes "
        r"\(.*<lambda>.*\); use a module$",
    ) as caught:
        check_picklable(transform, "transform", "use a module")
    assert isinstance(caught.value.__cause__, (AttributeError, pickle.PicklingError))
    with pytest.raises(
        TypeError, match=r"^transform cannot be sent to worker processes \(not this one\); use a module$"
    ):
        check_picklable(Angry(), "transform", "use a module")


def test_an_error_without_words_is_named_by_its_type() -> None:
    class Silent:
        def __reduce__(self) -> Any:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"\(NotImplementedError\)"):
        check_picklable(Silent(), "transform", "use a module")
