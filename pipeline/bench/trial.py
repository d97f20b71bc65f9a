"""One trial: a loader's throughput, and what it costs, in passes over batches that are all consumed."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path

import torch

from pipeline.bench import peers
from pipeline.bench.cold import Files, check_cold
from pipeline.bench.contender import Contender
from pipeline.bench.counts import Counts
from pipeline.bench.memory import process_age_s, pss_mb
from pipeline.bench.noise import is_known
from pipeline.bench.passes import Feed, Pass, Take, joined, make_step, read_batch, run_pass, settle, wait_until_idle
from pipeline.bench.peers import headrace
from pipeline.bench.peers.headrace import PipelineContender
from pipeline.bench.references import References
from pipeline.bench.result import COUNTED, REPEAT, Result, check_objective, greatest, median, summary
from pipeline.bench.trial_table import trial_table
from pipeline.build_source import open_source
from pipeline.config import BenchConfig, CachePolicy, ConfigError, PreloadMode
from pipeline.config.bench import AUTO, BenchMode, ContenderName
from pipeline.sources import Source
from pipeline.training.build import choose_num_threads
from pipeline.training.compute import choose_device
from pipeline.training.environment import commit, host, plain, versions
from pipeline.training.loop_clock import Clock
from pipeline.training.replacing import replace_json

WARMUP_BATCHES = 10
MIN_PASSES, MAX_PASSES = 7, 100
"""Of `bench.repeats=auto` in one process."""

NUM_BORDERS = 3
"""Epochs' borders that are crossed where no timed pass crosses one, and batches before and behind each."""
BEFORE_BORDER, BEHIND_BORDER = 8, 4

WaitTurn = Callable[[], None]
"""Returns when this process is to work."""

_log = logging.getLogger(__name__)


def run_trial(cfg: BenchConfig, run_dir: Path) -> float:
    """Measure `cfg`, write `result.json` into `run_dir`, print a table, and return the number `bench.objective` names.

    NaN where this trial has no such number. Sets torch's threads.

    Raises:
        ConfigError: `cfg` cannot be measured here: its loader is not installed, its files cannot be dropped, ...
    """
    check_objective(cfg)
    repeats = None if cfg.bench.repeats == AUTO else int(cfg.bench.repeats)
    result = measure(cfg, repeats=repeats, references=cfg.bench.references)
    replace_json(run_dir / "result.json", result)
    sys.stdout.write(trial_table(result) + f"report: {run_dir / 'result.json'}\n")
    objective = result[cfg.bench.objective]
    if objective is None:
        _log.warning("bench.objective=%s is null in this trial", cfg.bench.objective)
        return math.nan
    return float(objective)


def measure(
    cfg: BenchConfig,
    *,
    repeats: int | None,
    references: bool,
    started_s: float | None = None,
    wait_turn: WaitTurn = lambda: None,
) -> Result:
    """Open the contender of `cfg`, warm it up, measure it in `repeats` passes, and close it.

    Args:
        cfg: the whole configuration.
        repeats: timed passes; None: until the interval of their rates is narrow, or `bench.budget_s` is spent.
        references: whether bare decoding and a resident batch are measured as well.
        started_s: when this process began, on the clock of `time.perf_counter`; None: as the system says.
        wait_turn: called, with this process at rest, before each of a pass's `bench.turns` parts and before what is
            measured beside it; other trials' processes may work until it returns.

    Raises ConfigError like `run_trial`.
    """
    clock = time.perf_counter
    started_s = clock() - process_age_s() if started_s is None else started_s
    check_cold(cfg)
    _check_installed(cfg.bench.contender)
    device = choose_device(cfg.run.device)
    # A loop that only reads needs no core that the loader could use.
    torch.set_num_threads(choose_num_threads(cfg) if cfg.bench.mode is BenchMode.train else 1)
    peers.load(cfg)
    before_s = clock() - started_s
    with ExitStack() as stack:
        contender, source, build_s = _opened(cfg, device, stack)
        trial = Trial(cfg, contender, source, wait_turn=wait_turn)
        trial.run(repeats=repeats, references=references)
        first_batch_s = build_s + trial.first_wait_s
        trial.repeats[0] |= {"first_batch_s": first_batch_s, "first_batch_from_start_s": before_s + first_batch_s}
        return {**_measured(trial, build_s=build_s), **_facts(cfg, contender, source)}


