"""What stands beneath a section's table: sentences that say only what the results hold."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from pipeline.bench.compare import Ratio, Section, compare
from pipeline.bench.labels import Labels
from pipeline.bench.noise import MIN_ROUNDS, Verdict
from pipeline.bench.sweep_dir import FAILED, NOT_RUN, SKIPPED, Trial
from pipeline.bench.wording import count, listing, ratio

_DROPPED_PCT = 1.0
"""More of the files than this left in the page cache, and a "cold" rate is not of cold files."""


def notes(section: Section, labels: Labels) -> list[str]:
    """All lines of a section, the important ones first."""
    return [
        *_without_result(section, labels),
        *_baseline(section, labels),
        *_fastest(section, labels),
        *_cannot_tell(section),
        *_no_intervals(section),
        *_published(section, labels),
        *_references(section),
        *_warnings(section),
        *_how_served(section),
    ]


def _without_result(section: Section, labels: Labels) -> Iterable[str]:
    for trial in section.trials:
        if trial.status in (FAILED, SKIPPED):
            yield f"{labels.called(trial)} {trial.status}: {trial.error or 'it does not say why'}"
    left = [trial.name for trial in section.trials if trial.status == NOT_RUN]
    if left:
        yield f"not run: {listing(left)}; sweep.resume=DIR measures what is missing"


def _baseline(section: Section, labels: Labels) -> Iterable[str]:
    named = {trial.sweep.baseline for trial in section.trials if trial.sweep.baseline is not None}
    known = {name for name in named for trial in section.trials if labels.is_called(trial, name)}
    for name in sorted(named - known):
        yield f"sweep.baseline={name} names no trial here; a trial is named by its number or by its overrides"
    if section.baseline is None or section.meant is None or section.baseline is section.meant:
        return
    yield (
        f"the baseline {labels.called(section.meant)} has no result ({section.meant.status}); the others are compared "
        f"with {labels.called(section.baseline)} instead, and not with published speed-ups"
    )


def _fastest(section: Section, labels: Labels) -> Iterable[str]:
    fastest = section.fastest
    if fastest is None:
        return
    against = {trial: compare(fastest, trial) for trial in section.completed if trial is not fastest}
    not_told = [trial for trial, found in against.items() if found.verdict in (Verdict.same, Verdict.unknown)]
    if not_told and not any(found.is_interval for found in against.values()):
        yield "not told apart: the fastest and the others, for want of rounds"
    elif not_told:
        yield f"not told apart from the fastest: {', '.join(map(labels.called, not_told))}"


def _cannot_tell(section: Section) -> Iterable[str]:
    """One line a smallest difference asked for, which is a sweep's."""
    unknown = {t: found for t, found in section.vs_baseline.items() if found.verdict is Verdict.unknown and found.low}
    for tell_pct in sorted({trial.tell_pct for trial in unknown}):
        these = {trial: found for trial, found in unknown.items() if trial.tell_pct == tell_pct}
        names = listing([trial.name for trial in these])
        asked = [found.rounds_to_ask for found in these.values()]
        most = max((number for number in asked if number is not None), default=None)
        would = (
            f"bench.repeats={most} would tell {tell_pct:g} %, fewer with bench.turns=4 if all fit in memory at once"
            if most
            else "too few rounds to say how many would tell"
        )
        yield f"cannot tell {names} from the baseline: {would}"


def _no_intervals(section: Section) -> Iterable[str]:
    ratios: list[Ratio] = [*section.vs_baseline.values(), *section.vs_previous.values()]
    few = sorted({found.num_rounds for found in ratios if not found.is_interval and found.low is not None})
    if few:
        rounds = " or ".join(map(str, few)) + (" round" if few == [1] else " rounds")
        yield f"[least-greatest]: no interval ({rounds}; {MIN_ROUNDS} are needed)"
    if any(found.low is None for found in ratios):
        yield "?: no common rounds, so a ratio of medians without an interval; measure both in one sweep"


def _published(section: Section, labels: Labels) -> Iterable[str]:
    if not section.has_published:
        return
    ours = {trial: (found, labels.published(trial)) for trial, found in section.vs_baseline.items()}
    for trial, (found, published) in ours.items():
        if published is not None and found.value < published:
            missed = f"{labels.called(trial)} missed {published:.2f} with {ratio(found.value)}"
            yield ": ".join(filter(None, (missed, "; ".join(_why(section, trial)))))


