"""The choice itself, its evidence, and how a run that goes on finds it again."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Backend, CachePolicy, PreloadMode, TrainConfig
from pipeline.machine import cores_per_rank
from pipeline.stalls import Machine
from pipeline.stalls.advice import WORTH_IT, may_keep_pixels
from pipeline.training.build import build_compute, choose_num_threads
from pipeline.training.replacing import replace_json
from pipeline.training.tuning.cell import Cell, Served, all_cells, shortlist
from pipeline.training.tuning.trial import Trials, configured

FILE = "tuned.json"
NUM_ROUNDS = 3
NUM_CELLS = 4
MOST_S = 7.0
"""No other round begins after so many seconds."""
AS_GOOD = 0.98
"""Cells within so much of the best are as good as it: of those, the one that takes least is chosen."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The cell, whether the cache is to keep pixels, and what was measured: samples a second by cell."""

    cell: Cell
    keeps_pixels: bool
    by_costs: Mapping[Cell, float]
    measured: Mapping[Cell, Sequence[float]]
    took_s: float

    @property
    def overrides(self) -> list[str]:
        """What to add to a command line to have it without measuring."""
        return [*self.cell.overrides, *(["cache=pinned"] if self.keeps_pixels else [])]

    def lines(self) -> list[str]:
        """For people, of at most 100 columns."""
        rows = [f"tuned in {self.took_s:.1f} s: {' '.join(self.overrides)}"]
        rows.append("  workers  of threads  torch's threads  images/s by costs  measured (least-greatest)")
        for cell, rate in self.by_costs.items():
            times = self.measured.get(cell, ())
            shown = f"{statistics.median(times):.0f} ({min(times):.0f}-{max(times):.0f})" if times else "not measured"
            chosen = "  <" if cell == self.cell else ""
            settings = f"{cell.num_workers:9d}{cell.threads_per_worker:12d}{cell.num_threads:17d}"
            rows.append(f"{settings}{rate:19.0f}  {shown}{chosen}")
        return rows


def tune(cfg: TrainConfig, run_dir: Path, say: Callable[[str], None]) -> TrainConfig:
    """`cfg` with workers, their threads, torch's threads and the cache that make it fastest here.

    Takes some seconds, in which samples are read and a model that is thrown away is trained. No sample changes by
    the choice; weights may differ in their last bits, as by any other number of threads. What is not `auto`, or not
    null, is left as it is. Writes `tuned.json` into `run_dir`. Sets torch's number of threads and draws from its
    generator.
    """
    if not _has_choice(cfg):
        say("tune=true has nothing to choose: workers, run.num_threads and a store are set; nothing is measured")
        return cfg
    began_s = time.monotonic()
    choice = _choose(cfg, began_s, say)
    for line in choice.lines():
        say(line)
        _log.info(line)
    run_dir.mkdir(parents=True, exist_ok=True)
    replace_json(run_dir / FILE, _as_json(choice))
    return _applied(cfg, choice.cell, keeps_pixels=choice.keeps_pixels)


def apply_tuned(cfg: TrainConfig, run_dir: Path) -> TrainConfig:
    """`cfg` with what was chosen when the run in `run_dir` began; as it is where nothing was."""
    try:
        chosen = json.loads((run_dir / FILE).read_text())
    except FileNotFoundError:
        return cfg
    return _applied(cfg, Cell(**chosen["cell"]), keeps_pixels=chosen["keeps_pixels"])


def _has_choice(cfg: TrainConfig) -> bool:
    """Whether anything is left open that tuning chooses."""
    has_store = cfg.cache.policy is not CachePolicy.none or cfg.preload.mode is not PreloadMode.none
    return cfg.loader.num_workers == "auto" or cfg.run.num_threads is None or not has_store


