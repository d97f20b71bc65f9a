"""The stall report of a run: where the time went, what bounds it, and one override that would help, or none."""

from pipeline.stalls.advice import Machine
from pipeline.stalls.costs import Costs, Moment, cpu_s_of_program, stage_costs
from pipeline.stalls.report import StallReport, explain

__all__ = ["Costs", "Machine", "Moment", "StallReport", "cpu_s_of_program", "explain", "stage_costs"]
