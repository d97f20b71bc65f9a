"""The networks `train.py` can train: a small ResNet of our own, and torchvision's by name."""

from __future__ import annotations

from collections.abc import Callable

import torchvision.models
from torch import Tensor, nn

from pipeline.config import ConfigError, Model
from pipeline.config.checks import nearest
from pipeline.config.model import MODELS


def build_model(model: Model, num_classes: int) -> nn.Module:
    """Builds the network `model.name`, freshly initialised from torch's global generator.

    It takes float images `(B, 3, H, W)` and gives logits `(B, num_classes)`. `model.width` is that of
    `resnet_small`; torchvision's networks have their own.

    Raises:
        ConfigError: there is no model of that name.
    """
    if model.name not in MODELS:
        raise ConfigError(f"model.name has no choice {model.name!r}; {nearest(model.name, MODELS)}")
    if model.name == "resnet_small":
        return ResNetSmall(num_classes, width=model.width)
    build: Callable[..., nn.Module] = getattr(torchvision.models, model.name)
    return build(weights=None, num_classes=num_classes)


class ResNetSmall(nn.Module):
    """ResNet-18 (He et al. 2015) for images of about 64 pixels: half as wide, with a 3x3 stem.

    A 3x3 stem of stride 2 and a max-pool divide the sides by 4, and four stages of two basic blocks, of
    `width`, 2, 4 and 8 times `width` channels, by 8 more: 64 pixels end as 2x2. The max-pool is what makes
    it fast on a CPU: without it a step takes three times as long. Width 32 has 2.8 million parameters.
    """

    def __init__(self, num_classes: int, *, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential(
            _stage(width, width, stride=1),
            _stage(width, 2 * width, stride=2),
            _stage(2 * width, 4 * width, stride=2),
            _stage(4 * width, 8 * width, stride=2),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, num_classes))
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Maps float images `(B, 3, H, W)` to logits `(B, num_classes)`."""
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a strided 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        activated: Tensor = self.relu(residual + self.shortcut(features))
        return activated


def _stage(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(in_channels, out_channels, stride=stride),
        _BasicBlock(out_channels, out_channels, stride=1),
    )


def _initialise(network: nn.Module) -> None:
    """He initialisation; each block starts as its shortcut (Goyal et al. 2017, section 5.1)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, _BasicBlock):
            nn.init.zeros_(module.norm2.weight)