def _choose(cfg: TrainConfig, began_s: float, say: Callable[[str], None]) -> Choice:
    say("tuning: measuring what a sample and a step cost here")
    compute, num_cores = build_compute(cfg), cores_per_rank()
    in_processes = cfg.loader.backend is Backend.processes or (
        cfg.loader.backend is Backend.auto and compute.device.type != "cpu"
    )
    usual = _usual(cfg, num_cores)
    cells = list(dict.fromkeys([*_allowed(cfg, all_cells(num_cores, in_processes=in_processes)), usual]))
    with closing(Trials(cfg, compute)) as trials:
        served = trials.serve(num_cores, sorted({cell.num_threads for cell in cells}))
        machine = Machine(
            num_cores=num_cores,
            computes=compute.device.type == "cpu",
            num_threads=usual.num_threads,
            num_epochs=cfg.schedule.epochs,
            keeps_pixels=trials.keeps_pixels,
        )
        keeps_pixels = may_keep_pixels(served.costs, cfg, machine) and _gains(served, cells)
        is_kept = keeps_pixels or cfg.preload.mode is not PreloadMode.none
        if is_kept:
            served = served.with_kept_pixels()
        tried = shortlist(cells, served, beside=usual, count=NUM_CELLS)
        # A store would have to be filled for every trial: there the costs decide, and with one cell nothing has to.
        measured: dict[Cell, list[float]] = {} if is_kept or len(tried) == 1 else {cell: [] for cell in tried}
        for number in range(NUM_ROUNDS if measured else 0):
            if number and time.monotonic() - began_s > MOST_S:
                break
            say(f"tuning: trying {len(tried)} settings, round {number + 1} of {NUM_ROUNDS} at most")
            for cell, rates in measured.items():
                rates.append(trials.measure(cell))
    by_costs = {cell: served.per_sec(cell) for cell in tried}
    rate_of = {cell: believed(by_costs[cell], measured.get(cell, ())) for cell in tried}
    as_good = [cell for cell in tried if rate_of[cell] >= AS_GOOD * max(rate_of.values())]
    return Choice(
        cell=min(as_good, key=lambda cell: cell.num_workers * cell.threads_per_worker + cell.num_threads),
        keeps_pixels=keeps_pixels,
        by_costs=by_costs,
        measured=measured,
        took_s=time.monotonic() - began_s,
    )


def believed(by_costs: float, measured: Sequence[float]) -> float:
    """What a cell is taken to make: the geometric mean of what costs promise and what was measured, if anything was.

    A short trial errs by as much as the costs do, and by chance: alone it chose 12 of 16 readers that wait for
    storage, 0.89 of the best.
    """
    return math.sqrt(by_costs * statistics.median(measured)) if measured else by_costs


def _gains(served: Served, cells: Sequence[Cell]) -> bool:
    """Whether the best cell is faster where pixels are kept."""
    kept = served.with_kept_pixels()
    return max(map(kept.per_sec, cells)) >= WORTH_IT * max(map(served.per_sec, cells))


def _usual(cfg: TrainConfig, num_cores: int) -> Cell:
    """What the run would have without being tuned."""
    return Cell(
        num_workers=cfg.loader.resolved_num_workers(num_cores),
        threads_per_worker=cfg.loader.threads_per_worker,
        num_threads=choose_num_threads(cfg),
    )


def _allowed(cfg: TrainConfig, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that leave what the user has set; where that is the workers, with the threads that go with them."""
    num_threads, num_workers = cfg.run.num_threads, cfg.loader.num_workers
    allowed = [cell if num_threads is None else replace(cell, num_threads=num_threads) for cell in cells]
    if num_workers != "auto":
        each = cfg.loader.threads_per_worker
        allowed = [replace(cell, num_workers=int(num_workers), threads_per_worker=each) for cell in allowed]
    return list(dict.fromkeys(allowed))


def _applied(cfg: TrainConfig, cell: Cell, *, keeps_pixels: bool) -> TrainConfig:
    cfg = configured(cfg, cell)
    return replace(cfg, cache=replace(cfg.cache, policy=CachePolicy.pinned)) if keeps_pixels else cfg


def _as_json(choice: Choice) -> dict[str, Any]:
    return {
        "overrides": choice.overrides,
        "cell": asdict(choice.cell),
        "keeps_pixels": choice.keeps_pixels,
        "took_s": choice.took_s,
        "tried": [
            asdict(cell) | {"by_costs_per_sec": rate, "measured_per_sec": list(choice.measured.get(cell, ()))}
            for cell, rate in choice.by_costs.items()
        ],
    }
