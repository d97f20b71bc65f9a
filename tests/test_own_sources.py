"""`data=own`: a source that a function of the user's gives, in this process and in worker processes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts_of_sources import assert_source_contract
from made_sources import CLASSES, in_memory, make_tree
from test_doctor import Doctor, doctor  # noqa: F401  # a fixture

from pipeline.build import build_pipeline
from pipeline.build_source import open_source
from pipeline.config import Backend, ConfigError, Loader, OwnData, PipelineConfig, Transforms
from pipeline.sources import FileSource, Source, open_folder
from pipeline.sources.own import open_own

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sources.md"


def example_text() -> str:
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(text)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes `my_data.py` where Python finds it; it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "code")

    def write(text: str) -> None:
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / "my_data.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("my_data", None)


@pytest.fixture
def example(module: Callable[[str], None], tmp_path: Path) -> OwnData:
    """The page's example, with images for it to read."""
    module(example_text())
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "images" / CLASSES[number % 3] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.integers(0, 256, (9 + number, 12, 3), np.uint8))
    return OwnData(factory="my_data:open_npy", root=str(tmp_path / "images"), val_fraction=0.3)


def test_the_pages_example_is_short_and_keeps_the_contract(example: OwnData) -> None:
    assert len(example_text().splitlines()) <= 25
    assert_source_contract(partial(open_source, example))


def test_the_pages_example_gives_the_same_batches_in_worker_processes(example: OwnData) -> None:
    def batches(loader: Loader) -> list[bytes]:
        config = PipelineConfig(data=example, loader=loader, transforms=Transforms.named("light", size=16))
        with build_pipeline(config, device="cpu") as pipeline:
            return [images.numpy().tobytes() + labels.numpy().tobytes() for images, labels in pipeline]

    serial = batches(Loader(batch_size=8, num_workers=0))
    assert batches(Loader(batch_size=8, num_workers=2, backend=Backend.processes)) == serial
    assert len(set(serial)) == len(serial) > 2


def test_the_doctor_looks_at_a_source_of_ones_own(example: OwnData, doctor: Doctor) -> None:  # noqa: F811
    told = doctor(
        "data=own",
        f"data.factory={example.factory}",
        f"data.root={example.root}",
        "transforms.size=16",
        "loader.batch_size=8",
    )
    assert told.code == 0, told.lines
    assert re.fullmatch(r"ok \d+ images for training, \d+ for evaluation", told.of("data")[0])


def test_the_doctor_says_what_cannot_be_sent_to_worker_processes(
    module: Callable[[str], None],
    doctor: Doctor,  # noqa: F811
) -> None:
    module(
        "import numpy as np\nfrom pipeline.sources import ArraySource\n"
        "def open_all(split):\n"
        "    source = ArraySource(np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2, 'ab', name=split)\n"
        "    source.key = lambda: 0\n"
        "    return source\n"
    )
    options = ("data=own", "data.factory=my_data:open_all", "transforms.size=16")
    assert doctor(*options, "loader.backend=threads").code == 0
    told = doctor(*options, "loader.backend=processes", "loader.num_workers=2")
    assert told.code == 1
    assert "source.key cannot be sent to worker processes" in told.words("workers")
    assert "use loader.backend=threads" in told.words("workers")


# What the function is called with


def test_a_function_gets_those_of_the_keywords_that_it_takes() -> None:
    heard: list[dict[str, Any]] = []

    def everything(**given: Any) -> Source:
        heard.append(given)
        return in_memory("train")

    def two(val_fraction: float, *, split: str, verbose: bool = True) -> Source:
        heard.append({"val_fraction": val_fraction, "split": split, "verbose": verbose})
        return in_memory("train")

    def with_default(split: str, root: str = "usual") -> Source:
        heard.append({"split": split, "root": root})
        return in_memory("train")

    open_own(everything, name="m:f", root="here", split="val", val_fraction=0.3)
    open_own(two, name="m:f", split="train", val_fraction=0.2)
    open_own(with_default, name="m:f", split="train")
    open_own(with_default, name="m:f", root="here", split="train")
    assert heard == [
        {"split": "val", "root": "here", "val_fraction": 0.3},
        {"val_fraction": 0.2, "split": "train", "verbose": True},
        {"split": "train", "root": "usual"},
        {"split": "train", "root": "here"},
    ]


