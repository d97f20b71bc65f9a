"""The networks by name: shapes, sizes, layouts and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config import Model
from pipeline.config.model import MODELS
from pipeline.model import ResNetSmall, build_model


@pytest.mark.parametrize("size", [8, 32, 64, 65, 224])
def test_resnet_small_gives_one_logit_per_class_for_images_of_any_size(size: int) -> None:
    model = build_model(Model(name="resnet_small", width=8), num_classes=7).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_resnet_small_of_the_default_width_has_2_8_million_parameters() -> None:
    model = build_model(Model(), num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_797_610


def test_width_scales_every_stage() -> None:
    narrow, wide = ResNetSmall(10, width=8), ResNetSmall(10, width=16)
    convolutions = [(m.out_channels, n.out_channels) for m, n in zip(_convs(narrow), _convs(wide), strict=True)]
    assert len(convolutions) == 20
    assert all(n == 2 * m for m, n in convolutions)
    assert {m for m, _ in convolutions} == {8, 16, 32, 64}


def test_each_block_starts_as_its_shortcut_so_that_a_deep_network_starts_shallow() -> None:
    block = ResNetSmall(10, width=8).stages[0][0].eval()
    features = torch.rand(2, 8, 4, 4)
    assert torch.equal(block(features), features)


def test_channels_last_changes_the_layout_of_features_and_not_the_logits() -> None:
    torch.manual_seed(0)
    model = build_model(Model(width=8), num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    features = model.stem(images.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet_small"])
def test_torchvision_models_are_found_by_name_with_a_head_for_the_data(name: str) -> None:
    with torch.device("meta"):  # shapes without the memory and time of real weights
        model = build_model(Model(name=name), num_classes=7)
        assert model.fc.out_features == 7
        assert model.eval()(torch.empty(1, 3, 64, 64)).shape == (1, 7)


def test_an_unknown_name_is_refused_with_the_nearest_choice() -> None:
    model = Model()
    model.name = "resnet_smal"
    with pytest.raises(ValueError, match=r"model.name .* did you mean resnet_small\? choices: .*resnet152"):
        build_model(model, num_classes=10)


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(next(build_model(Model(width=8), num_classes=4).parameters()))
    assert torch.equal(*weights)


def _convs(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]
