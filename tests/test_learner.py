"""A step of training: parts, scaled losses, averages, mixed images; and the one-cycle schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from pipeline.config import ConfigError, Model, Optim, Schedule
from pipeline.model import build_model
from pipeline.training.build import build_mix, moving_average
from pipeline.training.compute import Compute
from pipeline.training.learner import Learner
from pipeline.training.mixing import Mix
from pipeline.training.schedule import build_schedule

CPU = Compute(device=torch.device("cpu"))
NUM_CLASSES = 3


def learner(*, compute: Compute = CPU, **options: Any) -> Learner:
    """A linear model in float64, without batch normalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, NUM_CLASSES))
    model = model if compute.amp_dtype else model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    scheduler = build_schedule(Schedule(name="constant", warmup_epochs=0), optimizer, steps_per_epoch=1)
    average = moving_average(model, options.pop("decay")) if "decay" in options else None
    return Learner(
        model=model, optimizer=optimizer, scheduler=scheduler, compute=compute, average=average, **options
    )  # fmt: skip


def batch(size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, 4, 4, generator=generator, dtype=dtype), torch.arange(size) % NUM_CLASSES


def weights(of: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in of.parameters()])


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_parts", [2, 3, 7])
def test_parts_add_up_to_the_step_of_the_whole_batch(num_parts: int) -> None:
    whole, parted = learner(label_smoothing=0.1), learner(label_smoothing=0.1, num_parts=num_parts)
    for seed, size in enumerate((7, 7, 5, 2)):  # the last has fewer samples than there are parts
        loss, num_right = whole.step(*batch(size, seed))
        loss_of_parts, num_right_of_parts = parted.step(*batch(size, seed))
        assert float(loss_of_parts) == pytest.approx(float(loss), rel=1e-12)
        assert int(num_right_of_parts) == int(num_right)
    torch.testing.assert_close(weights(parted.model), weights(whole.model), rtol=1e-12, atol=1e-14)


def test_only_one_part_is_in_the_model_at_a_time() -> None:
    parted, seen = learner(num_parts=4), []
    parted.model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    parted.step(*batch(10))
    assert seen == [3, 3, 2, 2]


def test_a_part_without_samples_leaves_running_statistics_and_gradients_alone() -> None:
    def step(num_parts: int) -> Learner:
        torch.manual_seed(0)
        model = build_model(Model(width=8), NUM_CLASSES)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = build_schedule(Schedule(warmup_epochs=0), optimizer, steps_per_epoch=4)
        one = Learner(model=model, optimizer=optimizer, scheduler=scheduler, compute=CPU, num_parts=num_parts)
        model.train()
        one.step(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([2]))
        return one

    alone, beside_empty = step(1).model.state_dict(), step(2).model.state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(beside_empty[name], value, msg=name)
    assert int(beside_empty["stem.1.num_batches_tracked"]) == 1


def test_a_compiled_model_takes_the_same_steps() -> None:
    plain, compiled = learner(), learner(compiles=True)
    for seed in range(2):
        losses = [float(one.step(*batch(6, seed))[0]) for one in (plain, compiled)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    torch.testing.assert_close(weights(compiled.model), weights(plain.model), rtol=1e-9, atol=1e-12)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


# --- the average -----------------------------------------------------------------------------------------------------


def test_the_average_follows_the_weights_by_its_decay_and_is_what_is_evaluated() -> None:
    averaging = learner(decay=0.75)
    expected = None
    for seed in range(3):
        averaging.step(*batch(6, seed))
        now = weights(averaging.model)
        expected = now if expected is None else 0.75 * expected + 0.25 * now
        torch.testing.assert_close(weights(averaging.evaluated), expected)
    assert averaging.evaluated is not averaging.model
    plain = learner()
    assert plain.evaluated is plain.model


# --- float16 ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_scaled_for_float16_and_a_step_that_overflows_changes_nothing() -> None:
    compute = Compute(device=torch.device("cpu"), amp_dtype=torch.float16)
    scaled = learner(compute=compute, scaler=GradScaler("cpu", init_scale=4.0, growth_interval=1), grad_clip=1.0)
    assert scaled.scaler is not None
    before = weights(scaled.model)
    scaled.step(*batch(6, dtype=torch.float32))
    assert not torch.equal(weights(scaled.model), before)
    assert scaled.scaler.get_scale() == 8.0
    plain = learner(compute=compute, grad_clip=1.0)
    plain.step(*batch(6, dtype=torch.float32))
    torch.testing.assert_close(weights(scaled.model), weights(plain.model), rtol=1e-3, atol=1e-4)

    scaled.scaler.update(1e38)
    before = weights(scaled.model)
    scaled.step(*batch(6, dtype=torch.float32))
    assert torch.equal(weights(scaled.model), before)
    assert scaled.scaler.get_scale() < 1e38


# --- mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_labels_are_shares_of_the_two_images_they_come_from(mixup: float, cutmix: float) -> None:
    mix = Mix(mixup=mixup, cutmix=cutmix, num_classes=NUM_CLASSES, seed=0)
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 3, 16, 16).contiguous()  # image k is all k, of class k
    mixed, shares = mix(images, torch.arange(3), step=4, rank=0)
    assert shares.shape == (3, NUM_CLASSES)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares @ torch.arange(3.0), rtol=1e-4, atol=1e-4)


