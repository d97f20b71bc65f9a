"""How `bench.py` measures one configuration, and how it compares many."""

from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.config.checks import ConfigError, choice, flag, real, whole


class ContenderName(StrEnum):
    """Whose loader is measured: this one, or another that does the same work on the same files."""

    headrace = "headrace"
    torch = "torch"
    dali = "dali"
    ffcv = "ffcv"
    turboloader = "turboloader"
    spdl = "spdl"


class BenchMode(StrEnum):
    """What takes the batches: a loop that reads every byte (load), or the training of `model` (train)."""

    load = "load"
    train = "train"


AUTO = "auto"


@dataclass(kw_only=True)
class Bench:
    """How a trial of `bench.py` is measured."""

    contender: ContenderName = ContenderName.headrace
    """Whose loader is measured; torch is its DataLoader with torchvision on PIL."""
    mode: BenchMode = BenchMode.load
    """What takes the batches."""
    warmup: int | str = AUTO
    """Batches made and thrown away before the clock starts; auto: 10, or a whole epoch where a cache fills."""
    repeats: int | str = 7
    """Timed passes, in a sweep each in a process of its own; auto: until a difference of `tell_pct` would be seen."""
    batches: int | None = 50
    """Batches in a timed pass; null: a whole epoch."""
    turns: int = 1
    """Parts that a sweep's timed pass is made of, each of `batches`, taken in turn with the other trials, whose
    processes are all in memory meanwhile; 1: one process after another."""
    cold: bool = False
    """Measure also with the files dropped from the page cache before each pass, in columns of their own."""
    references: bool = True
    """Measure the decode ceiling and the resident batch as well, in the same process."""
    tell_pct: float = 10.0
    """The smallest difference between two trials, in percent, that matters here."""
    budget_s: float = 900.0
    """Seconds after which `repeats=auto` begins no further round."""
    timeout_s: float = 600.0
    """Seconds after which a sweep kills a trial's process and records the trial as failed."""
    objective: str = "samples_per_sec"
    """The number of `result.json` that a sweeper optimises."""

    def __post_init__(self) -> None:
        self.contender = choice("bench.contender", self.contender, ContenderName)
        self.mode = choice("bench.mode", self.mode, BenchMode)
        self.warmup = _whole_or_auto("bench.warmup", self.warmup, low=0, cure="auto chooses")
        self.repeats = _whole_or_auto("bench.repeats", self.repeats, low=1, cure="7 is the usual one, auto chooses")
        if self.batches is not None:
            self.batches = whole("bench.batches", self.batches, low=1, cure="null times a whole epoch")
        self.turns = whole("bench.turns", self.turns, low=1, cure="1 runs one process after another")
        self.cold = flag("bench.cold", self.cold)
        self.references = flag("bench.references", self.references)
        self.tell_pct = real(
            "bench.tell_pct", self.tell_pct, low=0, low_open=True, high=100, cure="10 is the usual one"
        )
        self.budget_s = real("bench.budget_s", self.budget_s, low=0, low_open=True, cure="900 is 15 minutes")
        self.timeout_s = real("bench.timeout_s", self.timeout_s, low=0, low_open=True, cure="600 is ten minutes")
        if self.mode is BenchMode.train and self.contender not in (ContenderName.headrace, ContenderName.torch):
            raise ConfigError(
                f"bench.mode=train is not there for bench.contender={self.contender}; "
                "use headrace, torch, or bench.mode=load"
            )


@dataclass(kw_only=True)
class Sweep:
    """How the trials of a sweep are compared."""

    resume: str | None = None
    """Directory of a sweep with trials that failed or never ran: only those are measured; null: all."""
    baseline: str | None = None
    """What the others are compared with: a trial's number, or the overrides that are its own; null: the first."""
    vs_previous: bool = False
    """Compare each row also with the row above it, where rows add one thing after another."""
    published: dict[str, float] = field(default_factory=dict)
    """Speed-ups over the baseline that others have published, by the row's label; shown beside ours."""

    def __post_init__(self) -> None:
        self.vs_previous = flag("sweep.vs_previous", self.vs_previous)
        for label, ratio in self.published.items():
            real(f"sweep.published.{label}", ratio, low=0, low_open=True, cure="2 is twice as fast")


def _whole_or_auto(key: str, value: int | str, *, low: int, cure: str) -> int | str:
    if value == AUTO:
        return AUTO
    if isinstance(value, str):
        raise ConfigError(f"{key} must be auto or a whole number >= {low}, got {value!r}; {cure}")
    return whole(key, value, low=low, cure=cure)
