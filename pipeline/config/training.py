"""How the network is trained: the optimizer, its schedule, what is logged, over how many processes."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.config.checks import ConfigError, choice, flag, real, whole


class OptimName(StrEnum):
    """The optimizer, by torch's name in lower case."""

    sgd = "sgd"
    adamw = "adamw"


class Amp(StrEnum):
    """Arithmetic: float32 throughout (off), torch's autocast to bfloat16 (bf16), or to float16 with a scaler (fp16)."""

    off = "off"
    bf16 = "bf16"
    fp16 = "fp16"


class ScheduleName(StrEnum):
    """The learning rate after warm-up: half a cosine down to 0, constant, or torch's one-cycle policy."""

    cosine = "cosine"
    constant = "constant"
    one_cycle = "one_cycle"


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
    num_parts: int = 1
    """Parts in which a rank's batch goes through the model, to save memory; their gradients are added."""
    average_decay: float | None = None
    """Decay of a moving average of the weights (EMA), which is then what is evaluated; null: none."""
    mixup: float = 0.0
    """Alpha of MixUp; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off. With both, each batch gets one of them."""

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
        self.num_parts = whole("optim.num_parts", self.num_parts, low=1, cure="1 takes the batch as a whole")
        if self.average_decay is not None:
            self.average_decay = real(
                "optim.average_decay", self.average_decay, low=0, high=1, high_open=True, cure="null is off"
            )
        self.mixup = real("optim.mixup", self.mixup, low=0, cure="0 is off")
        self.cutmix = real("optim.cutmix", self.cutmix, low=0, cure="0 is off")


@dataclass(kw_only=True)
class Schedule:
    """How long, and how the learning rate moves."""

    name: ScheduleName = ScheduleName.cosine
    """The learning rate after warm-up."""
    epochs: int = 8
    """Passes over the training samples."""
    warmup_epochs: float = 1.0
    """Epochs, or a part of one, in which the learning rate rises linearly from 0; 0 is off."""
    sizes: list[list[int]] | None = None
    """Pairs of an epoch, counted from 1, and the height and width in pixels that training images have from it on; null:
    `transforms.size`, which is always evaluation's."""

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
        if self.name is ScheduleName.one_cycle and not 0 < self.warmup_epochs < self.epochs:
            raise ConfigError(
                f"schedule.warmup_epochs={self.warmup_epochs:g} leaves one_cycle no rise or no fall; "
                f"take more than 0 and less than schedule.epochs={self.epochs}"
            )
        if self.sizes is not None:
            _check_sizes(self.sizes, self.epochs)


def _check_sizes(sizes: list[list[int]], epochs: int) -> None:
    cure = "[[1,32],[5,48]] is 32 pixels, and 48 from epoch 5 on; null is transforms.size"
    if not sizes or any(len(pair) != 2 for pair in sizes):
        raise ConfigError(f"schedule.sizes must be pairs of an epoch and a size, got {sizes}; {cure}")
    for first, size in sizes:
        whole("an epoch in schedule.sizes", first, low=1, cure=cure)
        whole("a size in schedule.sizes", size, low=8, cure=cure)
    starts = [first for first, _ in sizes]
    if starts[0] != 1 or sorted(set(starts)) != starts:
        raise ConfigError(f"schedule.sizes must begin with epoch 1 and go on in order, got {sizes}; {cure}")
    if starts[-1] > epochs:
        raise ConfigError(
            f"schedule.sizes changes at epoch {starts[-1]}, after the last of schedule.epochs={epochs}; "
            "leave that out, or train for more epochs"
        )


@dataclass(kw_only=True)
class Logger:
    """What a run writes besides `summary.json`."""

    csv: bool = True
    """`metrics.csv`, a line for each epoch."""
    plot: bool = True
    """`curves.png`, loss and top-1 over epochs."""
    tensorboard: bool = False
    """`tensorboard/`, the same numbers for TensorBoard, which the extra of that name installs."""
    extra: list[str] = field(default_factory=list)
    """Loggers of one's own, each `package.module:factory`; the factory is called with nothing."""
    every_steps: int = 50
    """Steps between two lines of progress where there is no terminal, and between what loggers hear of steps."""

    def __post_init__(self) -> None:
        self.csv = flag("logger.csv", self.csv)
        self.plot = flag("logger.plot", self.plot)
        self.tensorboard = flag("logger.tensorboard", self.tensorboard)
        for name in self.extra:
            if not re.fullmatch(r"[\w.]+:[\w.]+", name):
                raise ConfigError(f"logger.extra must be package.module:factory, got {name!r}")
        if len(set(self.extra)) < len(self.extra):
            raise ConfigError(f"logger.extra names one logger twice, got {self.extra}; leave out the second")
        self.every_steps = whole("logger.every_steps", self.every_steps, low=1, cure="50 is the usual one")


@dataclass(kw_only=True)
class Dist:
    """Over how many processes a run is spread."""

    nproc: int = 1
    """Processes on this machine, each with `loader.batch_size` samples of a step."""

    def __post_init__(self) -> None:
        self.nproc = whole("dist.nproc", self.nproc, low=1, cure="1 is a run without others")
