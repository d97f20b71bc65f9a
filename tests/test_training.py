"""The training loop and what it writes, on small real models; the pipelines are lists of batches."""

from __future__ import annotations

import csv
import json
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.cache.theory import advice
from pipeline.config import (
    Cache,
    CachePolicy,
    ConfigError,
    Data,
    Loader,
    Logger,
    Model,
    Optim,
    Run,
    Schedule,
    TrainConfig,
    Transforms,
)
from pipeline.dist import ALONE
from pipeline.stalls import SAVING
from pipeline.stats import Lanes, Stats
from pipeline.training import build as build_module
from pipeline.training import fit as fit_module
from pipeline.training import run as run_module
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.checks import warnings_of_size
from pipeline.training.compute import Compute, choose_device
from pipeline.training.curves import draw_curves
from pipeline.training.environment import commit, plain
from pipeline.training.evaluate import evaluate
from pipeline.training.learner import Learner
from pipeline.training.loop import Totals, train_epoch
from pipeline.training.loop_clock import LoopClock
from pipeline.training.metrics import EpochMetrics, RunRecord
from pipeline.training.optim import build_optimizer
from pipeline.training.progress import Progress, closing_lines
from pipeline.training.run import train
from pipeline.training.schedule import build_schedule

CPU = Compute(device=torch.device("cpu"))
Pair = tuple[Tensor, Tensor]


