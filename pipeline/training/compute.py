"""Where and in which precision the model runs: device, autocast, memory format."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import ConfigError, Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """The device, `amp_dtype` of autocast (None: autocast is off) and whether images are channels-last."""

    device: torch.device
    amp_dtype: torch.dtype | None = None
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the weights and of the images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass and its loss; gradients and weights stay float32."""
        return torch.autocast(
            self.device.type, dtype=self.amp_dtype or torch.bfloat16, enabled=self.amp_dtype is not None
        )

    def place(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device in the model's memory format; copies nothing that is already there."""
        images = images.to(self.device, memory_format=self.memory_format, non_blocking=True)
        return images, labels.to(self.device, non_blocking=True)


def choose_device(name: Device) -> torch.device:
    """The device for `run.device`; `auto` is CUDA where torch sees one, else the CPU.

    Raises:
        ConfigError: CUDA is asked for and torch sees none.
    """
    has_cuda = torch.cuda.is_available()
    if name is Device.cuda and not has_cuda:
        raise ConfigError("run.device is cuda, but torch sees no CUDA device; auto takes what is there")
    return torch.device("cuda" if has_cuda and name is not Device.cpu else "cpu")
