"""Bad samples that were passed over: each once, in a file for people, and how many of them are too many."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

FILE = "quarantine.csv"
_FIELDS = ("split", "id", "path", "cause")
_NUM_NAMED = 3


class TooManyBadError(RuntimeError):
    """More samples are bad than `data.max_bad_fraction` allows."""


class Quarantine:
    """`quarantine.csv`: a row for every bad sample of a run, written as it is found; made with the first of them.

    A run that goes on adds to the rows that are there. One process writes one file.
    """

    def __init__(self, path: Path) -> None:
        """Reads what `path` has already. ValueError where that is no such file."""
        self.path = path
        self._paths: set[tuple[str, str]] = set()
        """(split, path) of every row."""
        try:
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                for row in csv.DictReader(file):
                    self._paths.add((row["split"], row["path"]))
        except FileNotFoundError:
            return
        except (KeyError, csv.Error, UnicodeError) as error:
            raise ValueError(f"{path} is no quarantine of bad samples; move it away") from error

    def add(self, split: str, id: int, path: str, cause: str) -> None:
        """A bad sample; one that is there already is not written again. OSError where it cannot be written."""
        if (split, path) in self._paths:
            return
        with self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(_FIELDS)
            writer.writerow((split, id, path, cause))
        self._paths.add((split, path))


class BadSamples:
    """Those of one split, by id, with their causes; other ranks' among them once they were told.

    With `checks_itself` a bad sample too many raises when it is met. Ranks of a run check together instead, or one
    would leave the others waiting.
    """

    def __init__(
        self,
        *,
        split: str,
        num_samples: int,
        max_fraction: float,
        where: Callable[[int], str],
        quarantine: Quarantine | None = None,
        checks_itself: bool = True,
    ) -> None:
        """Know of none yet; `where` names a sample."""
        self.causes: dict[int, str] = {}
        self._split = split
        self._num_samples = num_samples
        self._max_fraction = max_fraction
        self._where = where
        self._quarantine = quarantine
        self._checks_itself = checks_itself

    def add(self, found: Iterable[tuple[int, str]]) -> None:
        """Bad samples, known or not, with their causes. TooManyBadError where they are too many."""
        if self.learn(dict(found)) and self._checks_itself:
            self.check()

    def learn(self, causes: Mapping[int, str], *, writes: bool = True) -> bool:
        """Know of bad samples, by id; says whether there were new ones."""
        new = {id: cause for id, cause in causes.items() if id not in self.causes}
        self.causes |= new
        if writes and self._quarantine is not None:
            for id, cause in new.items():
                self._quarantine.add(self._split, id, self._where(id), cause)
        return bool(new)

    def forget_file(self) -> None:
        """Remove the quarantine's file: another one has its rows."""
        if self._quarantine is not None:
            self._quarantine.path.unlink(missing_ok=True)

    def check(self) -> None:
        """TooManyBadError where more are bad than may be."""
        if len(self.causes) <= self._max_fraction * self._num_samples:
            return
        named = [f"  {self._where(id)}: {cause}" for id, cause in list(self.causes.items())[:_NUM_NAMED]]
        rest = len(self.causes) - len(named)
        if rest > 0:
            named.append(f"  and {rest} more" + ("" if self._quarantine is None else f", in {self._quarantine.path}"))
        raise TooManyBadError(
            f"{len(self.causes)} of {self._num_samples:,} samples of {self._split} are bad, more than "
            f"data.max_bad_fraction={self._max_fraction:g} allows; mend them, or raise it:\n" + "\n".join(named)
        )
