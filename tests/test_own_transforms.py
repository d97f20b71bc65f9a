"""`create_dataloader(transform=...)`: users' callables, wherever they run and wherever they are defined."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import assert_same_batches, digest
from PIL import Image
from samples import HasScratch, OpensALockLater, draws_without_torch
from torchvision import transforms as torchvision_transforms

from pipeline import create_dataloader
from pipeline.config import ConfigError

COMPOSE = torchvision_transforms.Compose(
    [
        torchvision_transforms.RandomResizedCrop(12),
        torchvision_transforms.RandomHorizontalFlip(),
        torchvision_transforms.ColorJitter(0.4, 0.4),
        torchvision_transforms.ToTensor(),
    ]
)


class DrawsFromEverything:
    """Uses all three global generators."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)
        noise = torch.rand(3, 8, 8).numpy() + np.random.rand(3, 8, 8) * random.random()
        return (pixels + noise).astype(np.float32)


def shrink(image: Image.Image) -> np.ndarray:
    """Draws nothing."""
    return np.asarray(image.resize((8, 6))).transpose(2, 0, 1)


class Flattens:
    """Returns what no batch of images can hold."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.zeros(5, np.float32) + len(image.mode)


def make(paths: list[Path], transform: Any, **options: Any) -> Any:
    given = {"num_workers": 2, "cache_size": 0, "seed": 3} | options
    return create_dataloader(paths, range(len(paths)), 4, transform=transform, **given)


@pytest.mark.parametrize("transform", [COMPOSE, DrawsFromEverything()], ids=["torchvision", "every generator"])
def test_an_own_transform_gives_the_same_bytes_for_every_number_of_workers(transform: Any, jpegs: list[Path]) -> None:
    options: list[dict[str, Any]] = [{"num_workers": 0}, {"num_workers": 1}, {"num_workers": 3}]
    options.append({"num_workers": 1, "cache_size": 30, "store": "decoded"})
    loaders = [make(jpegs, transform, **option) for option in options]
    assert_same_batches(loaders)
    for loader in loaders:
        loader.close()


def test_a_serial_loader_leaves_the_global_generators_as_they_were(jpegs: list[Path]) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with make(jpegs, DrawsFromEverything(), num_workers=0) as loader:
        list(loader)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.parametrize(("memory_format", "channels_last"), [("channels_last", True), ("contiguous", False)])
def test_images_have_the_transforms_size_and_type_in_the_format_asked_for(
    memory_format: str, channels_last: bool, jpegs: list[Path]
) -> None:
    with make(jpegs, shrink, num_workers=1, memory_format=memory_format) as loader:
        images, _ = next(iter(loader))
    assert (images.shape, images.dtype) == ((4, 3, 6, 8), torch.uint8)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_what_cannot_be_pickled_is_refused_by_its_path_before_a_process_is_started(jpegs: list[Path]) -> None:
    compose = torchvision_transforms.Compose([COMPOSE, torchvision_transforms.Lambda(lambda image: image)])
    with pytest.raises(TypeError, match=r"transform\.transforms\[1\]\.lambd cannot be sent to worker processes"):
        make(jpegs, compose)
    with pytest.raises(TypeError, match="transform must be callable"):
        make(jpegs, 5)


def test_threads_take_what_cannot_be_pickled(jpegs: list[Path]) -> None:
    with (
        make(jpegs, lambda image: shrink(image), backend="threads") as threaded,
        make(jpegs, shrink) as processes,
    ):
        assert_same_batches([threaded, processes])


def test_threads_warn_once_about_a_transform_that_draws_globally(jpegs: list[Path]) -> None:
    with pytest.warns(UserWarning, match=r"draws from global random generators.*loader\.backend=processes") as caught:
        make(jpegs, COMPOSE, backend="threads").close()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_threads_within_a_worker_are_refused_for_a_transform_that_draws_globally(jpegs: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"loader\.threads_per_worker=2"):
        make(jpegs, COMPOSE, threads_per_worker=2)
    with make(jpegs, shrink, threads_per_worker=2) as threads, make(jpegs, shrink, num_workers=0) as serial:
        assert_same_batches([serial, threads])


def test_a_result_that_is_no_image_is_refused_at_once(jpegs: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"transform must return \(3, H, W\), got \(5,\)"):
        make(jpegs, Flattens())


def test_images_of_different_sizes_are_an_error_with_the_cure(jpegs: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "other.jpg")
    paths = [*jpegs[:6], tmp_path / "other.jpg"]
    with make(paths, torchvision_transforms.ToTensor(), shuffle=False) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(ValueError, match="add a resize to the transform") as caught:
            next(iterator)
    assert "id 6" in " ".join(caught.value.__notes__)


def test_what_a_transform_would_silence_is_refused(jpegs: list[Path]) -> None:
    for options in ({"augment": "light"}, {"resize": "exact"}, {"decode": "scaled"}):
        with pytest.raises(ValueError, match="transform replaces the built-in transforms"):
            make(jpegs, shrink, **options)


def test_a_worker_of_one_thread_seeds_what_its_transform_draws_from(jpegs: list[Path]) -> None:
    with (
        make(jpegs[:8], draws_without_torch, num_workers=0) as serial,
        make(jpegs[:8], draws_without_torch) as processes,
    ):
        assert_same_batches([serial, processes])


def test_a_transform_may_write_to_an_array_of_its_own_in_worker_processes(jpegs: list[Path]) -> None:
    transform = HasScratch()
    with make(jpegs, transform, num_workers=0) as serial, make(jpegs, transform, num_workers=2) as processes:
        assert_same_batches([serial, processes])


def test_a_transform_that_opens_a_lock_at_its_first_call_can_be_sent_and_begins_there_anew(
    jpegs: list[Path], tmp_path: Path
) -> None:
    transform = OpensALockLater(tmp_path / "calls")
    with make(jpegs[:8], transform, num_workers=1, shuffle=False) as loader:
        list(loader)
    calls = [tuple(map(int, line.split())) for line in (tmp_path / "calls").read_text().splitlines()]
    of_worker = [number for pid, number in calls if pid != os.getpid()]
    assert of_worker[:8] == list(range(1, 9))  # and whatever it made ahead of the next epoch
    assert transform.num_calls == 0, "the user's own object was called"


def run_script(directory: Path, text: str, *jpegs: Path) -> subprocess.CompletedProcess[str]:
    script = directory / "user_script.py"
    script.write_text(textwrap.dedent(text))
    command = [sys.executable, str(script), *map(str, jpegs)]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=120, check=False)


SCRIPT = """
    import sys
    import numpy as np
    from pipeline import create_dataloader

    class Mine:
        def __call__(self, image):
            return np.asarray(image.resize((4, 4))).transpose(2, 0, 1)

    def main():
        paths = sys.argv[1:]
        with create_dataloader(paths, range(len(paths)), 4, num_workers=2, transform=Mine()) as loader:
            for images, labels in loader:
                print(images.shape)

    {call}
