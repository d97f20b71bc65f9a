"""Which trials may be compared, and how they compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.bench.labels import Labels
from pipeline.bench.noise import Verdict, paired, ratio_interval, rounds_to_ask, verdict
from pipeline.bench.sweep_dir import Trial

Conditions = tuple[tuple[str, str], ...]
"""What rates must have in common to be compared, as (what, which): the machine and the data."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times another's rate a trial's is.

    `low` and `high` are of the 95 % interval where `is_interval`, else the least and the greatest of the rounds; both
    None where no round was measured together.
    """

    value: float
    low: float | None
    high: float | None
    num_rounds: int
    is_interval: bool
    verdict: Verdict
    rounds_to_ask: int | None
    """How many rounds would tell, where the verdict is that nothing can be told; None: not known."""


@dataclass(eq=False)
class Section:
    """Trials of one machine on one data set; no rate is compared across sections."""

    conditions: Conditions
    trials: list[Trial]
    baseline: Trial | None = None
    meant: Trial | None = None
    """The trial that was to be the baseline; another where it has no result and `baseline` stands in."""
    vs_baseline: dict[Trial, Ratio] = field(default_factory=dict)
    vs_previous: dict[Trial, Ratio] = field(default_factory=dict)

    @property
    def completed(self) -> list[Trial]:
        """The trials that have numbers."""
        return [trial for trial in self.trials if trial.completed]

    @property
    def fastest(self) -> Trial | None:
        """The completed trial of the highest rate; None with fewer than two to choose from."""
        return max(self.completed, key=lambda trial: trial.rate) if len(self.completed) > 1 else None

    @property
    def has_published(self) -> bool:
        """Whether published speed-ups may stand beside ours: they are over the baseline that was meant."""
        return self.baseline is not None and self.baseline is self.meant


def compare(trial: Trial, other: Trial) -> Ratio:
    """How many times the rate of `other` that of `trial` is; both completed.

    Only rounds that were interleaved with one another say so with an interval; otherwise it is a ratio of medians.
    """
    mine, theirs = paired(_by_round(trial), _by_round(other))
    interval = ratio_interval(mine, theirs)
    decided = verdict(interval, trial.tell_pct)
    unknown = decided is Verdict.unknown and mine
    to_ask = rounds_to_ask(mine, theirs, trial.tell_pct) if unknown else None
    if interval is not None:
        value, low, high = interval.value, interval.low, interval.high
        return Ratio(
            value=value, low=low, high=high, num_rounds=len(mine), is_interval=True, verdict=decided,
            rounds_to_ask=to_ask,
        )  # fmt: skip
    ratios = [my / their for my, their in zip(mine, theirs, strict=True)]
    return Ratio(
        value=statistics.median(ratios) if ratios else trial.rate / other.rate,
        low=min(ratios, default=None),
        high=max(ratios, default=None),
        num_rounds=len(ratios),
        is_interval=False,
        verdict=decided,
        rounds_to_ask=to_ask,
    )


def sections(trials: Sequence[Trial], labels: Labels) -> list[Section]:
    """The trials by machine and data set, in order, compared within each.

    A sweep over data sets falls into a section for each: rates on other files are no speed-up. A trial without a result
    stands with those of its sweep that were to read the same data.
    """
    found: dict[Conditions, Section] = {}
    for trial in trials:
        if trial.completed:
            key = _conditions(trial)
            found.setdefault(key, Section(key, [])).trials.append(trial)
    if not found:
        found[()] = Section((), [])
    places = list(found.values())
    for trial in trials:
        if not trial.completed:
            _place(trial, places).trials.append(trial)
    for section in places:
        section.trials.sort(key=list(trials).index)
        _compare_all(section, labels)
    return places


def _conditions(trial: Trial) -> Conditions:
    host = trial.result.get("host") or {}
    return (
        ("host", str(host.get("name"))),
        ("processor", str(host.get("processor"))),
        ("usable cores", str(host.get("num_usable_cores"))),
        ("data set", str(trial.result.get("dataset") or f"{trial.result.get('num_samples') or 0:,} samples")),
    )


def _place(trial: Trial, places: Sequence[Section]) -> Section:
    def data(of: Trial) -> dict[str, str]:
        return {key: value for key, value in of.overrides.items() if key.partition(".")[0] == "data"}

    def nearness(section: Section) -> int:
        of_sweep = [other for other in section.trials if other.sweep is trial.sweep]
        return len(of_sweep[:1]) + any(data(other) == data(trial) for other in of_sweep)

    return max(places, key=nearness)


def _compare_all(section: Section, labels: Labels) -> None:
    section.meant = _meant_baseline(section, labels)
    section.baseline = section.meant
    if section.baseline is None or not section.baseline.completed:
        section.baseline = next(iter(section.completed), None)
    for trial in section.completed:
        if trial is not section.baseline and section.baseline is not None:
            section.vs_baseline[trial] = compare(trial, section.baseline)
        above = next((t for t in section.completed if _follows(trial, t)), None)
        if trial.sweep.vs_previous and above is not None:
            section.vs_previous[trial] = compare(trial, above)


def _meant_baseline(section: Section, labels: Labels) -> Trial | None:
    """The trial that `sweep.baseline` names, of the first sweep that names one here; else the first trial."""
    named = (t for t in section.trials if t.sweep.baseline is not None and labels.is_called(t, t.sweep.baseline))
    return next(named, section.trials[0] if section.trials else None)


def _follows(trial: Trial, above: Trial) -> bool:
    """Whether it is the very next row: a gap would credit two steps' gain to one."""
    return trial.sweep is above.sweep and trial.number == above.number + 1


def _by_round(trial: Trial) -> dict[tuple[object, ...], float]:
    """Rates by what must be equal in two rounds that were interleaved; a round of no sitting was with no other."""
    return {
        (trial.sweep.directory, repeat["sitting"], repeat["round"]): float(repeat["samples_per_sec"])
        for repeat in trial.repeats
        if repeat.get("sitting") is not None and repeat.get("samples_per_sec")
    }