def _why(section: Section, trial: Trial) -> Iterable[str]:
    """Facts of the trial's own measurement; a cause that was not measured is not named."""
    missed = 1 - (trial.number_of("cache_hit_pct") or 0.0) / 100  # what a cache has is neither read nor decoded
    stages = {stage: (trial.number_of(f"{stage}_ms") or 0.0) * missed for stage in ("read", "decode")}
    stages["transform"] = trial.number_of("transform_ms") or 0.0
    total_ms = sum(stages.values())
    cores = (trial.result.get("host") or {}).get("num_usable_cores")
    if total_ms > 0:
        most = max(stages, key=lambda stage: stages[stage])
        yield f"{most} is {stages[most]:.2f} of an image's {total_ms:.2f} ms of core time"
        if cores:
            at_most = 1000 * cores / total_ms
            used = f"{100 * trial.rate / at_most:.0f} % of it was used"
            yield f"at that, {cores} cores give {count(at_most)}/s at most, and {used}"
    if section.baseline is not None:
        for key, what in (("decode_ceiling_per_sec", "the decode ceiling"), ("resident_per_sec", "a resident batch")):
            value = trial.number_of(key)
            if value is not None:
                yield f"{what} would be {ratio(value / section.baseline.rate)} times the baseline"


def _references(section: Section) -> Iterable[str]:
    for text, value in references(section).items():
        yield f"{text}: {count(value)}/s"


def references(section: Section) -> dict[str, float]:
    """Images/s that rates are to be seen beside, medians over the trials that measured them."""
    found: dict[str, list[float]] = {}
    for trial in section.completed:
        cores = (trial.result.get("host") or {}).get("num_usable_cores")
        threads = f", {cores} thread{'' if cores == 1 else 's'}" if cores else ""
        kinds = {
            "decode_ceiling_per_sec": f"decode ceiling (the bare decoder{threads})",
            "resident_per_sec": "resident batch (what a perfect loader would give)",
        }
        for key, text in kinds.items():
            value = trial.number_of(key)
            if value is not None:
                found.setdefault(text, []).append(value)
    return {text: statistics.median(values) for text, values in sorted(found.items())}


def _warnings(section: Section) -> Iterable[str]:
    yield from _differing("commits", {trial: {"": trial.result.get("commit")} for trial in section.completed})
    yield from _differing("numbers of samples", {t: {"": t.result.get("num_samples")} for t in section.completed})
    yield from _differing("versions", {trial: trial.result.get("versions") or {} for trial in section.completed})
    warm = [t for t in section.completed if (t.number_of("cold_resident_pct") or 0) > _DROPPED_PCT]
    if warm:
        worst = max(trial.number_of("cold_resident_pct") or 0 for trial in warm)
        yield (
            f"warning: cold is not cold in {listing([t.name for t in warm])}: "
            f"up to {worst:.0f} % of the files stayed in the page cache"
        )


def _differing(what: str, facts: dict[Trial, dict[str, Any]]) -> Iterable[str]:
    """A warning that names the facts that are not the same in all trials, and which trials have which."""
    keys = dict.fromkeys(key for of_trial in facts.values() for key in of_trial)
    differing = [key for key in keys if len({str(of_trial.get(key)) for of_trial in facts.values()}) > 1]
    kinds: dict[str, list[str]] = {}
    for trial, of_trial in facts.items():
        said = ", ".join(f"{key} {of_trial.get(key) or 'none'}".strip() for key in differing)
        kinds.setdefault(said, []).append(trial.name)
    if differing:
        yield f"warning: different {what}: {'; '.join(f'{said} in {listing(names)}' for said, names in kinds.items())}"


def _how_served(section: Section) -> Iterable[str]:
    """Where each row's samples come from and what is made of them: a line for all, or for each kind."""
    kinds: dict[str, list[str]] = {}
    for trial in section.completed:
        kinds.setdefault(_served(trial.result), []).append(trial.name)
    for kind, names in kinds.items():
        if kind:
            yield kind if len(kinds) == 1 else f"{listing(names)}: {kind}"


def _served(result: dict[str, Any]) -> str:
    parts = {"served_from": "from {}", "resize": "resize {}", "layout": "{}"}
    said = [form.format(result[key]) for key, form in parts.items() if result.get(key)]
    deviations = [f"but {deviation}" for deviation in result.get("deviations") or ()]
    return ", ".join([*said, *deviations])
