"""Every example in README.md is run as it is written, on a few small images, or stands below with why it is not."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from made_sources import write
from runs import ROOT, summary
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

import pipeline
from pipeline._compat import HYDRA_DEFAULTS
from pipeline.cli import conf_dir
from pipeline.config import BenchConfig, TrainConfig
from pipeline.config.compose import to_config

SMALL = ["transforms.size=16", "loader.batch_size=4", "model.width=8", "run.num_threads=1", "logger.plot=false"]
FOLDER = ["data=folder", "data.root=DIR"]
FAST = ["debug=fast", *SMALL]

RUN = {
    "python train.py data=folder data.root=DIR": FAST,
    "python train.py -m loader.num_workers=0,2,4": [*FAST, *FOLDER],
    "python train.py data=medium --cfg job": [],
    "python -m pipeline.doctor data=medium": [],
    "python -m pipeline.equivalence transforms.resize=exact,fast": [
        *(*SMALL, *FOLDER, "schedule.epochs=1", "schedule.warmup_epochs=0.5"),
        *("--first", "2", "--most", "2", "--margin", "1000"),  # shown, however they differ: the exit code is 0
    ],
    "python train.py run.name=first": ["schedule.epochs=1", "schedule.warmup_epochs=0.5", *SMALL, *FOLDER],
    "python train.py run.name=first resume=auto": ["schedule.epochs=1", "schedule.warmup_epochs=0.5", *SMALL, *FOLDER],
    "python train.py dist.nproc=2": [*FAST, *FOLDER],
}
"""Examples that are run, and what makes each of them short. `DIR` is a folder of images."""

ONLY_COMPOSED = {
    "python train.py data=medium": "10,000 images are generated and learned from",
    "python bench.py -m sweep=ladder": "seven rows of several rounds; test_sweep.py runs such a sweep",
    "torchrun --nproc-per-node=2 train.py run.name=first": "test_dist.py runs torchrun, with kills",
}

ONLY_MADE = {
    "make train": "it sets up an environment of its own",
    "make test": "it would run this test",
}
"""What `make -n` shows."""

NOT_CALLED = {
    'create_dataloader(..., prefetch_device="cuda")': "needs CUDA",
    'PrefetchLoader(any_loader, "cuda")': "needs CUDA",
}
"""Calls of which only the names and the keywords are checked."""

CALLED = {
    "create_dataloader(paths, labels, 64, num_workers=8)",
    "create_dataloader(paths, labels, transform=compose)",
    "LRUCache(capacity)",
}

COMPOSE = Compose([Resize(16), CenterCrop(16), ToTensor()])

DIAGRAM = ("source -> ", "bytes ")
"""How the indented lines begin that are no commands."""

INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CALL = re.compile(r"`((?:create_dataloader|PrefetchLoader|HighPerformanceDataset|LRUCache)\([^`]+\))`")


def page(name: str = "README.md") -> str:
    return (ROOT / name).read_text()


def commands(text: str) -> list[str]:
    """The indented lines that are not in a diagram, without the comments behind them."""
    lines = INDENTED.findall(FENCED.sub("", text))
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if not line.startswith(DIAGRAM)]


def call_examples() -> set[str]:
    return set(CALL.findall(page()))


def start(command: str, *extra: str, cwd: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs one command line of the page, in `cwd`."""
    words = [word.replace("DIR", str(folder)) for word in (*shlex.split(command), *extra)]
    assert words.pop(0) == "python"
    program = ["-m", words[1]] if words[0] == "-m" else [str(ROOT / words[0])]
    rest = words[2:] if words[0] == "-m" else words[1:]
    return subprocess.run(
        [sys.executable, *program, *rest], cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )


def composed(command: str, cwd: Path = ROOT) -> TrainConfig | BenchConfig:
    """The configuration that a command asks for, checked."""
    words = shlex.split(command)
    program = next(word for word in words if word in ("train.py", "bench.py"))
    overrides = [word for word in words[words.index(program) + 1 :] if word != "-m"]
    with initialize_config_dir(config_dir=str(conf_dir()), **HYDRA_DEFAULTS):
        config = to_config(compose(program.removesuffix(".py"), overrides), cwd=str(cwd))
    assert isinstance(config, TrainConfig | BenchConfig)
    return config


