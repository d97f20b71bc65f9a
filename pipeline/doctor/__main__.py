"""`python -m pipeline.doctor [overrides]`: what stands in the way of a run, in seconds, before it begins."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from pipeline.config import ConfigError
from pipeline.doctor.configuration import compose_run
from pipeline.doctor.examine import examine
from pipeline.doctor.finding import Finding, Level, error, summary

_EXAMPLES = """\
python -m pipeline.doctor                                     the run of `python train.py`
python -m pipeline.doctor data=folder data.root=DIR           your images
python -m pipeline.doctor data=medium dist.nproc=2 run.device=cuda

Each line is ok, a warning with what to change, or an error. Exit code 0 without errors, 1 with.
"""


class _Parser(argparse.ArgumentParser):
    """One whose faults are findings, as every other fault of a command line is."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help shows what there is")


def main(arguments: Sequence[str]) -> int:
    """Print the findings as they come, then their number; 1 if one of them is an error, else 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a broken file may be no text at all
    findings: list[Finding] = []
    for finding in _findings(arguments):
        findings.append(finding)
        sys.stdout.write("".join(f"{line}\n" for line in finding.lines()))
        sys.stdout.flush()
    sys.stdout.write(f"{summary(findings)}\n")
    return int(any(finding.level is Level.error for finding in findings))


def _findings(arguments: Sequence[str]) -> Iterator[Finding]:
    try:
        given = _parser().parse_intermixed_args(arguments)
        cfg, composed = compose_run(given.overrides, cwd=Path.cwd(), config_dir=given.config_dir)
    except (ConfigError, OSError) as raised:
        yield error("configuration", str(raised))
        return
    yield composed
    yield from examine(cfg)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pipeline.doctor",
        description="Looks at the machine, the packages and the data that a training run would meet, in seconds.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="GROUP=OPTION or KEY=VALUE, as for train.py")
    parser.add_argument("--config-dir", metavar="DIR", help="further YAML files, as for train.py")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