def _opened(cfg: BenchConfig, device: torch.device, stack: ExitStack) -> tuple[Contender, Source, float]:
    """The contender, the samples that it reads, and the seconds that its construction took; `stack` closes them."""
    if cfg.bench.contender is ContenderName.headrace:
        headrace.prepare(cfg)
        began_s = time.perf_counter()
        own = stack.enter_context(headrace.open_pipeline(cfg, device))
        return own, own.pipeline.source, time.perf_counter() - began_s
    peers.prepare(cfg)
    source = open_source(cfg.data, "train")
    if hasattr(source, "close"):
        stack.callback(source.close)
    began_s = time.perf_counter()
    contender = stack.enter_context(peers.open_contender(cfg, device))
    return contender, source, time.perf_counter() - began_s


def _check_installed(name: ContenderName) -> None:
    if name is ContenderName.headrace:
        return
    interpreter = peers.interpreter(name)
    if interpreter is None:
        raise ConfigError(peers.why_not(name))
    if os.path.abspath(interpreter) != os.path.abspath(sys.executable):
        raise ConfigError(f"bench.contender={name} needs another Python: run bench.py with {interpreter}")


def _measured(trial: Trial, *, build_s: float) -> Result:
    return {
        "status": "completed",
        **summary(trial.repeats),
        **trial.counted(),
        "cold_resident_pct": trial.files.stayed_pct,
        "build_s": build_s,
        "repeats": [{key: repeat.get(key) for key in REPEAT} for repeat in trial.repeats],
    }


def _facts(cfg: BenchConfig, contender: Contender, source: Source) -> Result:
    return {
        "contender": str(cfg.bench.contender),
        "num_workers": contender.num_workers,
        "num_samples": contender.num_samples,
        "batch_size": cfg.loader.batch_size,
        "served_from": contender.served_from,
        "resize": contender.resize,
        "layout": contender.layout,
        "deviations": contender.deviations,
        "dataset": source.fingerprint(),
        "config": plain(cfg),
        "versions": versions(),
        "host": host(),
        "commit": commit(),
    }


