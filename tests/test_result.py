"""Several rounds of one trial made into one result."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.bench.result import combine


def a_round(number: int, rate: float, *, sitting: str | None = None, **facts: Any) -> dict[str, Any]:
    told = {"round": number, "sitting": sitting, "samples_per_sec": rate, "samples_per_cpu_sec": rate / 2}
    told |= {"peak_pss_mb": 100 + number, "first_batch_s": 0.1 * number, "epoch_gap_s": None}
    known = {
        "status": "completed",
        "contender": "headrace",
        "samples_per_sec": rate,
        "build_s": number,
        "repeats": [told],
    }
    known |= {"cold_resident_pct": number, "dataset": "aa", "config": {"loader": {"num_workers": 2}}}
    return known | {"host": {"num_usable_cores": 2, "name": str(number)}} | facts


def test_rounds_become_one_result_in_the_order_in_which_they_were_measured() -> None:
    rounds = [a_round(0, 50, sitting="b"), a_round(2, 10, sitting="a"), a_round(1, 30, sitting="a")]
    combined = combine(rounds)
    assert [(repeat["sitting"], repeat["round"]) for repeat in combined["repeats"]] == [("a", 1), ("a", 2), ("b", 0)]
    assert (combined["samples_per_sec_min"], combined["samples_per_sec"], combined["samples_per_sec_max"]) == (
        10,
        30,
        50,
    )
    assert (combined["samples_per_cpu_sec"], combined["peak_pss_mb"], combined["cold_resident_pct"]) == (15, 102, 2)
    assert (combined["first_batch_s"], combined["build_s"], combined["epoch_gap_s"]) == (pytest.approx(0.1), 1, None)
    assert combined["dataset"] == "aa"
    assert combine([combined])["repeats"] == combined["repeats"]


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({"contender": "torch"}, "contender"),
        ({"dataset": "bb"}, "dataset"),
        ({"config": {"loader": {"num_workers": 4}}}, "config.loader.num_workers"),
        ({"host": {"num_usable_cores": 8, "name": "other"}}, "host.num_usable_cores"),
    ],
    ids=["contender", "dataset", "config", "host"],
)
def test_rounds_of_different_trials_are_not_made_one(facts: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"have the same {key}, got"):
        combine([a_round(0, 10), a_round(1, 20, **facts)])


def test_a_round_that_failed_leaves_its_error_and_what_the_others_measured() -> None:
    failed = {"status": "failed", "error": "killed by SIGKILL", "repeats": [], "config": {"loader": {"num_workers": 2}}}
    combined = combine([failed, a_round(1, 30)])
    assert (combined["status"], combined["error"]) == ("failed", "killed by SIGKILL")
    assert (combined["samples_per_sec"], len(combined["repeats"])) == (30, 1)
    assert combine([failed]) == failed