"""


def test_a_transform_of_the_main_script_works_behind_the_guard(jpegs: list[Path], tmp_path: Path) -> None:
    finished = run_script(tmp_path, SCRIPT.format(call='if __name__ == "__main__": main()'), *jpegs[:8])
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("torch.Size([4, 3, 4, 4])") == 2


def test_without_the_guard_the_error_says_what_to_do(jpegs: list[Path], tmp_path: Path) -> None:
    finished = run_script(tmp_path, SCRIPT.format(call="main()"), *jpegs[:8])
    assert finished.returncode != 0
    assert "this script is being imported to find your transform" in finished.stderr
    assert 'if __name__ == "__main__"' in finished.stderr


def test_a_transform_of_a_notebook_is_refused_with_the_cure(jpegs: list[Path], tmp_path: Path) -> None:
    text = textwrap.dedent(SCRIPT.format(call="main()"))
    command = [sys.executable, "-c", text, *map(str, jpegs[:8])]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert finished.returncode != 0
    assert "Mine cannot be imported by worker processes" in finished.stderr
    assert "move it to a module" in finished.stderr


def test_augmentation_by_an_own_transform_differs_between_epochs_and_resumes(jpegs: list[Path]) -> None:
    with make(jpegs, COMPOSE, num_workers=1) as loader:
        whole = [digest(batch) for _ in range(2) for batch in loader]
        assert len(set(whole)) == len(whole)
    with make(jpegs, COMPOSE, num_workers=0) as loader:
        iterator = iter(loader)
        for _ in range(2):
            next(iterator)
        state = loader.state_dict()
    with make(jpegs, COMPOSE, num_workers=2) as resumed:
        resumed.load_state_dict(state)
        assert [digest(batch) for _ in range(2) for batch in resumed] == whole[2:]