class Trial:
    """The measuring of one contender that is open, over samples of `source`."""

    def __init__(
        self,
        cfg: BenchConfig,
        contender: Contender,
        source: Source,
        *,
        clock: Clock = time.perf_counter,
        wait_turn: WaitTurn = lambda: None,
    ) -> None:
        self.repeats: list[Result] = []
        self.first_wait_s = math.nan
        """Seconds until the first batch of all, from asking for it."""
        self._cfg = cfg
        self._contender = contender
        self._source = source
        self._clock = clock
        self._wait_turn = wait_turn
        self.files = Files(contender, source)
        self._feed = Feed(contender.stream, contender.batches_per_epoch)
        self._num_batches = cfg.bench.batches or contender.batches_per_epoch
        # Loaders whose workers make whole batches begin a pass in step: a last, incomplete turn of them would count as
        # a whole one.
        self._num_batches += -self._num_batches % max(1, contender.num_workers)
        self._take: Take = read_batch
        if cfg.bench.mode is BenchMode.train:
            self._take = make_step(cfg, source, batches_per_epoch=contender.batches_per_epoch)
        self._counts: Counts | None = None
        if isinstance(contender, PipelineContender):
            self._counts = Counts(contender.pipeline, is_preloaded=cfg.preload.mode is PreloadMode.ram)
        self._memory_mb: list[float | None] = []
        self._timed: Pass | None = None
        """A timed pass that is not in `repeats` yet."""

    def run(self, *, repeats: int | None, references: bool) -> None:
        """Take the first batch, warm up, and measure `repeats` times; None: as often as it takes."""
        began_s = self._clock()
        self._begin()
        beside = References(self._cfg, self._source, clock=self._clock) if references else None
        while self._wants_more(repeats, began_s):
            self._repeat(beside)
        if all(repeat["epoch_gap_s"] is None for repeat in self.repeats):
            self.repeats[0]["epoch_gap_s"] = self._gap_after_jumps_s()

    def counted(self) -> dict[str, float | None]:
        """What the loader itself counted in the timed passes; null for one that is not ours."""
        return dict.fromkeys(COUNTED) if self._counts is None else self._counts.summary()

    def _begin(self) -> None:
        if self._cfg.bench.warmup == 0:  # then nothing is off the clock, the first batch neither
            first = self._timed = self._timed_pass()
        else:
            first = run_pass(self._feed, self._take, 1, clock=self._clock)
        self.first_wait_s = first.waits_s[0]
        self._look_at_memory()
        if self._cfg.bench.cold:
            self.files.check(self._feed)  # now, before anything takes long
        self.files.warm()
        for images, labels in islice(self._feed, max(0, self._num_warmup() - 1)):
            self._take(images, labels)
        self._look_at_memory()

    def _num_warmup(self) -> int:
        cfg, contender = self._cfg, self._contender
        if cfg.bench.warmup != AUTO:
            return int(cfg.bench.warmup)
        fills = cfg.cache.policy is not CachePolicy.none and cfg.preload.mode is not PreloadMode.ram
        if fills and self._counts is not None:
            return max(WARMUP_BATCHES, contender.batches_per_epoch + contender.num_ready)
        return WARMUP_BATCHES

    def _wants_more(self, repeats: int | None, began_s: float) -> bool:
        num_done = len(self.repeats)
        if repeats is not None:
            return num_done < repeats
        if not MIN_PASSES <= num_done < MAX_PASSES:
            return num_done < MIN_PASSES
        rates = [repeat["samples_per_sec"] for repeat in self.repeats]
        return self._clock() - began_s < self._cfg.bench.budget_s and not is_known(rates, self._cfg.bench.tell_pct)

    def _repeat(self, beside: References | None) -> None:
        parts = [self._timed] if self._timed is not None else []
        self._timed = None
        for _ in range(self._cfg.bench.turns - len(parts)):
            self._rest()
            settle(self._feed, self._take, self._contender.num_ready)
            parts.append(self._timed_pass())
        timed = joined(parts)
        self._look_at_memory()
        self._rest()
        is_training = self._cfg.bench.mode is BenchMode.train
        self.repeats.append(
            {
                "round": len(self.repeats),
                "sitting": None,
                "samples_per_sec": timed.samples_per_sec,
                "samples_per_cpu_sec": timed.samples_per_cpu_sec,
                "peak_pss_mb": greatest(self._memory_mb),
                "epoch_gap_s": median(timed.gaps_s),
                "data_wait_pct": timed.data_wait_pct if is_training else None,
                "cache_hit_pct": None if self._counts is None else self._counts.hit_pct(),
            }
        )
        self._memory_mb.clear()
        if beside is not None:
            self.repeats[-1] |= beside.measure(next(self._feed), self._take, self._num_batches)
        if self._cfg.bench.cold:
            cold = self.files.cold_pass(self._feed, self._take, self._num_batches, clock=self._clock)
            self.repeats[-1]["cold_samples_per_sec"] = cold.samples_per_sec
            self.files.warm()

    def _rest(self) -> None:
        wait_until_idle()
        self._wait_turn()

    def _timed_pass(self) -> Pass:
        with nullcontext() if self._counts is None else self._counts.during(self._feed):
            return run_pass(self._feed, self._take, self._num_batches, clock=self._clock)

    def _look_at_memory(self) -> None:
        self._memory_mb.append(pss_mb())

    def _gap_after_jumps_s(self) -> float | None:
        """What the border between two epochs costs, by jumping close to it; None for a loader that cannot jump."""
        contender, gaps_s = self._contender, []
        if not isinstance(contender, PipelineContender):
            return None
        for _ in range(NUM_BORDERS):
            step = max(0, contender.batches_per_epoch - contender.num_ready - BEFORE_BORDER)
            contender.jump(step)
            self._feed = Feed(contender.stream, contender.batches_per_epoch, step=step)
            settle(self._feed, self._take, contender.num_ready)
            num_batches = self._feed.left_in_epoch + BEHIND_BORDER
            gaps_s += run_pass(self._feed, self._take, num_batches, clock=self._clock).gaps_s
        return median(gaps_s)
