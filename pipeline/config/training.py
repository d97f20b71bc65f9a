"""How the network is trained: the optimizer, its schedule, what is logged, over how many processes."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.config.checks import choice, flag, real, whole


class OptimName(StrEnum):
    """The optimizer, by torch's name in lower case."""

    sgd = "sgd"
    adamw = "adamw"


class Amp(StrEnum):
    """Arithmetic: float32 throughout (off), or torch's autocast to bfloat16 (bf16)."""

    off = "off"
    bf16 = "bf16"


class ScheduleName(StrEnum):
    """The learning rate after warm-up: half a cosine down to 0, or constant."""

    cosine = "cosine"
    constant = "constant"


@dataclass(kw_only=True)
class Optim:
    """The optimizer and what surrounds a step."""

    name: OptimName = OptimName.sgd
    """Which optimizer."""
    lr: float = 1.6
    """Learning rate for a global batch of 256; the one used is `lr * batch_size * nproc / 256`."""
    momentum: float = 0.9
    """Momentum of sgd, in [0, 1); adamw does not use it."""
    weight_decay: float = 5e-4
    """Weight decay as torch defines it for the optimizer; biases and normalisation layers have none."""
    nesterov: bool = True
    """Nesterov's momentum; adamw does not use it."""
    label_smoothing: float = 0.1
    """Part of a label spread over all classes, in [0, 1); 0 is off."""
    amp: Amp = Amp.off
    """Arithmetic of the forward pass."""
    channels_last: bool = True
    """Weights in the layout that images arrive in; faster for convolutions."""
    grad_clip: float | None = None
    """Greatest norm of all gradients together; null: not clipped."""

    def __post_init__(self) -> None:
        self.name = choice("optim.name", self.name, OptimName)
        self.amp = choice("optim.amp", self.amp, Amp)
        self.lr = real("optim.lr", self.lr, low=0, low_open=True, cure="1.6 is the usual one for sgd")
        self.momentum = real("optim.momentum", self.momentum, low=0, high=1, high_open=True, cure="0 is off")
        self.weight_decay = real("optim.weight_decay", self.weight_decay, low=0, cure="0 is off")
        self.nesterov = flag("optim.nesterov", self.nesterov)
        self.label_smoothing = real(
            "optim.label_smoothing", self.label_smoothing, low=0, high=1, high_open=True, cure="0 is off"
        )
        self.channels_last = flag("optim.channels_last", self.channels_last)
        if self.grad_clip is not None:
            self.grad_clip = real("optim.grad_clip", self.grad_clip, low=0, low_open=True, cure="null is off")


@dataclass(kw_only=True)
class Schedule:
    """How long, and how the learning rate moves."""

    name: ScheduleName = ScheduleName.cosine
    """The learning rate after warm-up."""
    epochs: int = 8
    """Passes over the training samples."""
    warmup_epochs: float = 1.0
    """Epochs, or a part of one, in which the learning rate rises linearly from 0; 0 is off."""

    def __post_init__(self) -> None:
        self.name = choice("schedule.name", self.name, ScheduleName)
        self.epochs = whole("schedule.epochs", self.epochs, low=1, cure="run.max_steps makes a run shorter")
        self.warmup_epochs = real(
            "schedule.warmup_epochs",
            self.warmup_epochs,
            low=0,
            high=self.epochs,
            cure="at most schedule.epochs, so lower both together; 0 is off",
        )


@dataclass(kw_only=True)
class Logger:
    """What a run writes besides `summary.json`."""

    csv: bool = True
    """`metrics.csv`, a line for each epoch."""
    plot: bool = True
    """`curves.png`, loss and top-1 over epochs."""
    every_steps: int = 50
    """Steps between two lines of progress where there is no terminal."""

    def __post_init__(self) -> None:
        self.csv = flag("logger.csv", self.csv)
        self.plot = flag("logger.plot", self.plot)
        self.every_steps = whole("logger.every_steps", self.every_steps, low=1, cure="50 is the usual one")


@dataclass(kw_only=True)
class Dist:
    """Over how many processes a run is spread."""

    nproc: int = 1
    """Processes on this machine."""

    def __post_init__(self) -> None:
        self.nproc = whole("dist.nproc", self.nproc, low=1, cure="1 is a run without others")
