"""The report of a sweep, or of several: a table on the terminal, `results.csv`, `report.md` and the pictures.

    python -m pipeline.bench.report DIR... [--out DIR]

It is made of the files in the sweeps' directories and of nothing else: the same files give the same report, also long
after, and also where a sweep was interrupted. The exit code is 1 if a trial failed, 2 for a wrong directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from pipeline.bench.compare import Section, sections
from pipeline.bench.conditions import differences, how, title, versions, where
from pipeline.bench.labels import Labels, paste
from pipeline.bench.notes import notes
from pipeline.bench.results_csv import write_csv
from pipeline.bench.sweep_dir import FAILED, Sweep, Trial, read_sweeps, sweeps_of
from pipeline.bench.table import markdown_tables, markdown_text, text_tables
from pipeline.bench.wording import wrapped
from pipeline.config.checks import ConfigError
from pipeline.training.replacing import replacing

_HOW_TO_READ = """\
## How to read it

- **images/s** is the median of a trial's rounds, **95 %** the interval of its typical rate. **vs baseline** is how many
  times the baseline's rate it is, with the 95 % interval of that ratio: `2.81 (2.62-3.01)`.
- A round measures every trial once, in fresh processes and in an order drawn at random, and ratios are taken within a
  round: what slows the machine for a while slows both. The interval is the signed-rank test's, with the Hodges-Lehmann
  estimate in it. The two trials differ if 1 is outside.
- **faster**, **slower**: 1 is outside the interval. **same**: 1 is inside, and the interval is narrow enough to have
  seen the difference that `bench.tell_pct` asks for. **cannot tell**: 1 is inside, and more rounds are needed to say.
- `[low-high]` instead of `(low-high)`: the least and the greatest of too few rounds, which is no interval. `?`: the two
  were never measured in one round.
- **published** is the speed-up that others report for such a step: *beaten*, the whole interval lies above it;
  *reached*, our ratio does; *missed*, it does not.
- **memory MB** is the peak of the proportional set size, summed over all processes of a trial, in 10^6 bytes.
  **per CPU-s** is images for each second of processor time, all processes counted.
"""


def write_report(sweep_dirs: list[Path], out_dir: Path, *, terminal: TextIO) -> int:
    """Print the table of the sweeps, write their report into `out_dir`, and return how many of their trials failed.

    Raises:
        ConfigError: a directory holds no sweep of bench.py, or is named twice; nothing is written then.
    """
    trials = read_sweeps(sweep_dirs)
    labels = Labels(trials)
    found = sections(trials, labels)
    terminal.write("\n".join(["", *_terminal_lines(found, labels, trials), ""]))
    write_csv(found, labels, out_dir / "results.csv")
    pictures = _draw(found, labels, out_dir)
    with replacing(out_dir / "report.md") as file:
        file.write(_markdown(found, labels, trials, pictures).encode())
    terminal.write(f"report: {out_dir / 'report.md'}\n")
    return sum(trial.status == FAILED for trial in trials)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.bench.report", description="Rebuild a sweep's report, or merge several sweeps in one."
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="a sweep's directory")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write; needed with more than one sweep")
    given = parser.parse_args(arguments)
    try:
        if given.out is None and len(given.directories) > 1:
            raise ConfigError(
                f"--out must say where the report of {len(given.directories)} sweeps goes; give --out DIR"
            )
        return min(1, write_report(given.directories, given.out or given.directories[0], terminal=sys.stdout))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _terminal_lines(found: list[Section], labels: Labels, trials: list[Trial]) -> list[str]:
    lines = wrapped(title(labels)) + [line for text in _several(found, trials) for line in wrapped(text)]
    for section in found:
        lines += ["", *(line for text in filter(None, (where(section), how(section))) for line in wrapped(text))]
        lines += [*text_tables(section, labels), ""]
        lines += [*_fastest(section), *(line for note in notes(section, labels) for line in wrapped(note))]
    return lines


def _several(found: list[Section], trials: list[Trial]) -> list[str]:
    """Which sweep each letter stands for, and why there are several sections."""
    sweeps = sweeps_of(trials)
    legend = [f"{sweep.letter}: {sweep.directory}, {_when(sweep)}" for sweep in sweeps] if len(sweeps) > 1 else []
    return legend + ([differences(found)] if len(found) > 1 else [])


def _fastest(section: Section) -> list[str]:
    """A line to paste, so it is never wrapped."""
    fastest = section.fastest
    return [] if fastest is None else [f"fastest: {paste(fastest) or fastest.name}"]


def _when(sweep: Sweep) -> str:
    return f"{sweep.command} ({sweep.began.replace('T', ' ')})"


def _draw(found: list[Section], labels: Labels, out_dir: Path) -> list[tuple[str, str]]:
    """Draw what there is to draw; returns the files' names, each with what it shows."""
    if not any(section.completed for section in found):
        return []
    from pipeline.bench.cache_plot import capacities_vary, draw_cache  # matplotlib takes a second to import
    from pipeline.bench.plot import draw_throughput

    draw_throughput(found, labels, out_dir / "throughput.png")
    if not capacities_vary(found):
        return [("throughput.png", title(labels))]
    draw_cache(found, out_dir / "cache.png")
    return [("throughput.png", title(labels)), ("cache.png", "Hit rate by capacity")]


def _markdown(found: list[Section], labels: Labels, trials: list[Trial], pictures: list[tuple[str, str]]) -> str:
    commands = [f"{sweep.command}  # {sweep.began.replace('T', ' ')}" for sweep in sweeps_of(trials)]
    lines = [f"# {markdown_text(title(labels))}", "", "```", *commands, "```", ""]
    lines += [f"- {markdown_text(text)}" for text in _several(found, trials)]
    for number, section in enumerate(found):
        lines += ["", f"## Section {number + 1}", ""] if len(found) > 1 else []
        conditions = filter(None, (where(section), versions(section), how(section)))
        lines += [f"- {markdown_text(text)}" for text in conditions]
        lines += ["", *markdown_tables(section, labels), ""]
        lines += [f"- {line.partition(' ')[0]} `{line.partition(' ')[2]}`" for line in _fastest(section)]
        lines += [f"- {markdown_text(note)}" for note in notes(section, labels)]
    for name, what in pictures:
        lines += ["", f"![{markdown_text(what)}]({name})"]
    return "\n".join([*lines, "", _HOW_TO_READ])


if __name__ == "__main__":
    sys.exit(main())
