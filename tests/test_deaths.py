"""What a worker's death means, without any worker: who is suspected, who is blamed, when it is enough."""

from __future__ import annotations

import pytest

from pipeline.loader.deaths import DEATHS_ALONE, Deaths


def crash(deaths: Deaths, *in_hand: int, alone: bool = False) -> int | None:
    return deaths.add(in_hand, alone=alone, from_outside=False)


def kill(deaths: Deaths, *in_hand: int, alone: bool = False) -> int | None:
    return deaths.add(in_hand, alone=alone, from_outside=True)


@pytest.mark.parametrize("max_restarts", [0, 1, 3])
def test_kills_from_outside_are_enough_when_there_was_one_more_than_the_limit(max_restarts: int) -> None:
    deaths = Deaths(max_restarts)
    for id in range(max_restarts):
        assert kill(deaths, id) is None
        assert not deaths.is_enough
    assert kill(deaths, 100) is None
    assert deaths.is_enough


def test_a_death_with_nothing_in_hand_is_charged_at_once() -> None:
    deaths = Deaths(1)
    crash(deaths)
    assert not deaths.is_enough
    crash(deaths)
    assert deaths.is_enough


def test_the_first_crash_is_enough_where_no_restart_is_allowed() -> None:
    deaths = Deaths(0)
    assert crash(deaths, 5) is None
    assert deaths.is_enough


def test_a_crash_is_charged_only_when_everything_that_was_in_hand_has_been_made() -> None:
    deaths = Deaths(1)
    kill(deaths, 0)
    crash(deaths, 1, 2)
    assert not deaths.is_enough
    deaths.clear(1)
    assert not deaths.is_enough
    deaths.clear(2)
    assert deaths.is_enough


def test_a_kill_is_not_charged_a_second_time_when_its_samples_have_been_made() -> None:
    deaths = Deaths(1)
    kill(deaths, 1)
    deaths.clear(1)
    assert not deaths.is_enough


def test_a_sample_is_blamed_at_its_third_death_alone_and_not_before() -> None:
    deaths = Deaths(10)
    assert DEATHS_ALONE == 3
    assert [crash(deaths, 7, alone=True) for _ in range(3)] == [None, None, 7]


def test_deaths_in_company_blame_nobody() -> None:
    deaths = Deaths(100)
    assert all(crash(deaths, 7) is None for _ in range(10))
    assert all(crash(deaths, 7, 8, alone=True) is None for _ in range(10))
    assert all(crash(deaths, alone=True) is None for _ in range(10))


def test_a_sample_that_was_made_after_all_begins_again_at_none() -> None:
    deaths = Deaths(10)
    crash(deaths, 7, alone=True)
    crash(deaths, 7, alone=True)
    deaths.clear(7)
    assert [crash(deaths, 7, alone=True) for _ in range(3)] == [None, None, 7]


@pytest.mark.parametrize("max_restarts", [1, 3])
@pytest.mark.parametrize("together", [1, 4, 20])
def test_samples_that_crash_their_workers_never_use_up_the_restarts(max_restarts: int, together: int) -> None:
    deaths = Deaths(max_restarts)
    for id in range(together):
        crash(deaths, id, 100 + id)
    for round in range(DEATHS_ALONE):
        for id in range(together):
            blamed = crash(deaths, id, alone=True)
            assert blamed == (id if round == DEATHS_ALONE - 1 else None)
            assert not deaths.is_enough
    for id in range(together):
        deaths.clear(100 + id)  # the innocent neighbour
    assert not deaths.is_enough
    for _ in range(max_restarts):
        kill(deaths)
    assert not deaths.is_enough, "a blamed sample's deaths were charged"
    kill(deaths)
    assert deaths.is_enough


def test_what_was_charged_for_a_blamed_sample_is_paid_back() -> None:
    deaths = Deaths(3)
    kill(deaths, 7, 8)  # memory: the kernel's kill looks like anybody's
    assert [kill(deaths, 7, alone=True) for _ in range(3)] == [None, None, 7]
    assert not deaths.is_enough
    for _ in range(3):
        kill(deaths)
    assert not deaths.is_enough
    kill(deaths)
    assert deaths.is_enough


def test_blaming_one_sample_pays_nothing_back_for_the_deaths_of_others() -> None:
    deaths = Deaths(1)
    kill(deaths, 1)
    for _ in range(3):
        crash(deaths, 7, alone=True)
    assert not deaths.is_enough
    kill(deaths, 2)
    assert deaths.is_enough


def test_clearing_who_was_never_suspected_changes_nothing() -> None:
    deaths = Deaths(0)
    deaths.clear(3)
    assert not deaths.is_enough


def test_an_id_in_hand_twice_is_one_suspect() -> None:
    deaths = Deaths(5)
    assert crash(deaths, 7, 7, alone=True) is None
    assert crash(deaths, 7, alone=True) is None
    assert crash(deaths, 7, alone=True) == 7