def test_what_a_function_without_splits_gives_is_divided_by_names_below_root(tmp_path: Path) -> None:
    def whole(root: str) -> FileSource:
        return open_folder(root, split="train", val_fraction=0.0)

    def names(root: Path, split: Any) -> list[str]:
        source = open_own(whole, name="m:f", root=root, split=split, val_fraction=0.3)
        return [source.where(id).removeprefix(str(root)) for id in range(len(source))]

    make_tree(tmp_path / "a")
    (train, val) = (names(tmp_path / "a", split) for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert not set(train) & set(val)
    assert 8 <= len(val) <= 30
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert names(tmp_path / "elsewhere", "val") == val


# What is refused


def giving(value: object) -> Callable[[str], object]:
    def factory(split: str) -> object:
        return value

    return factory


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gone_data:f",
            r"^data\.factory=gone_data:f cannot be imported: No module named .*; add its directory to PYTHONPATH",
        ),
        ("my_data:f", r"^data\.factory=my_data:f: my_data has no f; define it there, or correct the name"),
        ("my_data:number", r"^data\.factory=my_data:number is int, not a function; name one that gives a source"),
        (
            "my_data:fails",
            r"^data\.factory=my_data:fails gave no source when it was called: KeyError: 5 \(.*my_data\.py:3",
        ),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_by_name_with_the_cure(
    name: str, message: str, module: Callable[[str], None]
) -> None:
    module("number = 5\ndef fails(split):\n    raise KeyError(number)\n")
    with pytest.raises(ConfigError, match=message):
        open_source(OwnData(factory=name), "train")


def test_a_module_that_fails_or_lacks_a_package_says_so(module: Callable[[str], None]) -> None:
    module("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"data\.factory=my_data:f cannot be imported: .*no_such_package.*install it"):
        open_source(OwnData(factory="my_data:f"), "train")
    module("1 / 0\n")
    with pytest.raises(
        ConfigError, match=r"cannot be imported: ZeroDivisionError: division by zero \(.*my_data\.py:1\)"
    ):
        open_source(OwnData(factory="my_data:f"), "train")


@pytest.mark.parametrize("factory", ["my_data", "my_data.f", "my_data:", "a b:c"])
def test_a_name_of_another_form_is_refused(factory: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.factory must be package\.module:function, got "):
        OwnData(factory=factory)


def test_arguments_that_do_not_meet_the_function_are_refused() -> None:
    def sized(split: str, size: int) -> None: ...

    def rooted(split: str, root: str) -> None: ...

    with pytest.raises(ValueError, match=r"m:f needs size, which nobody gives it: it is called with split, root"):
        open_own(sized, name="m:f", split="train")
    with pytest.raises(ValueError, match=r"m:f needs root; add data\.root=DIR"):
        open_own(rooted, name="m:f", split="train")
    with pytest.raises(ValueError, match=r"data\.root=here has no use: data\.factory=m:f takes no root; leave it out"):
        open_own(giving(None), name="m:f", root="here", split="train")


class Odd:
    """A source that is whole but for what a test replaces."""

    class_names = ("a", "b")

    def __init__(self, **replaced: Any) -> None:
        self.labels = np.array([0, 1, 0])
        whole = in_memory("train")
        for name in ("read", "label", "where", "files", "fingerprint", "stamp"):
            setattr(self, name, getattr(whole, name))
        self.__dict__.update(replaced)

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"m:f gave NoneType, which has no __len__, read, .*class_names; a source has __len__, read"),
        (Odd(stamp=None), r"m:f gave Odd, which has no stamp;"),
        (
            Odd(labels=[0, 1, 0]),
            r"m:f gave Odd of 3 samples whose labels are list; they must be a NumPy array of int64",
        ),
        (Odd(labels=np.zeros(2, int)), r"whose labels are int64 \(2,\)"),
        (Odd(labels=np.zeros(3, np.int32)), r"whose labels are int32 \(3,\); they must be .* int64 .* or float32"),
        (
            Odd(read=lambda _: "path.jpg"),
            r"m:f gave Odd, whose read\(0\) gives str; it must be bytes of an image file",
        ),
        (
            Odd(read=lambda _: np.zeros((3, 8, 8), np.uint8)),
            r"read\(0\) gives uint8 \(3, 8, 8\); it must be .*\(H, W, 3",
        ),
        (Odd(stamp=lambda _: -1), r"stamp\(0\) gives -1; it must be a whole number in \[0, 2\*\*64\)"),
        (Odd(where=lambda _: Path("a")), r"where\(0\) gives PosixPath; it must be text"),
        (Odd(fingerprint=lambda: 5), r"fingerprint\(\) gives 5; it must be text"),
    ],
    ids=["None", "no stamp", "list", "too few", "int32", "path", "planes", "negative stamp", "Path", "number"],
)
def test_what_is_no_source_is_refused_by_name_with_the_cure(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_own(giving(given), name="m:f", split="train")


def test_a_first_sample_that_cannot_be_read_is_left_to_on_error() -> None:
    source = FileSource(["/gone.jpg", "/other.jpg"], [0, 1], "ab")
    assert open_own(giving(source), name="m:f", split="train") is source
