"""`python -m pipeline.equivalence KEY=A,B [overrides]`: whether B trains to the accuracy that A does."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.equivalence.runs import METRIC, Pair, Question, run_pairs
from pipeline.equivalence.tost import Equivalence, judge
from pipeline.training.replacing import replace_json

_EXAMPLES = """\
python -m pipeline.equivalence transforms.resize=exact,fast data=folder data.root=DIR
python -m pipeline.equivalence transforms.decode=full,scaled data=medium --margin 0.5 --dir outputs/scaled

Trains both with seeds 0, 1, ...; the spread of the first ones says how many are needed. Interrupted, the same command
goes on. Exit code 0 if the difference is shown to be within the margin, 1 if it is not, 2 for a wrong command.
"""


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for, print what it shows and write `equivalence.json`; returns the exit code."""
    given = _parser().parse_intermixed_args(arguments)
    try:
        question = Question.parse(given.overrides, margin=given.margin, num_first=given.first)
        pairs = list(_enough(question, given.dir, given.most))
    except (ConfigError, OSError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; the same command goes on with what is in {given.dir}\n")
        return 130
    found = _judged(question, pairs)
    told = {"question": asdict(question), "metric": METRIC, "is_shown": found.is_shown, **asdict(found)}
    told["pairs"] = [asdict(pair) for pair in pairs]
    replace_json(given.dir / "equivalence.json", told)
    sys.stdout.write(in_words(question, found) + "\n")
    return 0 if found.is_shown else 1


def in_words(question: Question, found: Equivalence) -> str:
    """What was found, in lines of at most 100 columns."""
    line = (
        f"{METRIC}, {question.key}={question.second} less {question.first}: {found.mean:+.2f} points\n"
        f"90 % interval {found.low:+.2f} to {found.high:+.2f}, of {found.num_pairs} seeds; "
        f"margin {found.margin:g} points: "
    )
    if found.is_shown:
        return line + "shown neutral"
    if found.num_pairs < found.num_needed:
        return line + f"not shown neutral\nby the spread of the first seeds {found.num_needed} are needed (--most)"
    return line + "not shown neutral"


def _enough(question: Question, directory: Path, most: int) -> Sequence[Pair]:
    """As many pairs as the spread of the first ones asks for, and `most` at most."""
    num_first, margin = question.num_first, question.margin
    if not 2 <= num_first <= most:
        raise ConfigError(f"--first must be from 2 to --most={most}, got {num_first}")
    if not 0 < margin < math.inf:
        raise ConfigError(f"--margin must be > 0 and finite, got {margin:g}; 1 is a point of accuracy")
    running = run_pairs(question, directory, _say)
    pairs = list(islice(running, num_first))
    needed = _judged(question, pairs).num_needed
    if needed > num_first:
        _say(f"{needed} seeds are needed by the spread of the first {num_first}")
    return [*pairs, *islice(running, min(needed, most) - num_first)]


def _judged(question: Question, pairs: Sequence[Pair]) -> Equivalence:
    differences = [pair.difference_pct for pair in pairs]
    return judge(differences, num_first=question.num_first, margin=question.margin)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.equivalence",
        description="Trains with two values of one key and tests whether their accuracies are equivalent.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE", help="as for train.py, one of them with two values")
    parser.add_argument("--margin", type=float, default=1.0, help="points of accuracy that do not matter (1)")
    parser.add_argument("--first", type=int, default=5, help="seeds whose spread says how many are needed (5)")
    parser.add_argument("--most", type=int, default=30, help="seeds at most (30)")
    parser.add_argument("--dir", type=Path, default=Path("outputs/equivalence"), help="where the runs are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
