"""A run over several processes: the ranks, what they tell each other, and how they are started on one host."""

from pipeline.dist.launch import RanksInterrupted, run_ranks
from pipeline.dist.world import ALONE, World, join_world

__all__ = ["ALONE", "RanksInterrupted", "World", "join_world", "run_ranks"]
