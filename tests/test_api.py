"""The plain-Python face: signatures, defaults, refusals, and use under other frameworks."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import worker_threads
from fakes import write_jpegs
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as torchvision_transforms

import pipeline
from pipeline import HighPerformanceDataset, LRUCache, PrefetchLoader, create_dataloader


def labels_of(paths: list[Path]) -> list[int]:
    return list(range(len(paths)))


def test_the_signature_is_the_documented_one() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(create_dataloader).parameters.items()}
    positional = ["data_paths", "labels", "batch_size", "num_workers", "img_size", "cache_size", "preload", "augment"]
    assert list(defaults)[:10] == [*positional, "pin_memory", "prefetch_device"]
    assert [defaults[name] for name in list(defaults)[2:10]] == [32, 4, 224, 1000, False, True, True, None]
    keywords = {
        "transform": None,
        "backend": "auto",
        "threads_per_worker": 1,
        "prefetch_factor": 2,
        "shuffle": None,
        "sampler": None,
        "drop_last": False,
        "seed": 0,
        "on_error": "raise",
        "max_bad_fraction": 0.1,
        "quarantine": None,
        "max_restarts": 3,
        "stall_timeout_s": 300,
        "cache_policy": "lru",
        "store": "auto",
        "decode": "full",
        "resize": None,
        "background": (255, 255, 255),
        "icc": "ignore",
        "crops_per_image": 1,
        "memory_format": "channels_last",
        "rank": None,
        "world_size": None,
    }
    assert {name: defaults[name] for name in list(defaults)[10:]} == keywords


def test_defaults_give_normalised_augmented_batches_with_labels(jpegs: list[Path]) -> None:
    with create_dataloader(jpegs, labels_of(jpegs), num_workers=2) as loader:
        images, labels = next(iter(loader))
        assert images.shape == (23, 3, 224, 224)
        assert images.dtype is torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype is torch.int64
        assert -2.2 < images.min().item() < images.max().item() < 2.7
        assert len(loader.dataset) == 23
        assert (loader.batch_size, loader.num_workers) == (32, 2)
        assert loader.stats()["decode_count"] >= 23


def test_without_augmentation_images_are_torchvisions_in_order(jpegs: list[Path]) -> None:
    tv = torchvision_transforms
    reference = tv.Compose([tv.Resize(37), tv.CenterCrop(32), tv.ToTensor()])
    expected = torch.stack([reference(Image.open(path).convert("RGB")) for path in jpegs])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with create_dataloader(jpegs, labels_of(jpegs), 23, img_size=32, augment=False, num_workers=1) as loader:
        ((images, labels),) = loader
    assert labels.tolist() == labels_of(jpegs)
    pixels = images * std[:, None, None] + mean[:, None, None]
    assert (pixels - expected).abs().mean().item() < 1 / 255


@pytest.mark.parametrize(
    "labels",
    [np.linspace(0, 1, 23), np.eye(23, dtype=np.float32), [[number, -number] for number in range(23)]],
    ids=["regression", "multi-hot", "pairs"],
)
def test_labels_of_any_shape_stay_with_their_samples(labels: Any, jpegs: list[Path]) -> None:
    with create_dataloader(jpegs, labels, 4, num_workers=1, img_size=16) as loader:
        for batch in loader:
            assert np.allclose(batch.labels.numpy(), np.asarray(labels)[batch.ids.numpy()])


def test_a_pack_of_pixels_takes_the_place_of_a_cache_of_any_size(
    jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with create_dataloader(jpegs, labels_of(jpegs), img_size=16, preload="pack", store="decoded") as loader:
        list(loader)
        assert "cache_hits" not in loader.stats()
    assert len(list((tmp_path / "data" / ".packs").glob("images-decoded-*.pack"))) == 1


@pytest.mark.parametrize(
    "options", [{"num_workers": 2}, {"num_workers": 1, "backend": "processes"}, {"num_workers": 1, "store": "decoded"}]
)
def test_stats_say_how_many_images_were_no_plain_jpegs(
    jpegs: list[Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    pngs = [tmp_path / f"{number}.png" for number in range(5)]
    for path in pngs:
        Image.new("RGB", (12, 9), (200, 10, 30)).save(path)
    paths = [*jpegs[:7], *pngs]
    with create_dataloader(paths, [0] * 12, 4, img_size=16, cache_size=12, **options) as loader:
        list(loader)
        stats = loader.stats()
    assert (stats["decode_count"], stats["decoded_by_pillow"]) == (12, 5)


def test_class_balanced_sampling_shows_rare_classes_as_often(jpegs: list[Path]) -> None:
    labels = [0] * 20 + [1] * 3
    with create_dataloader(jpegs, labels, 23, num_workers=1, img_size=8, sampler="balanced") as loader:
        shown = torch.cat([batch.labels for _ in range(40) for batch in loader])
    assert abs(shown.float().mean().item() - 0.5) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": abs, "augment": "light"}, "transform replaces the built-in transforms"),
        ({"quarantine": "q.csv"}, "quarantine has no use with on_error=.raise."),
        ({"stall_timeout_s": 0}, r"loader\.stall_timeout_s must be > 0, got 0"),
        ({"max_restarts": -1}, r"loader\.max_restarts must be >= 0, got -1"),
        ({"max_bad_fraction": 0.5}, r"data\.max_bad_fraction=0.5 has no use with data\.on_error=raise"),
        ({"cache_size": -5}, "cache_size must be >= 0, got -5"),
        ({"shuffle": True, "sampler": "sequential"}, "shuffle or sampler, not both"),
        ({"backend": "process"}, r"loader\.backend has no choice 'process'; did you mean processes"),
        ({"on_error": "drop"}, r"data\.on_error has no choice 'drop'"),
        ({"threads_per_worker": 2}, r"loader\.threads_per_worker=2 is for worker processes"),
        ({"num_workers": -1}, r"loader\.num_workers must be auto or a whole number >= 0, got -1"),
        ({"batch_size": 0}, r"loader\.batch_size must be >= 1, got 0"),
        ({"augment": "strong"}, r"transforms\.augment has no choice 'strong'"),
        ({"cache_policy": "flu"}, "did you mean lru"),
        ({"store": "raw"}, r"cache\.store has no choice 'raw'"),
        ({"preload": "disk"}, r"preload\.mode has no choice 'disk'"),
        ({"memory_format": "planar"}, "memory_format must be channels_last or contiguous"),
        ({"rank": 1}, "rank and world_size go together"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size=2\)"),
        ({"sampler": "weighted"}, r"loader\.sampler=weighted needs weights"),
        ({"decode": "scaled", "store": "decoded"}, r"cache\.store=decoded .* transforms\.decode=scaled"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused_by_name_and_start_nothing(
    options: dict[str, Any], message: str, jpegs: list[Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        create_dataloader(jpegs, labels_of(jpegs), **({"num_workers": 2} | options))
    assert not worker_threads()


def test_no_paths_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="data_paths is empty"):
        create_dataloader([], [])


def test_a_public_loader_says_what_it_is_and_the_package_lists_its_names(jpegs: list[Path]) -> None:
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with create_dataloader(jpegs, labels_of(jpegs), 4, num_workers=0, img_size=16) as loader:
        assert repr(loader) == "Pipeline(23 samples, batch_size=4, no workers, augment=standard, size=16)"


def test_a_missing_label_is_refused(jpegs: list[Path]) -> None:
    with pytest.raises(ValueError, match="one label for each sample, got 3 labels for 23"):
        create_dataloader(jpegs, [0, 1, 2])


def test_a_launcher_without_torch_distributed_is_warned_about(
    jpegs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="WORLD_SIZE=2 but torch.distributed is not initialised"):
        create_dataloader(jpegs, labels_of(jpegs), num_workers=0).close()
    create_dataloader(jpegs, labels_of(jpegs), num_workers=0, rank=0, world_size=2).close()


def test_the_loader_follows_torch_distributed(jpegs: list[Path], tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with create_dataloader(jpegs, labels_of(jpegs), 4, num_workers=0, img_size=8) as loader:
            assert sorted(id for batch in loader for id in batch.ids.tolist()) == labels_of(jpegs)
    finally:
        torch.distributed.destroy_process_group()


def test_no_path_is_opened_before_it_is_needed_and_no_list_is_kept(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 8)
    given = [str(path) for path in paths]
    with create_dataloader(given, labels_of(paths), 4, num_workers=1, img_size=8, augment=False) as loader:
        given.clear()
        assert sum(len(batch.ids) for batch in loader) == 8


def test_a_dataset_without_a_transform_gives_uint8_tensors_of_the_callers_own(jpegs: list[Path]) -> None:
    dataset = HighPerformanceDataset(jpegs, labels_of(jpegs), cache_size=4)
    image, label = dataset[2]
    assert (image.dtype, label) == (torch.uint8, 2)
    assert np.array_equal(image.numpy(), np.asarray(Image.open(jpegs[2])).transpose(2, 0, 1))
    image.zero_()
    assert dataset[2][0].sum() > 0, "a caller's change reached the cache"
    assert torch.equal(dataset[-1][0], dataset[22][0])
    with pytest.raises(IndexError):
        dataset[23]


def test_a_dataset_remembers_images_before_its_transform(jpegs: list[Path]) -> None:
    seen: list[Image.Image] = []
    dataset = HighPerformanceDataset(jpegs, labels_of(jpegs), transform=seen.append, cache_size=2)
    for index in (0, 1, 0, 2, 0, 1):
        dataset[index]
    assert len(seen) == 6
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in seen)
    stats = dataset.stats()
    assert (stats["hits"], stats["misses"], stats["evictions"]) == (2, 4, 2)


def test_a_preloaded_dataset_reads_nothing_more(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 6)
    dataset = HighPerformanceDataset(paths, labels_of(paths), cache_size=2, preload=True)
    for path in paths:
        path.unlink()
    assert [dataset[index][1] for index in range(6)] == labels_of(paths)


@pytest.mark.parametrize("context", [None, "fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_torch_dataloader_drives_the_dataset_with_torchvision(context: str | None, jpegs: list[Path]) -> None:
    tv = torchvision_transforms
    transform = tv.Compose([tv.RandomResizedCrop(16), tv.ToTensor()])
    dataset = HighPerformanceDataset(jpegs, labels_of(jpegs), transform=transform)
    loader = DataLoader(dataset, 8, num_workers=0 if context is None else 1, multiprocessing_context=context)
    batches = list(PrefetchLoader(loader, "cpu"))
    assert torch.cat([labels for _, labels in batches]).tolist() == labels_of(jpegs)
    assert batches[0][0].shape == (8, 3, 16, 16)


def test_a_pickled_dataset_begins_with_an_empty_cache(jpegs: list[Path]) -> None:
    dataset = HighPerformanceDataset(jpegs, labels_of(jpegs))
    dataset[3]
    for again in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert again.stats()["entries"] == 0
        assert torch.equal(again[3][0], dataset[3][0])
        again[3]
        assert (again.stats()["entries"], again.stats()["hits"]) == (1, 1)


def test_a_broken_file_is_named_by_the_dataset(broken_jpeg: Path) -> None:
    with HighPerformanceDataset([broken_jpeg], [0]) as dataset, pytest.raises(ValueError, match="truncated") as caught:
        dataset[0]
    assert str(broken_jpeg) in caught.value.__notes__[0]


def test_the_public_cache_is_the_documented_one() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.put("a", 1)
    assert ("a" in cache, len(cache), cache.capacity, cache.get("b", 5)) == (True, 1, 2, 5)
    assert {"hits", "misses", "evictions"} <= cache.stats().keys()
    cache.clear()
    assert len(cache) == 0


def test_settings_of_torch_are_left_alone(jpegs: list[Path]) -> None:
    before = (torch.get_num_threads(), torch.initial_seed(), torch.random.get_rng_state())
    with create_dataloader(jpegs, labels_of(jpegs), 4, num_workers=2, img_size=8) as loader:
        list(loader)
    after = (torch.get_num_threads(), torch.initial_seed(), torch.random.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_lightning_trainer_takes_the_loader_as_it_is(jpegs: list[Path], tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Mean(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 23)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, labels = batch
            return torch.nn.functional.cross_entropy(self.layer(images.mean((2, 3))), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with create_dataloader(jpegs, labels_of(jpegs), 4, num_workers=1, img_size=16) as loader:
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
        )
        trainer.fit(Mean(), loader)
        assert trainer.global_step == 2 * len(loader)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
@pytest.mark.filterwarnings("ignore")
def test_accelerate_moves_the_loaders_batches(jpegs: list[Path]) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(3, 23))
    with create_dataloader(jpegs, labels_of(jpegs), 4, num_workers=1, img_size=16) as loader:
        for batch in itertools.islice(loader, 3):
            images, labels = batch.to(accelerator.device)
            accelerator.backward(torch.nn.functional.cross_entropy(model(images.mean((2, 3))), labels))
    assert next(model.parameters()).grad is not None