def test_every_command_is_known_to_this_test() -> None:
    assert sorted(commands(page())) == sorted([*RUN, *ONLY_COMPOSED, *ONLY_MADE])


def test_every_call_is_known_to_this_test() -> None:
    assert call_examples() == CALLED | set(NOT_CALLED)


def test_every_code_block_is_one_that_this_test_reads() -> None:
    assert [language for language, _ in FENCED.findall(page())] == ["python"]


@pytest.mark.parametrize("command", ONLY_COMPOSED)
def test_a_long_command_is_composed(command: str) -> None:
    assert isinstance(composed(command), BenchConfig if "bench.py" in command else TrainConfig)


@pytest.mark.parametrize("command", ONLY_MADE)
def test_make_knows_its_targets(command: str) -> None:
    made = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert {"make train": "train.py", "make test": "pytest"}[command] in made.stdout


@pytest.mark.parametrize("command", [command for command in RUN if "run.name=first" not in command])
def test_a_command_runs_as_it_is_written(command: str, trial_folder: Path, tmp_path: Path) -> None:
    finished = start(command, *RUN[command], cwd=tmp_path, folder=trial_folder)
    assert finished.returncode == 0, finished.stderr
    if "debug=fast" in RUN[command]:
        runs = [path.parent for path in tmp_path.glob("outputs/debug/**/summary.json")]
        assert [summary(run)["status"] for run in runs] == ["completed"] * (3 if "-m" in command else 1)
    else:
        assert finished.stdout


def test_a_named_run_is_gone_on_with_as_it_is_written(trial_folder: Path, tmp_path: Path) -> None:
    first, second = (command for command in commands(page()) if command in RUN and "run.name=first" in command)
    # The run is whole when it is asked for again, and left as it is; test_resume.py interrupts runs.
    for command in (first, second):
        finished = start(command, *RUN[command], cwd=tmp_path, folder=trial_folder)
        assert finished.returncode == 0, finished.stderr
    assert summary(tmp_path / "outputs/train/first")["status"] == "completed"


def test_the_library_example_runs_as_it_is_written(jpegs: list[Path]) -> None:
    ((_, example),) = FENCED.findall(page())
    names: dict[str, Any] = {"paths": jpegs[:4], "labels": [0, 1, 0, 1], "checkpoint": {}}
    exec(compile(example, "README.md", "exec"), names)
    images, labels = names["images"], names["labels"]
    assert (images.dtype, images.shape) == (torch.float32, (4, 3, 224, 224))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (labels.dtype, labels.shape) == (torch.int64, (4,))
    assert names["checkpoint"]["loader"]["epoch"] == 90


@pytest.mark.parametrize("call", sorted(CALLED))
def test_a_call_runs_as_it_is_written(call: str, jpegs: list[Path]) -> None:
    names: dict[str, Any] = {name: getattr(pipeline, name) for name in pipeline.__all__}
    names |= {"paths": jpegs, "labels": [0] * len(jpegs), "compose": COMPOSE, "capacity": 3}
    made = eval(call, names)
    if call.startswith("create_dataloader"):
        with made as loader:
            assert sum(len(labels) for _, labels in loader) == len(jpegs)


@pytest.mark.parametrize("call", sorted(NOT_CALLED))
def test_a_call_that_is_not_made_here_has_keywords_that_exist(call: str) -> None:
    parsed = ast.parse(call, mode="eval").body
    assert isinstance(parsed, ast.Call)
    assert isinstance(parsed.func, ast.Name)
    known = inspect.signature(getattr(pipeline, parsed.func.id)).parameters
    assert {keyword.arg for keyword in parsed.keywords} <= set(known)
    assert len(parsed.args) <= len(known)


@pytest.mark.parametrize("command", commands(page("docs/sources.md")))
def test_each_command_of_the_page_of_sources_is_composed(command: str, tmp_path: Path) -> None:
    (tmp_path / "DIR").mkdir()
    shards = [f"shards/train-{number:03d}.tar" for number in range(16)]
    for name in (*shards, "list.csv", "images.npy", "labels.npy", "data/train-0.parquet", "data/validation-0.parquet"):
        write(tmp_path / name)
    kind = re.findall(r"data=(\w+)", command)[0]
    assert type(composed(command, cwd=tmp_path).data).__name__ == f"{kind.capitalize()}Data"
