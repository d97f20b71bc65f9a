"""A run as a whole: its name, its device, its length, and whether it is to try something out."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.config.checks import ConfigError, choice, flag, whole


class Device(StrEnum):
    """Where the network runs: the GPU if there is one (auto), or the one named."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Debug(StrEnum):
    """A run to try something out: a few steps through everything (fast), or one batch until it is learnt (overfit)."""

    fast = "fast"
    overfit = "overfit"


@dataclass(kw_only=True)
class Run:
    """A run as a whole."""

    name: str | None = None
    """Fixes the directory, `outputs/train/NAME`; null: date and time."""
    device: Device = Device.auto
    """Where the network runs."""
    seed: int = 0
    """Seed of the network's first weights; batches follow the top-level `seed`."""
    num_threads: int | None = None
    """torch's threads within an operation; null: the cores that the loader's workers leave, at least 1, and in a
    resumed run as many as it had before."""
    max_steps: int | None = None
    """Stop after so many steps in all; null: after the last epoch."""
    save_every_steps: int | None = None
    """Steps between two checkpoints within an epoch; null: at each epoch's end only."""
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    evaluate_only: bool = False
    """Evaluate the weights of `init_from` on the validation split, and train nothing."""
    keep_top: int = 0
    """So many checkpoints of the best epochs are kept beside best.pt and last.pt, named by epoch."""
    deterministic: bool = False
    """Refuse operations of torch whose results differ from run to run; slower on a GPU, the CPU's are so anyway."""

    def __post_init__(self) -> None:
        self.device = choice("run.device", self.device, Device)
        self.seed = whole("run.seed", self.seed, low=0, cure="0 is the usual one")
        self.eval_every = whole("run.eval_every", self.eval_every, low=1, cure="1 is after every epoch")
        self.evaluate_only = flag("run.evaluate_only", self.evaluate_only)
        self.keep_top = whole("run.keep_top", self.keep_top, low=0, cure="0 keeps best.pt and last.pt")
        self.deterministic = flag("run.deterministic", self.deterministic)
        if self.num_threads is not None:
            self.num_threads = whole("run.num_threads", self.num_threads, low=1, cure="null chooses it")
        if self.max_steps is not None:
            self.max_steps = whole("run.max_steps", self.max_steps, low=1, cure="null runs every epoch")
        if self.save_every_steps is not None:
            self.save_every_steps = whole(
                "run.save_every_steps", self.save_every_steps, low=1, cure="null saves at each epoch's end"
            )
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise ConfigError(f"run.name must name one directory, got {self.name!r}; leave out any /")
