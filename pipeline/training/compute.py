"""Where and in which precision the model runs: device, autocast, memory format."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import ConfigError, Device
from pipeline.dist import ALONE, World


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


def may_use_cuda(name: Device) -> bool:
    """Whether `choose_device` gives a CUDA device."""
    return name is not Device.cpu and torch.cuda.is_available()


def choose_device(name: Device, *, world: World = ALONE) -> torch.device:
    """The device for `run.device`; `auto` is CUDA where torch sees one, else the CPU. Each rank of a host has its own.

    Raises:
        ConfigError: CUDA is asked for and torch sees none, or fewer devices than there are ranks on this host.
    """
    has_cuda = torch.cuda.is_available()
    if name is Device.cuda and not has_cuda:
        raise ConfigError("run.device is cuda, but torch sees no CUDA device; auto takes what is there")
    if not has_cuda or name is Device.cpu:
        return torch.device("cpu")
    if world.size == 1:
        return torch.device("cuda")
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"{world.local_size} ranks on this host, but torch sees {torch.cuda.device_count()} CUDA devices; "
            "lower dist.nproc, or use run.device=cpu"
        )
    return torch.device("cuda", world.local_rank)