def test_what_is_mixed_is_a_function_of_seed_step_and_rank_and_moves_no_generator() -> None:
    images, labels = batch(8, dtype=torch.float32)
    mix = Mix(mixup=1.0, cutmix=1.0, num_classes=NUM_CLASSES, seed=0)
    before = torch.get_rng_state()
    first = mix(images, labels, step=3, rank=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = Mix(mixup=1.0, cutmix=1.0, num_classes=NUM_CLASSES, seed=0)(images, labels, step=3, rank=1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    others = [mix(images, labels, step=4, rank=1), mix(images, labels, step=3, rank=0)]
    others.append(Mix(mixup=1.0, cutmix=1.0, num_classes=NUM_CLASSES, seed=1)(images, labels, step=3, rank=1))
    assert not any(torch.equal(first[0], other[0]) for other in others)


def test_each_kind_of_mixing_comes_as_often_as_the_other() -> None:
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4) % NUM_CLASSES
    mix = Mix(mixup=1.0, cutmix=1.0, num_classes=NUM_CLASSES, seed=0)
    pasted = 0
    for step in range(200):
        mixed, _ = mix(images, labels, step=step, rank=0)
        pasted += int((mixed == images).float().mean() > 0.01)  # CutMix leaves what is outside of its rectangle
    assert 70 < pasted < 130


def test_accuracy_is_counted_by_the_labels_as_they_were() -> None:
    mixing = learner(mix=Mix(mixup=1.0, cutmix=0.0, num_classes=NUM_CLASSES, seed=0))
    with torch.no_grad():  # it always says class 0, which two of six are
        for parameter in mixing.model.parameters():
            parameter.zero_()
        mixing.model[1].bias[0] = 1.0  # type: ignore[index]
    assert int(mixing.step(*batch(6))[1]) == 2
    assert build_mix(Optim(), NUM_CLASSES, seed=0) is None
    with pytest.raises(ValueError, match="mixes nothing"):
        Mix(mixup=0.0, cutmix=0.0, num_classes=NUM_CLASSES, seed=0)


# --- one cycle -------------------------------------------------------------------------------------------------------


def test_one_cycle_rises_to_the_rate_that_was_set_and_falls_to_nearly_nothing() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = Schedule(name="one_cycle", epochs=10, warmup_epochs=3)
    scheduler = build_schedule(schedule, optimizer, steps_per_epoch=10)
    rates, momenta = [], []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert 28 <= rates.index(max(rates)) <= 32
    assert rates[0] < 0.05
    assert rates[-1] < 0.001
    assert min(momenta) == pytest.approx(0.85, rel=0.01)
    assert momenta.index(min(momenta)) == rates.index(max(rates))


@pytest.mark.parametrize("warmup_epochs", [0, 8])
def test_one_cycle_needs_a_rise_and_a_fall(warmup_epochs: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_epochs=\d leaves one_cycle no rise or no fall"):
        Schedule(name="one_cycle", warmup_epochs=warmup_epochs)
