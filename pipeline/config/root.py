"""The whole configuration of a pipeline, of a training run, and of a benchmark's trial."""

from dataclasses import dataclass, field

from pipeline.config.cache import Cache, Store
from pipeline.config.checks import ConfigError, whole
from pipeline.config.data import Data
from pipeline.config.loader import Loader
from pipeline.config.model import Model
from pipeline.config.prefetch import Prefetch
from pipeline.config.preload import Preload
from pipeline.config.run import Bench, Run
from pipeline.config.training import Dist, Logger, Optim, Schedule
from pipeline.config.transforms import Decode, Transforms
from pipeline.config.unfinished import refuse_unfinished


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
        refuse_unfinished(self)


@dataclass(kw_only=True)
class TrainConfig(PipelineConfig):
    """What `train.py` runs."""

    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    logger: Logger = field(default_factory=Logger)
    dist: Dist = field(default_factory=Dist)
    run: Run = field(default_factory=Run)


@dataclass(kw_only=True)
class BenchConfig(TrainConfig):
    """What one trial of `bench.py` runs: any experiment of `train.py`, and how to measure it."""

    bench: Bench = field(default_factory=Bench)
