"""How long things have been waited for, by somebody who looks now and then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.loader import watch
from pipeline.loader.watch import LONGEST_S, Watch


class Clock:
    """`time`, as a test sets it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_what_stays_is_seen_for_the_sum_of_the_intervals(clock: Clock) -> None:
    watched: Watch[str] = Watch()
    seen = []
    for _ in range(4):
        clock.now_s += 0.5
        seen += watched.look(["worker"])
    assert seen == [("worker", seconds) for seconds in (0.0, 0.5, 1.0, 1.5)]


def test_what_is_first_seen_begins_at_zero_however_long_ago_the_last_look_was(clock: Clock) -> None:
    watched: Watch[str] = Watch()
    clock.now_s += 100.0
    assert watched.look(["one"]) == [("one", 0.0)]
    clock.now_s += 1.0
    assert dict(watched.look(["one", "other"])) == {"one": 1.0, "other": 0.0}


def test_an_interval_in_which_nobody_could_look_counts_for_no_more_than_the_longest(clock: Clock) -> None:
    watched: Watch[str] = Watch()
    watched.look(["worker"])
    clock.now_s += 8 * 3600.0  # the job was suspended
    assert watched.look(["worker"]) == [("worker", LONGEST_S)]
    clock.now_s += 1.0
    assert watched.look(["worker"]) == [("worker", LONGEST_S + 1.0)]


def test_what_goes_and_comes_back_begins_at_zero(clock: Clock) -> None:
    watched: Watch[str] = Watch()
    watched.look(["one", "other"])
    clock.now_s += 1.0
    assert watched.look(["other"]) == [("other", 1.0)]
    clock.now_s += 1.0
    assert dict(watched.look(["one", "other"])) == {"one": 0.0, "other": 2.0}
    assert watched.look([]) == []


def test_a_stall_longer_than_the_longest_interval_is_found_by_looking_often(clock: Clock) -> None:
    watched: Watch[str] = Watch()
    for _ in range(301):
        seen = watched.look(["worker"])
        clock.now_s += 1.0
    assert seen == [("worker", 300.0)]
