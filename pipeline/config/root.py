"""The whole configuration of a pipeline, of a training run, and of a benchmark's trial."""

from dataclasses import dataclass, field

from pipeline.config.bench import Bench, Sweep
from pipeline.config.cache import Cache, CachePolicy, Store
from pipeline.config.checks import ConfigError, choice, flag, whole
from pipeline.config.data import Data
from pipeline.config.loader import Loader
from pipeline.config.model import Model
from pipeline.config.prefetch import Prefetch
from pipeline.config.preload import Preload, PreloadMode
from pipeline.config.report import Report
from pipeline.config.run import Debug, Run
from pipeline.config.training import Dist, Logger, Optim, Schedule
from pipeline.config.transforms import Decode, Transforms

AUTO = "auto"
"""The value of `resume` that stands for the directory of `run.name`."""


@dataclass(kw_only=True)
class PipelineConfig:
    """What `build_pipeline` needs, and all that decides what is in a batch."""

    data: Data
    cache: Cache = field(default_factory=Cache)
    preload: Preload = field(default_factory=Preload)
    loader: Loader = field(default_factory=Loader)
    prefetch: Prefetch = field(default_factory=Prefetch)
    transforms: Transforms = field(default_factory=Transforms)
    seed: int = 0
    """Decides the order of samples and every random crop, flip and colour."""

    def __post_init__(self) -> None:
        self.seed = whole("seed", self.seed, low=0, cure="0 is the usual one")
        if self.transforms.decode is Decode.scaled and self.cache.store is Store.decoded:
            raise ConfigError(
                "cache.store=decoded keeps whole images, which transforms.decode=scaled never makes; "
                "use cache.store=encoded or transforms.decode=full"
            )
        packs_pixels = self.preload.mode is PreloadMode.pack and self.cache.store is Store.decoded
        if packs_pixels and self.cache.policy is not CachePolicy.none:
            raise ConfigError(
                f"cache.policy={self.cache.policy} would keep what preload=pack with cache.store=decoded maps already; "
                "use cache=none, or cache.store=encoded"
            )


@dataclass(kw_only=True)
class TrainConfig(PipelineConfig):
    """What `train.py` runs."""

    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    logger: Logger = field(default_factory=Logger)
    report: Report = field(default_factory=Report)
    dist: Dist = field(default_factory=Dist)
    run: Run = field(default_factory=Run)
    resume: str | None = None
    """Continue a run from its last checkpoint: that of `run.name` (auto), or that in a directory; null: begin."""
    init_from: str | None = None
    """File with weights to begin with: a checkpoint of another run, or a saved state_dict; null: random weights."""
    debug: Debug | None = None
    """Which `debug=NAME` set the other values: its run says so in its summary, and of overfit whether it did."""
    tune: bool = False
    """Measure for some seconds, and choose workers, torch's threads and the cache by it, where they are not set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.debug is not None:
            self.debug = choice("debug", self.debug, Debug)
        self.tune = flag("tune", self.tune)
        if self.tune and (self.dist.nproc > 1 or self.run.evaluate_only):
            raise ConfigError(
                "tune=true is for one process that trains; tune without dist.nproc, then give what it says"
            )
        largest = max((size for _, size in self.schedule.sizes or []), default=0)
        if self.transforms.max_side is not None and largest > self.transforms.max_side:
            raise ConfigError(
                f"schedule.sizes asks for {largest} pixels of images that transforms.max_side="
                f"{self.transforms.max_side} makes smaller; use a higher transforms.max_side, or null"
            )
        if self.resume in ("", "True", "False"):  # what true and false are as text
            raise ConfigError(
                f"resume must be auto or a run's directory, got {self.resume!r}; resume=auto continues run.name, null "
                "begins a new run"
            )
        if self.resume == AUTO and self.run.name is None:
            raise ConfigError("resume=auto needs to know which run: add run.name=NAME, or use resume=DIR")
        if self.run.evaluate_only and (self.init_from is None or self.resume is not None):
            raise ConfigError("run.evaluate_only needs weights and begins nothing: give init_from=FILE, and no resume")


@dataclass(kw_only=True)
class BenchConfig(TrainConfig):
    """What one trial of `bench.py` runs: any experiment of `train.py`, and how to measure it."""

    bench: Bench = field(default_factory=Bench)
    sweep: Sweep = field(default_factory=Sweep)

    def __post_init__(self) -> None:
        if self.resume is not None:
            raise ConfigError(f"resume={self.resume} is for train.py: a benchmark is not continued; leave it out")
        if self.debug is not None:
            raise ConfigError(f"debug={self.debug} is for train.py: a benchmark has no use for it; leave it out")
        if self.schedule.sizes is not None:
            raise ConfigError("schedule.sizes is for train.py: a benchmark has images of transforms.size; use null")
        super().__post_init__()
        if self.dist.nproc > 1:
            raise ConfigError(f"dist.nproc={self.dist.nproc} is for train.py: bench.py measures one process; use 1")
