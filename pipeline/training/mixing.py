"""MixUp and CutMix: torchvision's, drawn anew from the seed for every step."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.draws import key


class Mix:
    """Mixes the images of a batch with each other, and their labels to class probabilities of the same shares.

    MixUp (Zhang et al. 2018) blends two images, CutMix (Yun et al. 2019) pastes a rectangle of one into the other; with
    both, each batch gets one of them, by a fair coin. What is drawn is a function of seed, step and rank, and no
    generator is moved; a batch is mixed within itself, so another number of ranks mixes other images.
    """

    def __init__(self, *, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        """`mixup` and `cutmix` are the alphas of their Beta distributions; 0: without it. One is above 0."""
        kinds = [
            *([v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []),
            *([v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []),
        ]
        if not kinds:
            raise ValueError("mixup and cutmix are both 0, which mixes nothing; leave the Mix out")
        self._mix = v2.RandomChoice(kinds)
        self._seed = seed

    def __call__(self, images: Tensor, labels: Tensor, *, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Float images (B, C, H, W) and labels (B,) give mixed images and probabilities (B, num_classes)."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws on the CPU, for images on a GPU too
            torch.default_generator.manual_seed(key("mix", seed=self._seed, step=step, rank=rank))
            mixed, shares = self._mix(images, labels)
        return mixed, shares
