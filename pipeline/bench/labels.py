"""What tells trials apart: the keys that vary between them, and a trial's name by their values."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence

from pipeline.bench.sweep_dir import Sweep, Trial, sweeps_of
from pipeline.config.leaves import leaves
from pipeline.training.tables import short_names

_ASKED_ONLY = ("bench.budget_s", "bench.objective", "bench.references", "bench.repeats", "bench.tell_pct")
_NOT_A_TRIALS = ("hydra", "logger", "resume", "run", "sweep")
"""Groups and keys that say how a sweep is run, kept and shown, and not what is measured."""


UNSAID = "-"
"""Where a trial does not say what its value of a key is."""

_SHORT = 40


class Labels:
    """The keys that vary between `trials`, and how the trials are called by them."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.keys = _varying_keys(trials)
        self.short_keys = short_names(self.keys)
        self._alone = len(self.keys) == 1 and all(_speaks(*self.values(trial)) for trial in trials)
        sweeps = sweeps_of(trials)
        several = sweeps if len(sweeps) > 1 else []
        self._own = {sweep: Labels([trial for trial in trials if trial.sweep is sweep]) for sweep in several}
        """A sweep's options name trials as its own report does, also beside other sweeps."""

    def values(self, trial: Trial) -> list[str]:
        """The trial's values of `keys`, or `UNSAID`."""
        return [_value(trial, key) for key in self.keys]

    def label(self, trial: Trial) -> str:
        """The varying values: alone where one key varies and its values speak ("lru"), else with keys ("size=224")."""
        values = self.values(trial)
        return values[0] if self._alone else self._pairs(self.short_keys, values)

    def called(self, trial: Trial) -> str:
        """Its name with its label, for a sentence: "3 (lru)"; the name alone where the label is no short one."""
        label = self.label(trial)
        return f"{trial.name} ({label})" if 0 < len(label) <= _SHORT else trial.name

    def is_called(self, trial: Trial, text: str) -> bool:
        """Whether `text` of its sweep's options means it: its number, label, or overrides with keys long or short."""
        own = self._own.get(trial.sweep, self)
        return text in (str(trial.number), own.label(trial)) or own._is_by_key(trial, text)

    def published(self, trial: Trial) -> float | None:
        """The speed-up that others have published for a row of this name, if any."""
        own = self._own.get(trial.sweep, self)
        named = (ratio for name, ratio in trial.sweep.published.items() if name == own.label(trial))
        by_key = (ratio for name, ratio in trial.sweep.published.items() if own._is_by_key(trial, name))
        return next(itertools.chain(named, by_key), None)

    def _is_by_key(self, trial: Trial, text: str) -> bool:
        values, words = self.values(trial), set(text.split())
        forms = (self._pairs(self.keys, values), self._pairs(self.short_keys, values), " ".join(trial.arguments))
        return bool(words) and any(words == set(form.split()) for form in forms)

    @staticmethod
    def _pairs(keys: Sequence[str], values: Sequence[str]) -> str:
        return " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))


def _speaks(value: str) -> bool:
    """Whether a value needs no key before it to be understood, nor could be taken for a trial's number."""
    return value[:1].isalpha() and value not in ("auto", "false", "null", "true")


def paste(trial: Trial) -> str:
    """The trial's overrides as a shell takes them, without those that say how a sweep is run or a trial is timed."""
    return shlex.join(argument for argument in trial.arguments if not _is_of_the_measuring(argument))


def _is_of_the_measuring(argument: str) -> bool:
    key = argument.lstrip("+~").partition("=")[0]
    return key.partition(".")[0] in ("bench", "hydra", "run", "sweep") and key not in ("bench.contender", "bench.mode")


def _varying_keys(trials: Sequence[Trial]) -> list[str]:
    given = dict.fromkeys(key for trial in trials for key in trial.overrides)
    of_bases = dict.fromkeys(_differing(sweeps_of(trials)))
    keys = [key for key in {**given, **of_bases} if key.partition(".")[0] not in _NOT_A_TRIALS]
    return [key for key in keys if len({_value(trial, key) for trial in trials}) > 1]


def _differing(sweeps: Sequence[Sweep]) -> Iterator[str]:
    bases = [dict(leaves(sweep.base)) for sweep in sweeps]
    for key in dict.fromkeys(key for base in bases for key in base):
        if key not in _ASKED_ONLY and len({str(base.get(key)) for base in bases}) > 1:
            yield key


def _value(trial: Trial, key: str) -> str:
    if key in trial.overrides:
        return trial.overrides[key]
    for config in (trial.result.get("config") or {}, trial.sweep.base):
        value = dict(leaves(config)).get(key)
        if value is not None:
            return str(value)
    return UNSAID
