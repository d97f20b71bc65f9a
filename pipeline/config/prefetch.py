"""How batches reach the device."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.config.checks import choice, whole


class PrefetchDevice(StrEnum):
    """Where ready batches wait: on the run's device (auto), nowhere (none), in host memory, on the GPU, on Apple's."""

    auto = "auto"
    none = "none"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class ImageDtype(StrEnum):
    """The type of the images that the model is given."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True)
class Prefetch:
    """The last stage: copies batches to the device ahead of the loop."""

    device: PrefetchDevice = PrefetchDevice.auto
    """Where ready batches wait."""
    num_batches: int = 2
    """How many batches wait there."""
    dtype: ImageDtype = ImageDtype.float32
    """The images' type."""

    def __post_init__(self) -> None:
        self.device = choice("prefetch.device", self.device, PrefetchDevice)
        self.dtype = choice("prefetch.dtype", self.dtype, ImageDtype)
        self.num_batches = whole("prefetch.num_batches", self.num_batches, low=1, cure="or use prefetch=none")
