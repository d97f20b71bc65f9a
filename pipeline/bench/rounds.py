"""Measures trials in rounds: every round runs each of them once, in random order, each time in a fresh process.

What drifts (clock rates, neighbours on the machine) then touches all trials alike, and nothing one trial leaves behind
in its process reaches the next. Imports no torch: that is for the processes it starts.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.bench import peers
from pipeline.bench.child import Round
from pipeline.bench.noise import MIN_ROUNDS, enough, is_known, paired, round_order
from pipeline.bench.result import combine
from pipeline.bench.trial_process import TrialProcess
from pipeline.config import BenchConfig
from pipeline.config.bench import AUTO
from pipeline.training.replacing import replace_json

Show = Callable[[str], None]
"""Told one line after each round of a trial."""

_MAX_TURNS = 1000
"""More than a round has: every turn of every round has an order of its own."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """One configuration of a sweep, its directory, and what was measured so far.

    `result` is what `result.json` holds: of the rounds so far, or why there are none.
    """

    number: int
    label: str
    config: BenchConfig
    composed: dict[str, Any]
    """`config` as plain values."""
    directory: Path
    rounds: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Failed, or left out: it has no further rounds."""
        return self.result.get("status") in ("failed", "skipped")

    @property
    def by_round(self) -> dict[tuple[str, int], float]:
        """Samples per second by sitting and round."""
        repeats = [repeat for measured in self.rounds for repeat in measured["repeats"]]
        return {(repeat["sitting"], repeat["round"]): float(repeat["samples_per_sec"]) for repeat in repeats}

    @property
    def rates(self) -> list[float]:
        """Samples per second, a round each."""
        return list(self.by_round.values())

    def has(self, number: int) -> bool:
        """Whether round `number` was measured, in whatever sitting."""
        return any(number == round for _, round in self.by_round)


def measure_in_rounds(trials: Sequence[Trial], *, sitting: str, seed: int, baseline: Trial | None, show: Show) -> None:
    """Measure `trials`, each as often as its `bench.repeats` says, and keep every `result.json` up to date.

    With `bench.repeats=auto` rounds go on until differences of `bench.tell_pct` from `baseline` could be seen, or until
    `bench.budget_s` is spent. A trial that raises, is killed or outlives `bench.timeout_s` is failed, and the others go
    on. A process that runs when this raises (a KeyboardInterrupt) is killed.
    """
    began_s = time.monotonic()
    for number in itertools.count():
        if trials and all(trial.has(number) for trial in trials):
            continue
        spent_s = time.monotonic() - began_s
        is_told = number >= MIN_ROUNDS and _is_told(trials, baseline)
        active = [trial for trial in trials if _wants(trial, number, is_told, spent_s)]
        if not active:
            return
        order = [active[place] for place in round_order(len(active), seed=seed, round=number)]
        num_turns = max(trial.config.bench.turns for trial in active)
        for group in [order] if num_turns > 1 else [[trial] for trial in order]:
            _measure_together(group, number, num_turns, sitting=sitting, seed=seed)
            for trial in group:
                show(_line(trial, number))


def _wants(trial: Trial, number: int, is_told: bool, spent_s: float) -> bool:
    """Whether `trial` takes part in round `number`."""
    bench = trial.config.bench
    if trial.is_over or trial.has(number):
        return False
    if bench.repeats != AUTO:
        return number < int(bench.repeats)
    return number < MIN_ROUNDS or not (is_told or spent_s > bench.budget_s)


def _is_told(trials: Sequence[Trial], baseline: Trial | None) -> bool:
    """Whether another round could tell nothing more that matters."""
    live = [trial for trial in trials if not trial.is_over]
    if baseline not in live or len(live) == 1:
        return all(is_known(trial.rates, trial.config.bench.tell_pct) for trial in live)
    pairs = [paired(trial.by_round, baseline.by_round) for trial in live if trial is not baseline]
    return enough(pairs, min(trial.config.bench.tell_pct for trial in live))


def _measure_together(group: Sequence[Trial], number: int, num_turns: int, *, sitting: str, seed: int) -> None:
    """One round of the trials in `group`, whose processes are all there at once and work in turn, never together."""
    with ExitStack() as stack:
        processes: dict[int, TrialProcess] = {}
        for trial in group:
            process = _process(trial, number, sitting)
            if process is not None:
                processes[trial.number] = stack.enter_context(process)
                process.proceed()
        live = [trial for trial in group if trial.number in processes]
        for turn in range(num_turns + 1):  # the last is for what is measured beside the timed passes
            for place in round_order(len(live), seed=seed, round=number * _MAX_TURNS + turn):
                processes[live[place].number].proceed()
    for trial in live:
        _record(trial, _left_by(trial, number, processes[trial.number].cause))


def _process(trial: Trial, number: int, sitting: str) -> TrialProcess | None:
    """The process for a round of `trial`; None where its loader is not installed, which is recorded."""
    python = peers.interpreter(trial.config.bench.contender)
    if python is None:
        _record(trial, {"status": "skipped", "error": peers.why_not(trial.config.bench.contender)})
        return None
    path = _round_path(trial, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of an earlier sitting
    round = Round(
        config=trial.config,
        number=number,
        sitting=sitting,
        references=trial.config.bench.references and number == 0,
        path=str(path),
    )
    log, timeout_s = trial.directory / "trial.log", trial.config.bench.timeout_s
    return TrialProcess(round, number=trial.number, python=python, log=log, timeout_s=timeout_s)


def _round_path(trial: Trial, number: int) -> Path:
    return trial.directory / "rounds" / f"{number}.json"


def _left_by(trial: Trial, number: int, cause: str | None) -> dict[str, Any]:
    """What a process that is over left: its result, or why there is none."""
    path = _round_path(trial, number)
    if not path.exists():
        return {"status": "failed", "error": cause or "its process was told to end before it had a result"}
    measured: dict[str, Any] = json.loads(path.read_text())
    return measured


def _record(trial: Trial, measured: dict[str, Any]) -> None:
    """Add a round's result to the trial's, in memory and in its directory."""
    if measured["status"] == "completed":
        try:
            trial.result = combine([*trial.rounds, measured])
            trial.rounds.append(measured)
        except ValueError as error:  # its data or its cores changed meanwhile
            measured = {"status": "failed", "error": str(error)}
    if measured["status"] != "completed":
        so_far = combine(trial.rounds) if trial.rounds else {}
        trial.result = failed(measured["error"], trial.composed, status=measured["status"]) | so_far
        trial.result |= {"status": measured["status"]}
    save_result(trial.directory, trial.result)


def failed(error: str, composed: dict[str, Any], *, status: str = "failed") -> dict[str, Any]:
    """The result of a trial of which nothing was measured."""
    return {"status": status, "error": error, "repeats": [], "config": composed}


def save_result(directory: Path, result: dict[str, Any]) -> None:
    """Write `result.json` into `directory`, which is made if need be; it is there whole or not at all."""
    replace_json(directory / "result.json", result)


def _line(trial: Trial, number: int) -> str:
    outcome = trial.result["error"] if trial.is_over else f"{trial.rates[-1]:,.0f} images/s"
    return f"round {number + 1}, {trial.label}: {outcome}"
