"""Who makes batches, and in which order."""

from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral

from pipeline.config.checks import ConfigError, choice, flag, real, whole


class Backend(StrEnum):
    """Where workers run: threads of this process, processes of their own, or what suits the run (auto)."""

    auto = "auto"
    threads = "threads"
    processes = "processes"


class SamplerName(StrEnum):
    """The order: shuffled every epoch, as stored, by the samples' weights, or every class equally often."""

    shuffle = "shuffle"
    sequential = "sequential"
    weighted = "weighted"
    balanced = "balanced"


@dataclass(kw_only=True)
class Loader:
    """Workers and batches. Only `batch_size`, `drop_last` and `sampler` decide what is in a batch."""

    backend: Backend = Backend.auto
    """Where workers run."""
    num_workers: int | str = "auto"
    """How many workers; 0: no worker, batches are made in the loop; auto: `worker_scale` for each core."""
    worker_scale: int = 1
    """Workers for each core when `num_workers` is auto; more than 1 hides a disk's latency."""
    batch_size: int = 64
    """Samples in a batch, for each rank."""
    prefetch_factor: int = 2
    """Batches in flight beyond the one the loop holds."""
    threads_per_worker: int = 1
    """Threads of each worker process."""
    max_restarts: int = 3
    """How often dead worker processes are replaced in a run before it stops."""
    stall_timeout_s: float = 300.0
    """Seconds that one sample, or the start of a worker, may take before the run stops."""
    drop_last: bool = False
    """Leave out an epoch's last batch if it is not full."""
    sampler: SamplerName = SamplerName.shuffle
    """The order of training samples; evaluation is always sequential."""

    def __post_init__(self) -> None:
        self.backend = choice("loader.backend", self.backend, Backend)
        self.sampler = choice("loader.sampler", self.sampler, SamplerName)
        self.num_workers = _num_workers(self.num_workers)
        for name, low, cure in (
            ("worker_scale", 1, "1 makes one worker for each core"),
            ("batch_size", 1, "64 is the usual one"),
            ("prefetch_factor", 1, "2 is the usual one"),
            ("threads_per_worker", 1, "1 is the usual one"),
            ("max_restarts", 0, "0 stops at the first dead worker"),
        ):
            setattr(self, name, whole(f"loader.{name}", getattr(self, name), low=low, cure=cure))
        self.stall_timeout_s = real(
            "loader.stall_timeout_s", self.stall_timeout_s, low=0, low_open=True, cure="300 is five minutes"
        )
        self.drop_last = flag("loader.drop_last", self.drop_last)

    def resolved_num_workers(self, num_cores: int) -> int:
        """The number of workers on a machine that lends this process `num_cores` cores."""
        return num_cores * self.worker_scale if self.num_workers == "auto" else int(self.num_workers)


def _num_workers(value: int | str) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ConfigError(f"loader.num_workers must be auto or a whole number >= 0, got {value!r}; 0 is none")
    return int(value)
