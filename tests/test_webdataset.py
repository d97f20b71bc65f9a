"""`data=tar` beside the webdataset library: what that writes, read by both."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes import jpeg_bytes, photo
from PIL import Image

from pipeline.build import build_pipeline
from pipeline.config import Loader, PipelineConfig, Prefetch, TarData, Transforms
from pipeline.sources import open_tar

wds = pytest.importorskip("webdataset")
tar_file_expander, group_by_keys = wds.tariterators.tar_file_expander, wds.tariterators.group_by_keys

Written = dict[str, Any]
Read = tuple[str, bytes, int | str]
"""Name of the image in its shard, its bytes, its label."""


def png_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def of_class(key: str, number: int) -> Written:
    return {"__key__": key, "jpg": jpeg_bytes(photo(number)), "cls": number % 3}


def with_json(key: str, number: int) -> Written:
    return {"__key__": key, "jpg": jpeg_bytes(photo(number)), "json": {"label": number % 3, "caption": "é"}}


def png_with_masks(key: str, number: int) -> Written:
    return {"__key__": key, "png": png_bytes(number), "seg.png": png_bytes(99), "cls": number % 3, "txt": "a text"}


def jpeg_in_capitals(key: str, number: int) -> Written:
    return {"__key__": key, "JPEG": jpeg_bytes(photo(number)), "cls": number % 3}


def classes_by_name(key: str, number: int) -> Written:
    return {"__key__": key, "jpg": jpeg_bytes(photo(number)), "json": {"label": ("ant", "bee", "cat")[number % 3]}}


def arrays_as_the_library_encodes_them(key: str, number: int) -> Written:
    return {"__key__": key, "jpg": photo(number), "cls": number % 3}


FORMS = [of_class, with_json, png_with_masks, jpeg_in_capitals, classes_by_name, arrays_as_the_library_encodes_them]
KEYS = {
    "numbers": [f"{number:06d}" for number in range(7)],
    "directories with dots": [f"v1.2/part.{number % 2}/{number:06d}" for number in range(7)],
    "not in order": ["c", "a", "b", "Z", "10", "9", "with space"],
    "unicode": ["é", "e\u0301", "日本/図", "ß", "🐈", "Ω" * 60, "x" * 150],
    "the same in each shard": ["a", "b", "c", "a", "b", "c", "a"],
}


def write_shards(root: Path, samples: Iterable[Written], per_shard: int = 3) -> str:
    """Shards as the library writes them; returns their pattern."""
    with wds.ShardWriter(str(root / "s-%03d.tar"), maxcount=per_shard, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return str(root / "s-*.tar")


def read_by_library(root: Path) -> list[Read]:
    """Every sample in the order of shards, its label as `.cls` or `.json` has it."""
    with ExitStack() as files:
        # Opened here, for the library leaves closing them to the garbage collector.
        shards = [
            {"url": str(path), "stream": files.enter_context(path.open("rb"))} for path in sorted(root.glob("s-*"))
        ]
        return [
            (f"{sample['__url__']}:{sample['__key__']}", image, label)
            for sample in group_by_keys(tar_file_expander(shards))
            for image in [sample[suffix] for suffix in ("jpg", "png", "jpeg") if suffix in sample]
            for label in [int(sample["cls"]) if "cls" in sample else json.loads(sample["json"])["label"]]
        ]


def read_here(pattern: str) -> list[Read]:
    source = open_tar(pattern, split="train", val_fraction=0.0)
    names = source.class_names
    # A number is the class itself; of names the source says which number stands for which.
    labels = [names[label] if "ant" in names else int(label) for label in source.labels]
    read = [
        (source.where(id).rpartition(".")[0], source.read(id), label)
        for id, label in zip(range(len(source)), labels, strict=True)
    ]
    source.close()
    return read


def add(shard: Path, *names: str) -> None:
    """Members as `tar` writes them, which the library's writer would not."""
    with tarfile.open(shard, "a") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_sample_is_read_as_the_library_reads_it(form: Any, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [form(f"{number:06d}", number) for number in range(7)])
    read = read_here(pattern)
    assert len(read) == 7
    assert read == read_by_library(tmp_path)


@pytest.mark.parametrize("keys", KEYS)
def test_each_form_of_key_is_read_as_the_library_reads_it(keys: str, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class(key, number) for number, key in enumerate(KEYS[keys])])
    read = read_here(pattern)
    assert len(read) == 7
    assert read == read_by_library(tmp_path)


def test_members_that_the_format_takes_for_no_sample_are_passed_over_as_the_library_does(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class("a", 1), of_class("b", 2)])
    add(tmp_path / "s-000.tar", "README", "__meta__", "__note__/a.jpg", "._a.jpg", "d/.hidden.jpg")
    read = read_here(pattern)
    assert [name.rpartition(":")[2] for name, _, _ in read] == ["a", "b"]
    assert read == read_by_library(tmp_path)


def test_a_key_with_two_underscores_before_and_after_is_a_sample_when_it_has_a_suffix(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class("__a__", 1), of_class("__b", 2)])
    read = read_here(pattern)
    assert len(read) == 2
    assert read == read_by_library(tmp_path)


