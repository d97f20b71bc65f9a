"""The network."""

from dataclasses import dataclass

from pipeline.config.checks import ConfigError, flag, nearest, whole

MODELS = ("resnet_small", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(kw_only=True)
class Model:
    """Our small ResNet, or one of torchvision's by its name there; weights start random."""

    name: str = "resnet_small"
    """Which network."""
    num_classes: int | None = None
    """Outputs; null: as many as the data has classes."""
    width: int = 32
    """Channels of resnet_small's first stage; the later ones have 2, 4 and 8 times as many. No other network
    uses it."""
    compile: bool = False
    """Whether it runs as torch.compile makes it, which takes its time at the first step."""

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ConfigError(f"model.name has no choice {self.name!r}; {nearest(self.name, MODELS)}")
        if self.num_classes is not None:
            self.num_classes = whole("model.num_classes", self.num_classes, low=2, cure="use null for the data's")
        self.compile = flag("model.compile", self.compile)
        self.width = whole("model.width", self.width, low=8, cure="32 is the usual one")
