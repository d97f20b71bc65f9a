"""What is done to pixels: everything that changes them is here and nowhere else."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from pipeline.config.checks import ConfigError, choice, real, whole
from pipeline.native import kernel


class Augment(StrEnum):
    """Evaluation's resize and centre crop (none), or random crop and flip with more and more colour jitter."""

    none = "none"
    light = "light"
    standard = "standard"
    heavy = "heavy"


class Decode(StrEnum):
    """Decode every pixel (full), or at 1/2, 1/4 or 1/8 where the crop is that much larger than `size`."""

    full = "full"
    scaled = "scaled"


class Resize(StrEnum):
    """Pillow's antialiased result (exact), within a level of it in less time (fast; fused: natively), or auto."""

    auto = "auto"
    exact = "exact"
    fast = "fast"
    fused = "fused"


class Icc(StrEnum):
    """Embedded colour profiles: not looked at (ignore), or applied, so that pixels are sRGB (convert)."""

    ignore = "ignore"
    convert = "convert"


# What each name means in colours and geometry; `Transforms.named` and conf/transforms/*.yaml agree on it.
_NAMED: dict[Augment, dict[str, Any]] = {
    Augment.none: {"flip": 0.0},
    Augment.light: {},
    Augment.standard: {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    Augment.heavy: {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.1},
}


class Policy(StrEnum):
    """TrivialAugment's one operation an image in its wide space (trivial), RandAugment's two (rand), or none."""

    none = "none"
    trivial = "trivial"
    rand = "rand"


class Place(StrEnum):
    """Colour, blur and erasing on the device, in the workers, or auto: on a device that is not the CPU."""

    auto = "auto"
    device = "device"
    worker = "worker"


@dataclass(kw_only=True)
class Transforms:
    """From a decoded image to the model's input.

    With `augment` none nothing is drawn: `scale`, `ratio`, `flip`, the colours, blur and erasing are not used.
    """

    augment: Augment = Augment.light
    """Which kind; `Transforms.named` and `transforms=NAME` also set the values that belong to it."""
    size: int = 224
    """Height and width of the result, in pixels."""
    decode: Decode = Decode.full
    """How many pixels are decoded."""
    resize: Resize = Resize.auto
    """How images are resized; auto: exact when not augmenting, else fused where the kernel is built, else fast."""
    max_side: int | None = None
    """Longest side, in pixels, that an image is reduced to before anything else; null: as it is."""
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    """R, G, B in 0..255 that transparent pixels are laid over."""
    icc: Icc = Icc.ignore
    """What becomes of embedded colour profiles."""
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Least and greatest area of the random crop, as a part of the image's."""
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Least and greatest width / height of the random crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Policy = Policy.none
    """Operations drawn for each image, after crop and flip."""
    brightness: float = 0.0
    """Colour jitter as torchvision's ColorJitter defines it, drawn from [1 - value, 1 + value]; 0 is off."""
    contrast: float = 0.0
    """As `brightness`."""
    saturation: float = 0.0
    """As `brightness`."""
    hue: float = 0.0
    """Shift drawn from [-hue, hue], in turns of the colour circle, at most 0.5; 0 is off."""
    greyscale: float = 0.0
    """Probability of no colour at all."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])
    """Least and greatest standard deviation of the blur, in pixels."""
    erasing: float = 0.0
    """Probability that a rectangle becomes the mean colour."""
    erasing_scale: list[float] = field(default_factory=lambda: [0.02, 0.33])
    """Least and greatest area of that rectangle, as a part of the image's."""
    erasing_ratio: list[float] = field(default_factory=lambda: [0.3, 3.3])
    """Least and greatest height / width of that rectangle."""
    crops_per_image: int = 1
    """Crops of each image in its batch, which then has `batch_size` times as many; an image is decoded once for all."""
    place: Place = Place.auto
    """Where colour, blur, erasing and normalisation are done; the results agree within 1e-5."""
    resize_ratio: float = 256 / 224
    """Evaluation: the short side becomes `round(size * resize_ratio)`, then the centre is cropped."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Mean of R, G, B, of pixels in [0, 1]; ImageNet's."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Standard deviation of R, G, B, of pixels in [0, 1]; ImageNet's."""

    def __post_init__(self) -> None:
        self.augment = choice("transforms.augment", self.augment, Augment)
        self.decode = choice("transforms.decode", self.decode, Decode)
        self.resize = choice("transforms.resize", self.resize, Resize)
        self.icc = choice("transforms.icc", self.icc, Icc)
        self.background = [
            whole("transforms.background", level, low=0, cure="[255, 255, 255] is white") for level in self.background
        ]
        if len(self.background) != 3 or max(self.background) > 255:
            raise ConfigError(f"transforms.background must be three levels 0..255, R, G, B, got {self.background}")
        self.size = whole("transforms.size", self.size, low=8, cure="64 and 224 are the usual ones")
        if self.max_side is not None:
            self.max_side = whole(
                "transforms.max_side", self.max_side, low=self.size, cure="at least transforms.size, or null"
            )
        self.scale = _interval("transforms.scale", self.scale, high=1.0)
        self.ratio = _interval("transforms.ratio", self.ratio, high=100.0)
        self.flip = real("transforms.flip", self.flip, low=0, high=1, cure="0 never flips")
        self.policy = choice("transforms.policy", self.policy, Policy)
        for name in ("brightness", "contrast", "saturation"):
            setattr(self, name, real(f"transforms.{name}", getattr(self, name), low=0, cure="0 is off"))
        self.hue = real("transforms.hue", self.hue, low=0, high=0.5, cure="0 is off")
        for name in ("greyscale", "blur", "erasing"):
            setattr(self, name, real(f"transforms.{name}", getattr(self, name), low=0, high=1, cure="0 is off"))
        self.blur_sigma = _interval("transforms.blur_sigma", self.blur_sigma, high=100.0)
        self.erasing_scale = _interval("transforms.erasing_scale", self.erasing_scale, high=1.0)
        self.erasing_ratio = _interval("transforms.erasing_ratio", self.erasing_ratio, high=100.0)
        self.crops_per_image = whole(
            "transforms.crops_per_image", self.crops_per_image, low=1, cure="1 is the usual one"
        )
        if self.crops_per_image > 1 and self.decode is Decode.scaled:
            raise ConfigError(
                f"transforms.crops_per_image={self.crops_per_image} decodes an image once for all crops, and not as "
                f"coarsely as one of them allows; use transforms.decode=full"
            )
        if self.crops_per_image > 1 and self.augment is Augment.none:
            raise ConfigError(
                f"transforms.crops_per_image={self.crops_per_image} would be as many equal images with "
                f"transforms.augment=none; use 1"
            )
        self.place = choice("transforms.place", self.place, Place)
        self.resize_ratio = real(
            "transforms.resize_ratio", self.resize_ratio, low=1, cure="1 crops nothing off the short side"
        )
        self.mean = _channels("transforms.mean", self.mean, low_open=False)
        self.std = _channels("transforms.std", self.std, low_open=True)

    @classmethod
    def named(cls, augment: Augment | str, **changes: Any) -> Self:
        """The values that `transforms=NAME` stands for on the command line, with `changes` to some fields."""
        name = choice("transforms.augment", augment, Augment)
        return cls(**{"augment": name, **_NAMED[name], **changes})

    def evaluation(self) -> Self:
        """A copy for evaluation: no draw, every pixel decoded, the exact resize."""
        return replace(self, augment=Augment.none, decode=Decode.full, resize=Resize.exact, crops_per_image=1)

    def resolved(self) -> Self:
        """A copy in which `resize` is not auto: whether that is fused depends on this installation's native kernel."""
        if self.resize is not Resize.auto:
            return replace(self)
        augmenting = Resize.fast if kernel is None else Resize.fused
        return replace(self, resize=Resize.exact if self.augment is Augment.none else augmenting)


def _interval(key: str, value: list[float], *, high: float) -> list[float]:
    if len(value) != 2:
        raise ConfigError(f"{key} must be two numbers, least and greatest, got {list(value)}")
    least, greatest = (
        real(key, bound, low=0, high=high, low_open=True, cure="give least and greatest") for bound in value
    )
    if least > greatest:
        raise ConfigError(f"{key} must be least, then greatest, got {list(value)}; swap them")
    return [least, greatest]


def _channels(key: str, value: list[float], *, low_open: bool) -> list[float]:
    if len(value) != 3:
        raise ConfigError(f"{key} must be three numbers, for R, G and B, got {list(value)}")
    return [real(key, channel, low=0, high=1, low_open=low_open, cure="pixels are in [0, 1]") for channel in value]