def test_keys_that_differ_in_their_directory_alone_are_samples_of_their_own(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class(key, number) for number, key in enumerate(("a/1", "b/1", "1"))])
    read = read_here(pattern)
    assert len(read) == 3
    assert read == read_by_library(tmp_path)


def test_members_of_a_sample_need_not_lie_side_by_side(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s-000.tar", "w") as archive:
        for name in ("a.jpg", "b.jpg", "b.cls", "a.cls"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO({"a": b"1", "b": b"2"}[name[0]]))
    assert read_here(str(tmp_path / "s-*.tar")) == [
        (f"{tmp_path}/s-000.tar:a", b"1", 1),
        (f"{tmp_path}/s-000.tar:b", b"2", 2),
    ]


def test_the_same_key_in_two_shards_is_two_samples_of_one_split(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class(f"{number % 10}", number) for number in range(20)], per_shard=10)
    for split in ("train", "val"):
        source = open_tar(pattern, split=split, val_fraction=0.4)
        members = [source.where(id).rpartition(":")[2] for id in range(len(source))]
        assert members[: len(members) // 2] == members[len(members) // 2 :]
        source.close()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([of_class("a", 1), {"__key__": "a", "jpg": b"x"}], r"s-0+\.tar: sample 'a' has two images, a\.jpg and a\.jpg"),
        ([of_class("a", 1), {"__key__": "a", "cls": 2}], r"s-0+\.tar: sample 'a' has two labels, the second in a\.cls"),
    ],
)
def test_a_key_twice_in_one_shard_is_refused_as_the_library_refuses_it(
    samples: list[Written], message: str, tmp_path: Path
) -> None:
    pattern = write_shards(tmp_path, samples)
    with pytest.raises(ValueError, match="duplicate file name"):
        read_by_library(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_here(pattern)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"__key__": "a", "jpg": b"x"}, "sample 'a' has no label"),
        ({"__key__": "a", "jpg": b"x", "json": {"caption": 1}}, "sample 'a' has no label"),
        ({"__key__": "a", "cls": 1}, "sample 'a' has no image"),
        ({"__key__": "photo.v2", "jpg": b"x", "cls": 1}, "sample 'photo' has no image.*ends at the first dot"),
    ],
)
def test_a_sample_without_image_or_label_is_refused_by_its_key(sample: Written, message: str, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class("whole", 1), sample])
    with pytest.raises(ValueError, match=rf"s-0+\.tar: {message}"):
        read_here(pattern)


def test_a_shard_that_the_library_compressed_is_refused_with_the_cure(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "s.tar.gz")) as writer:
        writer.write(of_class("a", 1))
    with pytest.raises(ValueError, match=r"s\.tar\.gz is not an uncompressed tar .*unpack \.gz"):
        open_tar(str(tmp_path / "*.tar.gz"), split="train")


def num_samples_or_error(shard: Path, content: bytes) -> int | str:
    shard.write_bytes(content)
    try:
        return len(open_tar(str(shard), split="train", val_fraction=0.0))
    except ValueError as error:
        return str(error)


def test_a_shard_that_was_cut_anywhere_is_refused_or_has_all_its_samples(tmp_path: Path) -> None:
    whole = Path(write_shards(tmp_path, [of_class(name, 1) for name in "abc"]).replace("*", "000")).read_bytes()
    end = whole.rstrip(b"\0")
    end_bytes = -(-len(end) // 512) * 512
    for cut in range(0, len(whole), 256):
        found = num_samples_or_error(tmp_path / "cut.tar", whole[:cut])
        if cut <= end_bytes:
            assert re.search(r"cut\.tar is .*\bcut\b", str(found)), cut
        else:
            assert found == 3, cut


def test_a_flipped_bit_in_any_header_or_in_the_end_is_refused(tmp_path: Path) -> None:
    whole = Path(write_shards(tmp_path, [of_class(name, 1) for name in "ab"]).replace("*", "000")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        members = archive.getmembers()
        headers = [start for member in members for start in (member.offset, member.offset_data - 512)]
        end = archive.offset
    checked = [start + place for start in headers for place in range(0, 148, 7)]  # behind them their own checksum
    for place in [*checked, end, end + 700, len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        assert "damaged" in str(num_samples_or_error(tmp_path / "damaged.tar", bytes(damaged))), place


def test_shards_put_behind_one_another_are_refused(tmp_path: Path) -> None:
    whole = Path(write_shards(tmp_path, [of_class("a", 1)]).replace("*", "000")).read_bytes()
    assert "are several shards" in str(num_samples_or_error(tmp_path / "two.tar", whole + whole))


def test_a_pipeline_makes_batches_of_what_the_library_wrote(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [of_class(f"{number:03d}", number) for number in range(20)], per_shard=10)
    config = PipelineConfig(
        data=TarData(pattern=pattern, val_fraction=0.3),
        transforms=Transforms.named("light", size=16),
        loader=Loader(batch_size=10, num_workers=0),
        prefetch=Prefetch(device="none"),
    )
    labels: list[int] = []
    for split in ("train", "val"):
        with build_pipeline(config, split=split) as pipeline:
            labels += [int(label) for _, batch in pipeline for label in batch]
    assert sorted(labels) == sorted(number % 3 for number in range(20))
