"""The stall report of a run: where the time went, what bounds it, and one override that would help, or none."""

from pipeline.stalls.advice import Machine
from pipeline.stalls.costs import (
    COMPUTE,
    LOOP_KINDS,
    OVERHEAD,
    RANKS,
    SAVING,
    Costs,
    clocking_s,
    cpu_s_of_program,
    stage_costs,
)
from pipeline.stalls.report import StallReport, explain

__all__ = [
    "COMPUTE",
    "LOOP_KINDS",
    "OVERHEAD",
    "RANKS",
    "SAVING",
    "Costs",
    "Machine",
    "StallReport",
    "clocking_s",
    "cpu_s_of_program",
    "explain",
    "stage_costs",
]