def separable(num_samples: int, *, seed: int, batch_size: int = 16) -> list[Pair]:
    """Batches of noise in which one of three colour channels, the class, is brighter."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_samples, 3, 32, 32, generator=generator)
    labels = torch.arange(num_samples) % 3
    images[torch.arange(num_samples), labels] += 1.0
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


EMPTY: Pair = (torch.empty(0, 3, 32, 32), torch.empty(0, dtype=torch.int64))


class ListPipeline:
    """What `train` uses of a Pipeline, over batches that are there already."""

    def __init__(self, batches: Sequence[Pair], class_names: Sequence[str] = ("red", "green", "blue")) -> None:
        self.batches = batches
        labels = [batch_labels.numpy() for _, batch_labels in batches]
        self.source = SimpleNamespace(labels=np.concatenate([np.empty(0, np.int64), *labels]), class_names=class_names)
        self.num_samples = len(self.source.labels)
        self.num_workers, self.num_crops = 0, 1
        self.with_replacement = False
        self.bad = None
        self.workers, self.keeps = "no workers", None
        self.lanes = Lanes(num_threads=0, queue_batches=0, prefetched_batches=0)
        self.epoch = 0
        self._counts = Stats()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Pair]:
        self.epoch += 1
        return map(self._hand_over, self.batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": 0}

    def stats(self) -> dict[str, float]:
        return self._counts.summary() | {"cache_hit_pct": 25.0, "cache_bound_pct": 30.0}

    def could_keep_pixels(self, cache: Cache) -> bool:
        del cache
        return False

    def _hand_over(self, batch: Pair) -> Pair:
        self._counts.handed_over(len(batch[1]), 0.0, num_ready=0)
        return batch

    def cache_advice(self) -> str | None:
        return "keep more"


class Silent:
    def advance(self) -> None: ...

    def show(self, totals: Totals) -> None: ...


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> dict[str, ListPipeline]:
    """The splits that `train` will be given; a test may put in others."""
    splits = {"train": ListPipeline(separable(96, seed=0)), "val": ListPipeline(separable(40, seed=1))}

    def build(cfg: TrainConfig, *, split: str, **options: Any) -> ListPipeline:
        return splits[split]

    monkeypatch.setattr(run_module, "build_pipeline", build)
    return splits


@pytest.fixture(autouse=True)
def _keep_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(**changes: Any) -> TrainConfig:
    groups: dict[str, Any] = {
        "data": Data(root="unused"),
        "transforms": Transforms(size=32),
        "model": Model(width=8),
        "optim": Optim(lr=0.5, label_smoothing=0.0),
        "schedule": Schedule(epochs=3, warmup_epochs=1),
        "logger": Logger(plot=False),
        "run": Run(device="cpu"),
    }
    return TrainConfig(**(groups | changes))


def linear_learner(*, lr: float = 0.1, num_classes: int = 3, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = Schedule(name="constant", warmup_epochs=0)
    scheduler = build_schedule(schedule, optimizer, steps_per_epoch=1)
    return Learner(model=model, optimizer=optimizer, scheduler=scheduler, compute=CPU, **options)


def row(epoch: int, **changes: Any) -> EpochMetrics:
    metrics = EpochMetrics(
        epoch=epoch,
        step=28 * epoch,
        lr=0.1,
        train_loss=2.3 / epoch,
        train_top1=1 - 0.9 / epoch,
        eval_loss=2.5 / epoch,
        eval_top1=1 - 0.95 / epoch,
        eval_num_samples=200,
        train_samples_per_sec=300 + 20 * math.sin(epoch),
        data_wait_pct=40 / epoch,
        train_s=6.0,
        eval_s=0.5,
    )
    return replace(metrics, **changes)


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))


# --- the whole run ---------------------------------------------------------------------------------------------------


def test_training_learns_classes_that_are_easy_to_tell_apart(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    top1 = train(config(), tmp_path)
    assert top1 >= 0.95
    rows = read_metrics(tmp_path)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert pipelines["train"].is_closed
    assert pipelines["val"].is_closed


def test_two_runs_with_one_seed_end_with_the_same_weights_and_another_seed_differs(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(config(run=Run(device="cpu", seed=seed, max_steps=2, num_threads=1)), tmp_path / name)
        weights.append(load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["model"]["head.2.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_summary_is_flat_at_the_top_and_has_its_conditions_beneath(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    top1 = train(config(), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == [
        "train_samples_per_sec",
        "eval_top1",
        "best_top1",
        "eval_loss",
        "eval_num_samples",
        "data_wait_pct",
        "first_batch_s",
        "peak_pss_mb",
        "cache_hit_pct",
        "cache_bound_pct",
        "cache_advice",
        "epochs",
        "steps",
        "wall_s",
        "resumed",
        "stalls",
        "dropped_loggers",
        "status",
        "error",
        "config",
        "versions",
        "host",
        "commit",
    ]
    assert (summary["status"], summary["error"]) == ("completed", None)
    assert (summary["epochs"], summary["steps"], summary["eval_num_samples"]) == (3, 18, 40)
    assert summary["eval_top1"] == top1
    assert summary["best_top1"] >= top1
    assert summary["cache_hit_pct"] == 25.0
    assert summary["stalls"]["bound"] == "compute"
    assert 0 <= summary["data_wait_pct"] <= 100
    assert summary["config"]["optim"]["lr"] == 0.5
    assert summary["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert summary["host"]["num_usable_cores"] >= 1


def test_the_metrics_have_a_row_an_epoch_and_leave_out_evaluations_that_were_not_made(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    train(config(run=Run(device="cpu", eval_every=2)), tmp_path)
    rows = read_metrics(tmp_path)
    assert list(rows[0]) == [field.name for field in fields(EpochMetrics)]
    assert [(r["epoch"], r["step"], r["eval_num_samples"]) for r in rows] == [
        ("1", "6", ""),
        ("2", "12", "40"),
        ("3", "18", "40"),
    ]


def test_logger_options_switch_the_csv_and_the_curves(pipelines: dict[str, ListPipeline], tmp_path: Path) -> None:
    one_epoch = Schedule(epochs=1, warmup_epochs=0)
    train(config(schedule=one_epoch, logger=Logger(csv=False, plot=True)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "curves.png", "summary.json"]


def test_max_steps_ends_a_run_early_which_is_evaluated_saved_and_called_stopped(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    train(config(run=Run(device="cpu", max_steps=8)), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["epochs"]) == ("stopped", 8, 2)
    assert summary["eval_num_samples"] == 40
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 8


def test_a_failure_is_written_down_and_goes_on_to_the_caller(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    class Broken(ListPipeline):
        def __iter__(self) -> Iterator[Pair]:
            if self.epoch == 1:
                raise OSError("the disk went away")
            return super().__iter__()

    pipelines["train"] = Broken(separable(32, seed=0))
    with pytest.raises(OSError, match="the disk went away"):
        train(config(), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "OSError: the disk went away")
    assert summary["epochs"] == 1
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["epoch"] == 1
    assert pipelines["train"].is_closed
    assert pipelines["val"].is_closed


def test_ctrl_c_is_called_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunRecord(tmp_path, config={}):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "stopped"


def test_the_run_ends_with_a_summary_of_at_most_100_columns_that_says_where_the_report_is(
    pipelines: dict[str, ListPipeline],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    train(config(), Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("completed: 3 epochs, 18 steps in ")
    for word in ("top-1", "images/s", "data-wait", "bound by   compute", "out/summary.json"):
        assert any(word in line for line in lines), word


@pytest.mark.parametrize(
    ("splits", "changes", "message"),
    [
        ({"val": ListPipeline([])}, {}, "raise data.val_fraction, which is 0.1"),
        ({"train": ListPipeline([])}, {}, "loader.drop_last leaves no batch: loader.batch_size is 64"),
        ({"val": ListPipeline(separable(8, seed=0), ("cat", "dog", "fox"))}, {}, "other classes: 3 .red, green, blue"),
        ({}, {"model": Model(num_classes=2)}, "model.num_classes must be at least the data's 3 classes, got 2"),
    ],
    ids=["no validation", "no full batch", "other classes", "too few outputs"],
)
def test_data_that_cannot_be_trained_on_is_refused_before_the_first_step(
    pipelines: dict[str, ListPipeline],
    tmp_path: Path,
    splits: dict[str, ListPipeline],
    changes: dict[str, Any],
    message: str,
) -> None:
    pipelines.update(splits)
    with pytest.raises(ValueError, match=message):
        train(config(**changes), tmp_path)
    assert pipelines["train"].epoch == 0


def test_a_run_opens_with_what_it_trains_on_and_names_classes_it_cannot_learn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train_batches, val_batches = (
        [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))],
        [(torch.rand(2, 3, 8, 8), torch.tensor([0, 2]))],
    )
    splits = {"train": ListPipeline(train_batches), "val": ListPipeline(val_batches)}
    monkeypatch.setattr("pipeline.training.run.build_pipeline", lambda _, *, split, **__: splits[split])
    train(config(schedule=Schedule(epochs=1)), tmp_path)
    opening = capsys.readouterr().err
    assert "4 training and 2 validation images, 3 (red, green, blue) classes; resnet_small on cpu" in opening
    assert "warning: training has no image of 1 (blue)" in opening


def test_a_run_of_one_class_says_that_there_is_nothing_to_learn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    batches = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 0, 0]))]
    monkeypatch.setattr("pipeline.training.run.build_pipeline", lambda *_, **__: ListPipeline(batches))
    train(config(schedule=Schedule(epochs=1)), tmp_path)
    assert "warning: all training images are of one class" in capsys.readouterr().err


def test_more_workers_or_ranks_than_a_host_has_use_for_are_warned_of() -> None:
    def warned(num_workers: int | str, num_local_ranks: int = 1) -> list[str]:
        cfg = replace(config(), loader=Loader(num_workers=num_workers))
        return warnings_of_size(cfg, num_local_ranks=num_local_ranks, num_cores=4)

    assert warned("auto") == warned(32) == warned(0, 4) == []
    assert [line[:61] for line in warned(1000)] == ["warning: loader.num_workers=1000 makes 1000 threads or proces"]
    assert warned(0, 64) == ["warning: 64 ranks share the 4 cores of this host; use fewer"]


def test_a_last_batch_of_one_small_image_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipeline = ListPipeline(
        [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])), (torch.rand(1, 3, 32, 32), torch.tensor([1]))]
    )
    monkeypatch.setattr("pipeline.training.run.build_pipeline", lambda *_, **__: pipeline)
    with pytest.raises(ConfigError, match=r"would be 1 sample .5 with loader\.batch_size=4.* loader\.drop_last=true"):
        train(config(loader=Loader(batch_size=4)), tmp_path)


def test_labels_that_are_not_classes_are_refused(pipelines: dict[str, ListPipeline], tmp_path: Path) -> None:
    pipelines["train"].source.labels = np.zeros((96, 2), np.float32)
    with pytest.raises(ValueError, match=r"one class per image, and the labels are float32 of shape \(96, 2\)"):
        train(config(), tmp_path)


def test_a_model_may_have_more_outputs_than_the_data_has_classes(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    train(config(model=Model(width=8, num_classes=5), run=Run(device="cpu", max_steps=1)), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["model"]["head.2.weight"].shape == (5, 64)


# --- one epoch -------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("start_s", "load_s", "step_s", "data_wait_pct"),
    [(0.0, 3.0, 1.0, 75.0), (0.0, 1.0, 3.0, 25.0), (8.0, 0.0, 2.0, 50.0)],
    ids=["slow loader", "slow model", "slow start"],
)
def test_the_time_of_an_epoch_goes_to_the_loader_or_to_the_model(
    start_s: float, load_s: float, step_s: float, data_wait_pct: float
) -> None:
    clock = Clock()

    class SlowLoader:
        def __iter__(self) -> Iterator[Pair]:
            clock.now_s += start_s
            return self.batches()

        def batches(self) -> Iterator[Pair]:
            for batch in separable(64, seed=0):
                clock.now_s += load_s
                yield batch

    def spend(*_: object) -> None:
        clock.now_s += step_s

    learner = linear_learner()
    learner.model.register_forward_hook(spend)
    totals = train_epoch(learner, SlowLoader(), observer=Silent(), every_steps=50, spent=LoopClock(clock))
    assert totals.data_wait_pct == pytest.approx(data_wait_pct)
    assert totals.wall_s == pytest.approx(start_s + 4 * (load_s + step_s))
    assert totals.first_batch_s == pytest.approx(start_s + load_s)
    assert totals.samples_per_sec == pytest.approx(64 / totals.wall_s)


def test_waiting_computing_and_what_stands_beside_are_measured_apart_and_add_up() -> None:
    clock = Clock()

    def spend(seconds: float) -> bool:
        clock.now_s += seconds
        return False

    def batches() -> Iterator[Pair]:
        for batch in separable(64, seed=0):
            spend(1.0)
            yield batch

    class Slow(Silent):
        def advance(self) -> None:
            spend(0.25)

        def show(self, totals: Totals) -> None:
            assert totals.num_steps > 0
            spend(0.5)

    learner = linear_learner()
    learner.model.register_forward_hook(lambda *_: spend(4.0) or None)
    spent = LoopClock(clock)

    def after_batch(totals: object) -> bool:
        spend(2.0)
        spent.lap(SAVING)
        return spend(0.5)

    totals = train_epoch(learner, batches(), observer=Slow(), every_steps=1, after_batch=after_batch, spent=spent)
    assert spent.wait_s == 4.0
    assert spent.lap_s == {"compute": 16.0, "transfer": 0.0, "saving": 8.0, "ranks": 0.0, "overhead": 4 * 1.25}
    assert (spent.wall_s, totals.wall_s, totals.wait_s) == (33.0, 33.0, 4.0)


def test_the_loss_and_top1_of_an_epoch_weigh_every_sample_equally() -> None:
    batches = separable(16 + 3, seed=0)
    learner = linear_learner(lr=1e-12)
    with torch.no_grad():
        logits = learner.model(torch.cat([images for images, _ in batches]))
    labels = torch.cat([labels for _, labels in batches])
    totals = train_epoch(learner, batches, observer=Silent(), every_steps=50)
    assert totals.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert totals.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert (totals.num_samples, totals.num_steps) == (19, 2)


def test_an_empty_batch_takes_no_step_wherever_it_comes() -> None:
    batches = separable(32, seed=0)
    with_empty = [EMPTY, batches[0], EMPTY, batches[1], EMPTY]
    weights = []
    for epoch in (batches, with_empty):
        learner = linear_learner()
        totals = train_epoch(learner, epoch, observer=Silent(), every_steps=1)
        assert (totals.num_steps, learner.num_steps) == (2, 2)
        assert math.isfinite(totals.loss)
        weights.append(next(learner.model.parameters()))
    assert torch.equal(*weights)


def test_an_epoch_of_empty_batches_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"data.on_error=skip left every batch empty"):
        train_epoch(linear_learner(), [EMPTY, EMPTY], observer=Silent(), every_steps=1)


@pytest.mark.parametrize("every_steps", [1, 50], ids=["seen at once", "seen at the epoch's end"])
def test_a_loss_that_is_no_number_is_named_with_its_step_its_rate_and_the_cure(every_steps: int) -> None:
    batches = separable(96, seed=0)
    batches[2][0][0, 0, 0, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"the loss is nan at step 3, with a learning rate of 0.25; lower optim.lr"):
        train_epoch(linear_learner(lr=0.25), batches, observer=Silent(), every_steps=every_steps)


def test_the_loop_holds_one_batch_at_most_while_it_waits_for_the_next() -> None:
    alive: list[int] = []

    class Counted(Tensor):
        pass

    def batches() -> Iterator[Pair]:
        refs: list[weakref.ref[Counted]] = []
        for images, labels in separable(80, seed=0):
            counted = images.as_subclass(Counted)
            refs.append(weakref.ref(counted))
            yield counted, labels
            del counted
            alive.append(sum(ref() is not None for ref in refs))

    train_epoch(linear_learner(), batches(), observer=Silent(), every_steps=50)
    assert max(alive) <= 1


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    batches = separable(16, seed=0)
    moved = []
    for grad_clip in (None, 1e-3):
        learner = linear_learner(lr=1.0, grad_clip=grad_clip)
        before = [parameter.detach().clone() for parameter in learner.model.parameters()]
        learner.step(*batches[0])
        steps = [p.detach() - q for p, q in zip(learner.model.parameters(), before, strict=True)]
        moved.append(float(torch.cat([step.flatten() for step in steps]).norm()))
    assert moved[0] > 1e-2
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)


def test_bf16_autocast_computes_in_bfloat16_and_keeps_weights_and_gradients_in_float32() -> None:
    seen: list[torch.dtype] = []
    learner = linear_learner()
    learner.compute = Compute(device=torch.device("cpu"), amp_dtype=torch.bfloat16)
    learner.model.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.dtype))
    loss, _ = learner.step(*separable(16, seed=0)[0])
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert (
        {p.dtype for p in learner.model.parameters()}
        == {p.grad.dtype for p in learner.model.parameters()}
        == {torch.float32}
    )


def test_images_reach_the_model_in_its_memory_format() -> None:
    images, labels = separable(16, seed=0)[0]
    placed, _ = Compute(device=torch.device("cpu"), channels_last=True).place(images, labels)
    assert placed.is_contiguous(memory_format=torch.channels_last)
    unmoved, _ = CPU.place(images, labels)
    assert unmoved.data_ptr() == images.data_ptr()


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_counts_each_sample_once_with_short_and_empty_batches() -> None:
    images = torch.cat([images for images, _ in separable(23, seed=2)])
    labels = torch.cat([labels for _, labels in separable(23, seed=2)])
    learner = linear_learner(label_smoothing=0.3)
    with torch.no_grad():
        logits = learner.model(images)
    batches = [*zip(images.split(8), labels.split(8), strict=True), EMPTY]
    sizes: list[int] = []
    learner.model.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    evaluation = evaluate(learner.model, batches, compute=CPU)
    assert sizes == [8, 8, 7]  # not every model can take an empty batch
    assert evaluation.num_samples == 23
    assert evaluation.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert evaluation.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-6)


def test_evaluation_changes_nothing_in_the_model_and_training_sets_its_mode_back() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, separable(16, seed=0), compute=CPU)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    learner = linear_learner()
    learner.model.eval()
    train_epoch(learner, separable(16, seed=0), observer=Silent(), every_steps=1)
    assert learner.model.training


def test_evaluation_of_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no sample to score"):
        evaluate(linear_learner().model, [EMPTY], compute=CPU)


# --- optimizer and schedule ------------------------------------------------------------------------------------------


def test_the_rate_warms_up_linearly_then_follows_a_cosine_to_zero() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_schedule(Schedule(epochs=3, warmup_epochs=1), optimizer, steps_per_epoch=4)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cosine = [1 + math.cos(math.pi * step / 8) for step in range(8)]
    assert rates == pytest.approx([0.4, 0.8, 1.2, 1.6, *cosine])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("warmup_epochs", "rates"), [(0, [2, 2, 2, 2]), (0.5, [1, 2, 2, 2]), (2, [0.4, 0.8, 1.2, 1.6])]
)
def test_a_constant_rate_stays_after_a_warm_up_of_any_length(warmup_epochs: float, rates: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = Schedule(name="constant", epochs=2, warmup_epochs=warmup_epochs)
    scheduler = build_schedule(schedule, optimizer, steps_per_epoch=2)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(rates)


@pytest.mark.parametrize(
    ("optim", "kind"),
    [(Optim(name="sgd", lr=0.1), torch.optim.SGD), (Optim(name="adamw", lr=0.1), torch.optim.AdamW)],
    ids=["sgd", "adamw"],
)
def test_norms_and_biases_are_not_decayed_and_the_rate_grows_with_the_batch(
    optim: Optim, kind: type[torch.optim.Optimizer]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(optim, model, global_batch_size=64)
    assert type(optimizer) is kind
    decayed, kept = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert len(kept["params"]) == 4
    assert (decayed["weight_decay"], kept["weight_decay"]) == (5e-4, 0.0)
    assert decayed["lr"] == kept["lr"] == pytest.approx(0.1 / 4)


def test_sgd_without_momentum_may_leave_nesterov_on() -> None:
    model = nn.Linear(2, 2)
    assert not build_optimizer(Optim(momentum=0.0), model, global_batch_size=256).defaults["nesterov"]
    assert build_optimizer(Optim(), model, global_batch_size=256).defaults["nesterov"]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_brings_back_weights_optimizer_schedule_and_all_that_describes_them(
    pipelines: dict[str, ListPipeline], tmp_path: Path
) -> None:
    cfg = config()
    train(cfg, tmp_path)
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"], state["loader"]) == (3, 18, {"epoch": 3, "position": 0})
    assert state["class_names"] == ["red", "green", "blue"]
    assert state["preprocessing"]["augment"] == "none"
    assert state["preprocessing"]["size"] == 32
    assert state["config"]["optim"]["name"] == "sgd"

    learner = build_module.build_learner(cfg, CPU, num_classes=3, steps_per_epoch=6)
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scheduler.load_state_dict(state["scheduler"])
    assert learner.lr == pytest.approx(0.0)
    assert json.loads((tmp_path / "summary.json").read_text())["eval_top1"] == pytest.approx(
        evaluate(learner.model, pipelines["val"], compute=CPU).top1
    )


def test_the_best_checkpoint_is_that_of_the_best_epoch_and_the_last_that_of_the_last(
    pipelines: dict[str, ListPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.7, 0.5])

    def scored(model: nn.Module, batches: object, **options: Any) -> Any:
        return SimpleNamespace(loss=1.0, top1=next(scores), num_samples=40, wall_s=0.1)

    monkeypatch.setattr(fit_module, "evaluate", scored)
    assert train(config(), tmp_path) == 0.5
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt")["epoch"] == 2
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["epoch"] == 3
    assert json.loads((tmp_path / "summary.json").read_text())["best_top1"] == 0.7


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def fill_the_disk(state: object, file: BytesIO) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_is_complete_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    replaced: list[dict[str, Any]] = []
    real_replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        replaced.append(load_checkpoint(self))
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    save_checkpoint(path, {"weights": torch.arange(3)})
    assert torch.equal(replaced[0]["weights"], torch.arange(3))


# --- what is shown and drawn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_epochs", [1, 8])
def test_the_curves_are_a_png_of_the_size_promised_with_all_lines_in_it(num_epochs: int, tmp_path: Path) -> None:
    draw_curves([row(epoch) for epoch in range(1, num_epochs + 1)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert (image.format, image.size) == ("PNG", (1600, 1000))
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
    # training, validation, speed, waiting
    assert colours >= {(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)}


def test_curves_draw_epochs_that_were_not_evaluated(tmp_path: Path) -> None:
    missing = {"eval_loss": None, "eval_top1": None, "eval_num_samples": None, "eval_s": None}
    draw_curves([row(1, **missing), row(2, **missing)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_plain_lines_without_a_terminal_say_loss_speed_and_data_wait() -> None:
    stream = StringIO()
    progress = Progress(stream, num_epochs=12)
    progress.start_epoch(3, num_batches=150)
    progress.advance()
    totals = Totals(lr=0.1, loss_sum=800.0, num_right=320, num_samples=640, num_steps=10, wall_s=2.0, wait_s=0.5)
    progress.show(totals)
    progress.end_epoch(row(3))
    assert stream.getvalue().splitlines() == [
        "epoch  3/12  step  10/150  loss 1.250  320 images/s  data-wait 25 %",
        "epoch  3/12  loss 0.767  303 images/s  data-wait 13 %  top-1 70.0 %  val loss 0.833  val top-1 68.3 %",
    ]


def test_a_terminal_gets_a_bar_that_is_gone_when_the_epoch_ends() -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream, num_epochs=1)
    progress.start_epoch(1, num_batches=2)
    progress.advance()
    progress.advance()
    progress.end_epoch(row(1))
    shown = stream.getvalue()
    assert "epoch 1/1:" in shown
    assert "0/2" in shown
    assert shown.rpartition("\r")[2].startswith("epoch 1/1  loss")


def test_the_closing_lines_of_a_long_run_fit_100_columns() -> None:
    summary: dict[str, Any] = {
        "status": "completed",
        "epochs": 1000,
        "steps": 10**9,
        "wall_s": 1e6,
        "eval_top1": 0.99999,
        "best_top1": 1.0,
        "eval_num_samples": 10**8,
        "train_samples_per_sec": 123456.7,
        "first_batch_s": 1234.5,
        "data_wait_pct": 100.0,
        "cache_hit_pct": 10.0,
        "cache_bound_pct": 100.0,
        "cache_advice": advice(CachePolicy.lru, is_full=True, hit_pct=10, bound_pct=100),
        "peak_pss_mb": 123456.0,
    }
    lines = closing_lines(summary, Path("outputs/train/2030-12-31_23-59-59")).splitlines()
    assert max(map(len, lines)) <= 100
    assert "  cache      10.0 % hits of 100.0 % possible" in lines
    assert any("cache=pinned" in line for line in lines)
    assert lines[-1].split() == ["report", "outputs/train/2030-12-31_23-59-59/summary.json"]


def test_a_full_disk_does_not_hide_why_the_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RuntimeError, match="the cause"), RunRecord(tmp_path, config={}):
        raise RuntimeError("the cause")
    with pytest.raises(OSError, match="No space left"), RunRecord(tmp_path, config={}):
        pass


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with RunRecord(tmp_path, config={"threshold": math.inf}) as record:
        record.cache_hit_pct = math.nan
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cache_hit_pct"] is None
    assert summary["config"]["threshold"] is None


# --- device and environment ------------------------------------------------------------------------------------------


def test_cuda_is_refused_where_there_is_none_and_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(Run(device="auto").device) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"run.device is cuda, but torch sees no CUDA device"):
        choose_device(Run(device="cuda").device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(Run(device="auto").device) == torch.device("cuda")
    assert choose_device(Run(device="cpu").device) == torch.device("cpu")


@pytest.mark.parametrize(
    ("num_threads", "num_workers", "earlier", "expected"),
    [
        (None, 2, None, 6),
        (None, 8, None, 1),
        (None, 0, None, 8),
        (5, 2, None, 5),
        (None, "auto", None, 1),
        (None, 2, {"num_threads": 3, "rng": [{}]}, 3),
        (None, 2, {"num_threads": 3, "rng": [{}, {}]}, 6),
        (5, 2, {"num_threads": 3, "rng": [{}]}, 5),
    ],
)
def test_torch_gets_the_cores_that_workers_leave_or_what_it_had_before_unless_told_otherwise(
    num_threads: int | None,
    num_workers: int | str,
    earlier: dict[str, Any] | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_module, "cores_per_rank", lambda: 8)
    cfg = config(run=Run(device="cpu", num_threads=num_threads))
    cfg.loader.num_workers = num_workers
    assert run_module._num_threads(cfg, earlier, ALONE) == expected


def test_a_configuration_becomes_plain_values() -> None:
    values = plain(config())
    assert json.loads(json.dumps(values)) == values
    kinds: set[type] = set()

    def collect(value: Any) -> None:
        kinds.add(type(value))
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(item)

    collect(values)
    assert kinds <= {dict, list, str, int, float, bool, type(None)}


def test_the_commit_is_that_of_a_checkout_and_none_outside_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training import environment

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert commit() is None


def test_prefetching_in_half_precision_needs_autocast(pipelines: dict[str, ListPipeline], tmp_path: Path) -> None:
    cfg = config()
    cfg.prefetch.dtype = type(cfg.prefetch.dtype).bfloat16
    with pytest.raises(ValueError, match=r"prefetch.dtype=bfloat16 needs optim.amp=bf16"):
        train(cfg, tmp_path)
