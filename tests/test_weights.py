"""Weights that a run begins with, weights that are only evaluated, and the checkpoints that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import write_jpegs
from runs import assert_same_run, rows, short_run, summary

from pipeline.config import ConfigError, Model
from pipeline.model import build_model
from pipeline.training import fit as fit_module
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.run import train

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    train(short_run(images), run_dir)
    return run_dir


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


# --- init_from -------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_it_is_given(images: Path, trained: Path, tmp_path: Path) -> None:
    last = trained / "checkpoints/last.pt"
    cfg = short_run(images, init_from=last, optim={"lr": 1e-12, "weight_decay": 0.0})
    train(cfg, tmp_path)
    given, ours = load_checkpoint(last)["model"], load_checkpoint(tmp_path / "checkpoints/last.pt")
    for name in given:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(ours["model"][name], given[name], rtol=1e-6, atol=1e-9)


def test_the_head_is_drawn_anew_for_other_classes_and_the_rest_is_taken(tmp_path: Path, images: Path) -> None:
    torch.manual_seed(5)
    of_ten = build_model(Model(width=8), 10).state_dict()
    torch.save(of_ten, tmp_path / "ten.pt")
    cfg = short_run(images, init_from=tmp_path / "ten.pt", optim={"lr": 1e-12, "weight_decay": 0.0})
    train(cfg, tmp_path / "run")
    ours = load_checkpoint(tmp_path / "run/checkpoints/last.pt")["model"]
    name = "stem.0.weight"
    torch.testing.assert_close(ours[name], of_ten[name], rtol=1e-6, atol=1e-9)
    assert ours["head.2.weight"].shape[0] == 2


def test_weights_of_another_model_are_refused_by_the_first_that_differs(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        train(short_run(images, init_from=trained / "checkpoints/last.pt", model=Model(width=16)), tmp_path)
    text = str(refused.value)
    assert "is of another model: stem.0.weight is (8, 3, 3, 3), the model's is (16, 3, 3, 3)" in text
    assert text.endswith("choose its model.name and model.width")


@pytest.mark.parametrize(
    ("content", "words"), [(b"not weights", "is no file of weights"), (None, "cannot be read as weights")]
)
def test_a_file_that_holds_no_weights_is_one_line(
    content: bytes | None, words: str, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        train(short_run(images, init_from=path), tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_a_file_of_numbers_holds_no_weights(images: Path, tmp_path: Path) -> None:
    torch.save({"model": {"epoch": 3}}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="holds no weights"):
        train(short_run(images, init_from=tmp_path / "x.pt"), tmp_path / "run")


# --- evaluation only -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [None, 0.5], ids=["the weights", "their average"])
def test_evaluation_alone_gives_what_training_measured(
    decay: float | None, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(short_run(images, optim={"average_decay": decay}), tmp_path / "run")
    capsys.readouterr()
    last = tmp_path / "run/checkpoints/last.pt"
    top1 = train(short_run(images, init_from=last, run={"evaluate_only": True}), tmp_path / "eval")
    done, before = summary(tmp_path / "eval"), summary(tmp_path / "run")
    assert top1 == before["eval_top1"]
    assert (done["eval_top1"], done["eval_num_samples"], done["steps"]) == (top1, 7, 0)
    assert done["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-6)
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["summary.json"]
    told = capsys.readouterr()
    assert told.out.startswith(f"evaluated: top-1 {100 * top1:.1f} % of 7 validation images")
    assert told.err == ""


def test_evaluation_with_other_pixels_than_in_training_says_so(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = short_run(images, init_from=trained / "checkpoints/last.pt", size=24, run={"evaluate_only": True})
    train(cfg, tmp_path)
    assert "warning: these weights were trained for evaluation with transforms.size=16" in capsys.readouterr().err


def test_weights_of_other_classes_are_not_scored(trained: Path, tmp_path: Path) -> None:
    for name in ("cats", "emus"):
        write_jpegs(tmp_path / "images" / name, 12)
    cfg = short_run(tmp_path / "images", init_from=trained / "checkpoints/last.pt", run={"evaluate_only": True})
    with pytest.raises(
        ConfigError, match=r"was trained on other classes: 2 \(cats, dogs\), and here they are 2 \(cats"
    ):
        train(cfg, tmp_path / "run")


def test_evaluation_alone_needs_weights(images: Path) -> None:
    with pytest.raises(ConfigError, match="give init_from=FILE"):
        short_run(images, run={"evaluate_only": True})


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_best_epochs_are_kept_and_no_others_also_by_a_run_that_was_interrupted(
    images: Path, tmp_path: Path
) -> None:
    longer = {"schedule": {"epochs": 5}, "optim": {"average_decay": 0.5, "mixup": 0.2}}
    train(short_run(images, run={"keep_top": 2}, **longer), tmp_path / "whole")
    train(short_run(images, run={"keep_top": 2, "max_steps": 10}, **longer), tmp_path / "cut")
    train(short_run(images, run={"keep_top": 2}, resume=tmp_path / "cut", **longer), tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    scores = {int(row["epoch"]): float(row["eval_top1"]) for row in rows(tmp_path / "whole")}
    best = sorted(scores, key=lambda epoch: (-scores[epoch], epoch))[:2]
    for run_dir in (tmp_path / "whole", tmp_path / "cut"):
        kept = {path.name: load_checkpoint(path) for path in (run_dir / "checkpoints").glob("epoch-*.pt")}
        assert {name: state["epoch"] for name, state in kept.items()} == {f"epoch-{epoch}.pt": epoch for epoch in best}
    averages = [load_checkpoint(tmp_path / name / "checkpoints/last.pt")["average"] for name in ("whole", "cut")]
    assert same(*averages)


def test_checkpoints_that_were_kept_stay_when_the_run_goes_on_without_keeping_any(images: Path, tmp_path: Path) -> None:
    train(short_run(images, run={"keep_top": 2, "max_steps": 4}), tmp_path)
    kept = [path.name for path in (tmp_path / "checkpoints").glob("epoch-*.pt")]
    train(short_run(images, resume=tmp_path), tmp_path)
    assert kept == ["epoch-1.pt"]
    assert (tmp_path / "checkpoints/epoch-1.pt").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"optim": {"amp": "fp16"}},
        {"optim": {"average_decay": 0.9, "mixup": 0.2, "cutmix": 1.0, "num_parts": 2}},
        {"schedule": {"name": "one_cycle"}},
    ],
    ids=["fp16", "average, mixing and parts", "one cycle"],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(options: dict[str, Any], images: Path, tmp_path: Path) -> None:
    train(short_run(images, **options), tmp_path / "whole")
    train(short_run(images, run={"max_steps": 5}, **options), tmp_path / "cut")
    train(short_run(images, resume=tmp_path / "cut", **options), tmp_path / "cut")
    last = [load_checkpoint(tmp_path / name / "checkpoints/last.pt") for name in ("cut", "whole")]
    assert same(last[0]["model"], last[1]["model"])
    for key in ("scaler", "scheduler"):
        assert last[0][key] == last[1][key]
    if last[1]["average"] is not None:
        assert same(last[0]["average"], last[1]["average"])


def test_a_deterministic_run_has_torch_refuse_what_is_not_and_leaves_it_as_it_was(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def saved(path: Path, state: dict[str, Any]) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr(fit_module, "save_checkpoint", saved)
    train(short_run(images, run={"deterministic": True, "max_steps": 1}), tmp_path)
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
