"""`data.max_samples`: some of a source's samples, the same part of every class, are a source themselves."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import write_jpegs
from made_sources import SOURCES, make_shards, make_tree

from pipeline.build import build_pipeline
from pipeline.build_source import open_source
from pipeline.config import Backend, FolderData, Loader, ManifestData, PipelineConfig, Preload, Transforms
from pipeline.sources import FileSource, Subset, at_most, open_folder, open_tar


def numbered(labels: list[int]) -> FileSource:
    return FileSource([f"{number}.jpg" for number in range(len(labels))], labels, ["a", "b", "c"])


@pytest.mark.parametrize("kind", SOURCES)
def test_a_part_of_every_source_has_the_samples_of_the_whole_and_is_the_same_after_a_pickle(
    kind: str, tmp_path: Path
) -> None:
    whole = SOURCES[kind](tmp_path, "train")
    part = at_most(whole, 7)
    assert len(part) == len(part.labels) == 7
    assert not part.labels.flags.writeable
    assert part.class_names == whole.class_names
    places = {whole.where(id): id for id in range(len(whole))}
    ids = [places[part.where(id)] for id in range(7)]
    assert ids == sorted(set(ids))
    for other in (part, pickle.loads(pickle.dumps(part))):
        for id, of_whole in enumerate(ids):
            assert np.array_equal(other.read(id), whole.read(of_whole))
            assert other.label(id) == whole.label(of_whole) == other.labels[id]
            assert other.stamp(id) == whole.stamp(of_whole)
        assert other.fingerprint() == part.fingerprint()
    for outside in (-1, 7):
        with pytest.raises(IndexError):
            part.read(outside)
    part.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", ["one after another", "in turns"])
def test_a_class_keeps_its_share_however_the_source_orders_them(order: str) -> None:
    labels = [0, 1, 2] * 20
    source = numbered(sorted(labels) if order == "one after another" else labels)
    for max_samples in (3, 6, 20, 30):  # every 20th, 10th, 3rd sample of those in turns would be of one class
        counts = np.bincount(at_most(source, max_samples).labels, minlength=3)
        assert counts.max() - counts.min() <= 1, (max_samples, counts)


def test_labels_that_are_no_classes_are_spread_over_the_samples_as_they_come() -> None:
    source = FileSource([f"{number}.jpg" for number in range(8)], np.eye(8))
    part = at_most(source, 4)
    assert [part.where(id) for id in range(4)] == ["0.jpg", "2.jpg", "4.jpg", "6.jpg"]
    assert np.array_equal(part.labels, np.eye(8)[::2])


def test_as_many_as_there_are_or_more_are_the_source_itself() -> None:
    source = numbered([0, 1, 2, 0])
    assert all(at_most(source, number) is source for number in (None, 4, 5))
    assert isinstance(at_most(source, 3), Subset)


def test_parts_of_other_samples_or_of_another_source_have_other_fingerprints() -> None:
    source = numbered([0, 1, 2, 0, 1, 2])
    other = FileSource([f"{number}.png" for number in range(6)], [0, 1, 2] * 2)
    parts = [source, at_most(source, 4), at_most(source, 3), at_most(other, 3), Subset(source, np.array([3, 4, 5]))]
    assert len({part.fingerprint() for part in parts}) == len(parts)


def test_a_part_names_its_files_or_all_archives_and_closes_those(tmp_path: Path) -> None:
    files = at_most(open_folder(make_tree(tmp_path / "tree"), split="train"), 5)
    assert list(files.files()) == [files.where(id) for id in range(5)]
    tar = open_tar(make_shards(tmp_path / "shards"), split="train", val_fraction=0.3)
    part = at_most(tar, 5)
    assert list(part.files()) == list(tar.files())
    part.read(0)
    assert tar._descriptors
    part.close()  # type: ignore[attr-defined]
    assert not tar._descriptors


def test_each_split_has_its_own_limit(tmp_path: Path) -> None:
    data = FolderData(root=str(make_tree(tmp_path)), val_fraction=0.5, max_samples=9, max_val_samples=4)
    assert (len(open_source(data, "train")), len(open_source(data, "val"))) == (9, 4)
    fewer = replace(data, max_samples=1000, max_val_samples=None)
    assert len(open_source(fewer, "train")) + len(open_source(fewer, "val")) == 60


def test_weights_go_with_their_samples(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,{number % 2},{number + 1},train" for number in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,weight,split", *rows, "x.jpg,0,1,val", ""]))
    part = open_source(ManifestData(path=str(tmp_path / "list.csv"), max_samples=3), "train")
    places = [int(Path(part.where(id)).stem) for id in range(3)]
    assert part.weights.tolist() == [place + 1 for place in places]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("num_workers", "backend", "preload"), [(2, "threads", "ram"), (2, "processes", "none"), (2, "processes", "pack")]
)
def test_a_part_gives_the_same_batches_however_it_is_loaded(
    num_workers: int, backend: str, preload: str, tmp_path: Path
) -> None:
    for name in ("cats", "dogs"):
        write_jpegs(tmp_path / "train" / name, 8)
        write_jpegs(tmp_path / "val" / name, 1)

    def batches(loader: Loader, preload: Preload) -> list[tuple[list[int], bytes]]:
        config = PipelineConfig(
            data=FolderData(root=str(tmp_path), max_samples=6),
            loader=loader,
            preload=preload,
            transforms=Transforms.named("light", size=16),
        )
        with build_pipeline(config) as pipeline:
            return [(batch.ids.tolist(), batch.images.numpy().tobytes()) for _ in range(2) for batch in pipeline]

    plain = batches(Loader(batch_size=4, num_workers=0), Preload())
    loader = Loader(batch_size=4, num_workers=num_workers, backend=Backend(backend))
    assert batches(loader, Preload(mode=preload, dir=str(tmp_path / "packs"))) == plain  # type: ignore[arg-type]
    assert sum(len(ids) for ids, _ in plain) == 12
