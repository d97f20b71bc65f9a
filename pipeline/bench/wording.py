"""Numbers as people read them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.bench.compare import Ratio
from pipeline.bench.noise import rate_interval
from pipeline.bench.sweep_dir import Trial
from pipeline.training.tables import WIDTH


def count(value: float | None) -> str:
    """Three significant digits at least, and thousands apart: 12,345, 98.7, 0.123; "-" for None."""
    if value is None:
        return "-"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{decimals}f}"


def percent(value: float | None) -> str:
    """One decimal, so that a column of them lines up; "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def ratio(value: float) -> str:
    """Two decimals below ten, one below a hundred: 2.81, 10.4, 1,024; of less than 0.1 two digits: 0.0034."""
    return f"{value:.2g}" if value < 0.1 else f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def ratio_cell(of: Ratio) -> str:
    """2.81 (2.6-3.0) with an interval, 2.81 [2.6-3.0] with the least and greatest instead, 2.81 ? with neither."""
    if of.low is None or of.high is None:
        return f"{ratio(of.value)} ?"
    bounds = f"{ratio(of.low)}-{ratio(of.high)}"
    return f"{ratio(of.value)} ({bounds})" if of.is_interval else f"{ratio(of.value)} [{bounds}]"


def spread(trial: Trial) -> tuple[float, float, bool] | None:
    """Lower and upper end of the trial's own rate, and whether they are a 95 % interval; None without rounds.

    With too few rounds for an interval they are the least and the greatest.
    """
    rates = trial.rates
    interval = rate_interval(rates)
    if interval is not None:
        return interval.low, interval.high, True
    return (min(rates), max(rates), False) if rates else None


def spread_cell(trial: Trial) -> str:
    """1,180-1,290, in square brackets where it is the least and the greatest."""
    ends = spread(trial)
    if ends is None:
        return "-"
    text = f"{count(ends[0])}-{count(ends[1])}"
    return text if ends[2] else f"[{text}]"


def listing(names: Sequence[str]) -> str:
    """Names in a row: "0", "0 and 1", "0, 1 and 2"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def wrapped(line: str) -> list[str]:
    """The line in pieces of a terminal's width, the later ones indented."""
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False) or [""]
