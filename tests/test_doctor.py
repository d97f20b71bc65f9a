"""`python -m pipeline.doctor`: every fault of machine, packages and data is one line, and nothing is written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from pipeline.build import build_pipeline
from pipeline.build_source import open_source
from pipeline.config import OnError, TrainConfig
from pipeline.doctor.__main__ import main
from pipeline.doctor.configuration import compose_run
from pipeline.doctor.data import check_sending
from pipeline.doctor.finding import WIDTH, Finding, Level, error, guarded, ok, summary, warning
from pipeline.doctor.gpu import transfer_bytes_per_s
from pipeline.doctor.machine import check_cores, check_open_files, files_needed
from pipeline.doctor.packages import check_cv2, kernel_finding, simd_finding
from pipeline.doctor.plan import RunPlan, plan_run
from pipeline.doctor.samples import check_samples, disk_finding
from pipeline.doctor.storage import Reading, ReadPass, files_of, read_cold_and_warm, read_pass
from pipeline.machine import num_cores
from pipeline.sources import FileSource, open_tar

ROOT = Path(__file__).resolve().parents[1]
LEVELS = tuple(Level)
MIB = 1 << 20


class Told(NamedTuple):
    code: int
    lines: list[str]

    def of(self, what: str) -> list[str]:
        """The lines about `what`, those that go on included, each without its level and name."""
        found, name = [], ""
        for line in self.lines[:-1]:
            name = line[9:24].strip() if line[9:24].strip() != "..." else name
            if name == what:
                found.append(f"{line[:9].strip()} {line[24:]}")
        return found

    def words(self, what: str, *, between: str = " ") -> str:
        """What is said of `what`, without levels; nothing `between` lines, and no space, for paths that were broken."""
        joined = between.join(line.partition(" ")[2] for line in self.of(what))
        return joined if between else joined.replace(" ", "")


Doctor = Callable[..., Told]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs a command line in this process, in an empty directory, which must stay empty."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def run(*overrides: str) -> Told:
        code = main(overrides)
        out, err = capsys.readouterr()
        assert (err, list(empty.iterdir())) == ("", [])
        return Told(code, out.splitlines())

    return run


@pytest.fixture
def folder(trial_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil: 24 images for training, two for evaluation."""
    return Path(shutil.copytree(trial_folder, tmp_path / "images"))


def of(folder: Path, *overrides: str) -> list[str]:
    return ["data=folder", f"data.root={folder}", "transforms.size=16", "loader.batch_size=4", *overrides]


def configured(folder: Path, *overrides: str) -> TrainConfig:
    return compose_run(of(folder, *overrides), cwd=Path("/"))[0]


def planned(folder: Path, *overrides: str) -> RunPlan:
    return plan_run(configured(folder, *overrides))


def in_process(*arguments: str, cwd: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """The real command, with `limit` as its `ulimit -n`."""
    shell = "" if limit is None else f"ulimit -n {limit}; "
    command = ["bash", "-c", f'{shell}exec "$0" -m pipeline.doctor "$@"', sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# The command line and its lines


def test_a_folder_in_order_has_no_error_and_every_line_says_how_bad_it_is_within_100_columns(
    doctor: Doctor, trial_folder: Path
) -> None:
    told = doctor(*of(trial_folder))
    assert told.code == 0, told.lines
    *findings, last = told.lines
    assert all(line.split()[0] in LEVELS and len(line) <= WIDTH == 100 for line in findings)
    assert last.startswith(f"{sum(line[9:12] != '...' for line in findings if line.startswith('ok'))} ok")
    for what in (
        *("configuration", "cores", "cv2", "decoder", "SIMD", "versions", "GPU", "open files"),
        *("workers", "data", "labels", "samples", "disk", "memory"),
    ):
        assert told.of(what), f"nothing is said of {what}"
    assert told.of("data") == ["ok 24 images for training, 2 for evaluation"]
    assert "24 of 24 tried (of 24) decoded to 16 pixels" in told.of("samples")[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "loader.num_workers=-1",
            "loader.num_workers must be auto or a whole number >= 0, got -1; 0 is none",
        ),
        ("loader.num_worker=3", "loader.num_worker is not a key; did you mean num_workers?"),
        ("+typo=1", "typo is not a key; choices: data"),
        ("data=huge", "data has no option 'huge'; choices: arrays, cifar10, cifar100"),
        ("resume=auto", "resume=auto needs to know which run"),
        ("loader.num_workers=0,2", "0,2"),
        ("--multirun", "unrecognized arguments: --multirun"),
    ],
)
def test_a_wrong_command_line_is_one_error_and_exit_code_1(doctor: Doctor, override: str, words: str) -> None:
    told = doctor(override)
    assert (told.code, told.lines[-1]) == (1, "0 ok, 1 error")
    assert words in told.words("configuration")


def test_a_wrong_value_is_told_in_one_line_without_torch_by_the_real_command(tmp_path: Path) -> None:
    done = in_process("loader.num_workers=-1", cwd=tmp_path)
    line = "error    configuration  loader.num_workers must be auto or a whole number >= 0, got -1; 0 is none"
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{line}\n0 ok, 1 error\n", "")
    script = "import sys; from pipeline.doctor.__main__ import main; main(['+a=1']); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)


def test_help_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "usage: python -m pipeline.doctor" in capsys.readouterr().out


def test_experiments_of_ones_own_are_found_as_train_py_finds_them(doctor: Doctor, folder: Path) -> None:
    (folder.parent / "mine/experiment").mkdir(parents=True)
    (folder.parent / "mine/experiment/long.yaml").write_text("# @package _global_\nschedule:\n  epochs: 77\n")
    told = doctor("experiment=long", "--config-dir", str(folder.parent / "mine"), *of(folder))
    assert told.of("configuration") == ["ok 77 epochs of resnet_small at 16 pixels, batches of 4"]


def test_a_name_whose_run_would_be_overwritten_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs/train/first/checkpoints").mkdir(parents=True)
    (tmp_path / "outputs/train/first/checkpoints/last.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["run.name=first"]) == 1
    assert "add resume=auto to continue it" in capsys.readouterr().out.replace("\nerror    ...            ", " ")


def test_a_long_finding_goes_on_in_lines_that_begin_with_its_level() -> None:
    lines = warning("memory", "word " * 40 + "x" * 200).lines()
    assert all(line.startswith("warning  ") and len(line) <= WIDTH for line in lines)
    assert [line[9:24].strip() for line in lines] == ["memory", *["..."] * (len(lines) - 1)]
    assert sum(line.count("word") for line in lines) == 40
    assert sum(line[24:].count("x") for line in lines) == 200


def test_the_last_line_counts_findings_by_level() -> None:
    assert summary([ok("a", ""), ok("b", "")]) == "2 ok"
    assert summary([ok("a", ""), warning("b", ""), error("c", ""), error("d", "")]) == "1 ok, 1 warning, 2 errors"


def test_a_check_that_raises_is_an_error_and_what_it_found_before_stays() -> None:
    def check() -> Iterator[Finding]:
        yield ok("disk", "one")
        raise RuntimeError("disk on fire")

    assert list(guarded("disk", check)) == [ok("disk", "one"), error("disk", "RuntimeError: disk on fire")]


# Data


def test_damaged_and_missing_images_are_named_and_the_run_would_end(doctor: Doctor, folder: Path) -> None:
    cut = folder / "train/cats/00003.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    told = doctor(*of(folder))
    assert told.code == 1
    assert str(cut) in told.words("samples", between="")
    assert "truncated" in told.words("samples")
    assert any(line.startswith("ok 23 of 24 tried (of 24) decoded") for line in told.of("samples"))


def test_of_many_damaged_images_three_are_named_and_the_rest_counted(doctor: Doctor, folder: Path) -> None:
    for path in sorted((folder / "train/dogs").iterdir())[:5]:
        path.write_bytes(b"no image")
    told = doctor(*of(folder))
    text = told.words("samples", between="")
    assert text.count("train/dogs") == 3
    assert "5of24triedcannotbereadordecoded" in text


def test_a_damaged_image_that_the_run_would_pass_over_is_a_warning(folder: Path) -> None:
    path = folder / "train/cats/00003.jpg"
    path.write_bytes(b"")
    plan = planned(folder)
    plan.cfg.data.on_error = OnError["skip"]
    (found, *_) = check_samples(plan, open_source(plan.cfg.data, "train"))
    assert found == warning("samples", f"{path}: the file is empty (0 bytes); data.on_error=skip will pass over it")


def test_an_evaluation_that_bad_images_would_end_is_an_error_though_they_are_passed_over(
    doctor: Doctor, folder: Path
) -> None:
    path = next((folder / "val/cats").iterdir())
    path.write_bytes(b"<html>")
    told = doctor(*of(folder, "data.on_error=skip"))
    assert told.code == 1
    text = told.words("samples")
    assert str(path) in told.words("samples", between="")
    assert "1 of 2 are more than data.max_bad_fraction=0.1 allows; mend them, or raise it" in text
    assert any("1 of 2 tried of evaluation (of 2) decoded" in line for line in told.of("samples"))
    assert doctor(*of(folder, "data.on_error=skip", "data.max_bad_fraction=0.5")).code == 0


def test_a_listed_file_that_is_not_there_is_named(doctor: Doctor, folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.glob("train/*/*.jpg"))
    rows = [f"{path},{path.parent.name},train" for path in [*paths, folder / "gone.jpg"]]
    rows += [f"{path},{path.parent.name},val" for path in sorted(folder.glob("val/*/*.jpg"))]
    rows = [row.replace("images,", "cats,") for row in rows]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    told = doctor("data=manifest", f"data.path={tmp_path / 'list.csv'}", "transforms.size=16", "loader.batch_size=4")
    assert told.code == 1
    assert str(folder / "gone.jpg") in told.words("samples", between="")
    assert any("24 of 25 tried (of 25) decoded" in line for line in told.of("samples"))


@pytest.mark.parametrize(
    "overrides", [("data=tiny",), ("data=cifar10", "data.download=true"), ("data=cifar100", "data.download=true")]
)
def test_data_that_the_first_run_makes_is_neither_made_nor_an_error(doctor: Doctor, overrides: tuple[str, ...]) -> None:
    told = doctor(*overrides)  # the fixture sees that nothing is written
    assert told.code == 0, told.lines
    assert "at the first run" in told.words("data")
    assert told.of("memory")


def test_classes_that_the_model_has_no_place_for_are_an_error(doctor: Doctor, folder: Path) -> None:
    shutil.copytree(folder / "train/cats", folder / "train/owls")
    told = doctor(*of(folder, "model.num_classes=2"))
    assert (told.code, told.of("labels")) == (
        1,
        ["error model.num_classes must be at least the data's 3 classes, got 2"],
    )


def test_batches_larger_than_all_samples_are_an_error_where_the_last_is_dropped(
    doctor: Doctor, trial_folder: Path
) -> None:
    told = doctor(*of(trial_folder, "loader.drop_last=true", "loader.batch_size=25"))
    assert (told.code, told.of("labels")) == (1, ["error no batch of 25 in 24 samples; lower loader.batch_size"])


# The disk


def test_a_pass_reads_every_sample_and_keeps_the_faults_apart(jpegs: list[Path], tmp_path: Path) -> None:
    source = FileSource([*jpegs[:3], tmp_path / "gone.jpg"], range(4))
    reading = read_cold_and_warm(source, [3, 2, 1, 0], num_threads=2)
    assert reading.first.samples == reading.warm.samples == {id: jpegs[id].read_bytes() for id in range(3)}
    assert reading.first.num_bytes == sum(path.stat().st_size for path in jpegs[:3])
    assert [(id, type(fault)) for id, fault in reading.first.failures.items()] == [(3, FileNotFoundError)]


def test_a_pass_begins_nothing_after_its_time_or_its_bytes(jpegs: list[Path]) -> None:
    source = FileSource(jpegs, range(len(jpegs)))
    assert read_pass(source, range(5), num_threads=1, limit_s=0).samples == {}
    assert list(read_pass(source, range(5), num_threads=1, max_bytes=1).samples) == [0]


def test_of_archives_only_those_with_samples_looked_at_leave_the_page_cache(jpegs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "label").write_text("cats")
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for path in jpegs[6 * number : 6 * number + 6]:
                archive.add(path, path.name)
                archive.add(tmp_path / "label", f"{path.stem}.cls")
    with closing(open_tar(str(tmp_path / "*.tar"), split="train", val_fraction=0.3)) as source:
        chosen = [id for id in range(len(source)) if "1.tar" not in source.where(id)]
        assert files_of(source, chosen) == [str(tmp_path / "0.tar"), str(tmp_path / "2.tar")]


def reading(cold_s: float, why_not_cold: str | None = None) -> Reading:
    """10 samples of 100 kB, cold in `cold_s` and warm in 1 ms."""
    samples = {id: bytes(100_000) for id in range(10)}
    return Reading(ReadPass(samples, {}, 1_000_000, cold_s), ReadPass(samples, {}, 1_000_000, 1e-3), why_not_cold)


def test_a_disk_that_decoding_would_wait_for_is_a_warning_with_the_keys_that_keep_samples(trial_folder: Path) -> None:
    serial = planned(trial_folder, "loader.num_workers=0")  # one thread of 100 images/s of 100 kB takes 10 MB/s
    slow = disk_finding(serial, reading(cold_s=0.2), 100)
    assert slow == warning(
        "disk",
        "5 MB/s cold, 1,000 warm; decoding would take 10 and wait for the disk; use preload=ram or cache=pinned",
    )
    assert disk_finding(serial, reading(cold_s=0.05), 100) == ok("disk", "20 MB/s cold, 1,000 warm; decoding takes 10")
    for keeps in ("cache=pinned", "preload=ram", "preload=pack"):
        kept = planned(trial_folder, "loader.num_workers=0", keeps)
        assert disk_finding(kept, reading(cold_s=0.2), 100).level is Level.ok
    assert "cold not known" in disk_finding(serial, reading(0.2, "this file system keeps them"), 100).detail


# The machine


def test_an_open_file_limit_below_what_the_workers_need_is_a_warning(tmp_path: Path, trial_folder: Path) -> None:
    many = ("loader.backend=processes", "loader.num_workers=64")
    needed = files_needed(planned(trial_folder, *many))
    done = in_process(*of(trial_folder, *many), cwd=tmp_path, limit=needed - 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"warning  open files     ulimit -n is {needed - 1} and a rank needs about {needed}" in done.stdout
    assert f"the hard limit is {needed - 1}, so" in done.stdout


def test_an_open_file_limit_is_compared_with_what_is_needed_to_the_last_one(trial_folder: Path) -> None:
    plan = planned(trial_folder, "loader.backend=processes", "loader.num_workers=100")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(plan)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed - 1, before[1]))
        (short,) = check_open_files(plan)
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, before[1]))
        (enough,) = check_open_files(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (short.level, enough.level) == (Level.warning, Level.ok)
    assert f"ulimit -n {needed}, or lower loader.num_workers" in short.detail


def test_each_worker_process_takes_as_many_descriptors_as_are_predicted(trial_folder: Path) -> None:
    def opened(num_workers: int) -> int:
        cfg = configured(trial_folder, "loader.backend=processes", f"loader.num_workers={num_workers}")
        before = len(os.listdir("/proc/self/fd"))
        with build_pipeline(cfg) as pipeline:
            for _ in pipeline:
                pass
            return len(os.listdir("/proc/self/fd")) - before

    one, three = (opened(num_workers) for num_workers in (1, 3))
    more = [files_needed(planned(trial_folder, "loader.backend=processes", f"loader.num_workers={n}")) for n in (1, 3)]
    assert 2 * (three - one) == more[1] - more[0]  # predicted for training and evaluation
    assert one < more[0]


def test_more_ranks_and_workers_than_cores_are_warnings_with_their_keys(doctor: Doctor, trial_folder: Path) -> None:
    cores = num_cores()
    told = doctor(*of(trial_folder, f"dist.nproc={cores + 1}", "loader.num_workers=5", "run.device=cpu"))
    assert "lower dist.nproc" in told.words("ranks")
    assert "loader.num_workers" in told.words("workers")
    assert all(line.startswith("warning") for line in told.of("ranks"))
    assert not doctor(*of(trial_folder, f"dist.nproc={cores}", "run.device=cpu")).of("ranks")


def test_a_preload_without_room_is_the_error_that_the_run_would_end_with(
    doctor: Doctor, trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build_budget.available_bytes", lambda: 200_000)
    told = doctor(*of(trial_folder, "preload=ram", "cache.store=decoded"))
    assert told.code == 1
    words = told.words("memory")
    assert "preload=ram needs about" in words
    assert "cache.store=encoded" in words


def test_batches_without_room_are_the_error_that_the_run_would_end_with(
    doctor: Doctor, trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build_loader.available_bytes", lambda: 1000)
    told = doctor(*of(trial_folder))
    assert told.code == 1
    assert "lower loader.batch_size" in told.words("memory")


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        (("loader.backend=processes", "loader.num_workers=4"), "lower loader.num_workers"),
        (("loader.num_workers=1", "loader.batch_size=10000"), "lower loader.batch_size"),
    ],
)
def test_parts_that_are_too_much_together_are_a_warning_with_the_key_of_the_largest(
    doctor: Doctor, trial_folder: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], cure: str
) -> None:
    monkeypatch.setattr("pipeline.build_budget.available_bytes", lambda: 200 * MIB)
    told = doctor(*of(trial_folder, *overrides))
    assert told.code == 0
    assert all(line.startswith("warning") for line in told.of("memory"))
    assert cure in told.words("memory")


def test_what_training_keeps_is_not_there_for_what_evaluation_keeps(
    doctor: Doctor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "val")
    shutil.copytree(folder / "train", folder / "val")
    kept = 24 * 60 * 80 * 3
    monkeypatch.setattr("pipeline.build_budget.available_bytes", lambda: int(2.5 * kept))
    told = doctor(*of(folder, "preload=ram", "cache.store=decoded"))
    assert "images of val" in told.words("memory")


def test_cuda_that_is_not_there_is_an_error_and_what_is_not_looked_at_for_it_is_said(
    doctor: Doctor, trial_folder: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    told = doctor(*of(trial_folder, "run.device=cuda"))
    assert told.code == 1
    assert told.of("run") == ["error run.device is cuda, but torch sees no CUDA device; auto takes what is there"]
    assert "not looked at" in told.of("data")[0]
    assert doctor(*of(trial_folder)).of("GPU") == ["ok no CUDA device; run.device=auto takes the CPU"]


@pytest.mark.gpu
def test_the_rate_of_copies_to_the_gpu_is_measured_and_an_idle_one_is_a_warning(
    doctor: Doctor, trial_folder: Path
) -> None:
    assert transfer_bytes_per_s(torch.device("cuda")) > 0
    assert "GiB/s" in doctor(*of(trial_folder)).words("GPU")
    assert doctor(*of(trial_folder, "run.device=cpu")).of("GPU")[0].startswith("warning")


def test_what_leaves_fewer_cores_than_there_are_is_told(
    trial_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = os.sched_getaffinity(0)
    if len(mask) == 1:
        pytest.skip("one core has nothing to leave")
    cfg = configured(trial_folder)
    try:
        os.sched_setaffinity(0, {min(mask)})
        (by_mask,) = check_cores(cfg)
    finally:
        os.sched_setaffinity(0, mask)
    assert by_mask.detail == f"1 to be used of {os.cpu_count()}: the affinity mask has 1"
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    defaults: dict[str, Any] = num_cores.__kwdefaults__
    monkeypatch.setitem(defaults, "proc_cgroup", tmp_path / "cgroup")
    monkeypatch.setitem(defaults, "cgroup_root", tmp_path)
    (by_quota,) = check_cores(cfg)
    assert by_quota.detail.endswith("a control group's quota is for 1")


# Packages


def provide(directory: Path, name: str) -> None:
    """An installed distribution of this name that brings `cv2`."""
    info = directory / f"{name.replace('-', '_')}-4.10.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 4.10.0\n")
    (info / "RECORD").write_text(f"cv2/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


def test_two_distributions_that_both_bring_cv2_are_a_warning_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone,) = check_cv2()
    assert alone.level is Level.ok
    for name in ("opencv-python", "opencv-contrib-python"):
        provide(tmp_path, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (both,) = check_cv2()
    assert both.level is Level.warning
    for word in ("opencv-contrib-python 4.10.0", "opencv-python 4.10.0", "pip uninstall", "opencv-python-headless"):
        assert word in both.detail


def test_opencv_without_the_processors_vectors_is_a_warning() -> None:
    assert simd_finding("SSE SSE2 *SSE4.1 *AVX *AVX2 *AVX512-SKX?", "x86_64") == ok(
        "SIMD", "OpenCV uses SSE SSE2 SSE4.1 AVX AVX2"
    )
    for without in ("SSE SSE2 *SSE4.1", "SSE *AVX *AVX2?", ""):
        assert simd_finding(without, "x86_64").level is Level.warning
    assert simd_finding("NEON *NEON_DOTPROD", "aarch64").level is Level.ok
    assert simd_finding("", "riscv64").level is Level.ok


def test_a_transform_that_cannot_be_sent_to_workers_is_an_error_that_names_the_part(trial_folder: Path) -> None:
    plan = planned(trial_folder, "loader.backend=processes")
    (sent,) = guarded("workers", check_sending, plan, plan.transform())
    assert sent.level is Level.ok
    transform = plan.transform()
    transform.row_dtype = (number for number in ())  # type: ignore[assignment]  # nothing pickles a generator
    (refused,) = guarded("workers", check_sending, plan, transform)
    assert refused.level is Level.error
    assert "transforms.row_dtype cannot be sent to worker processes" in refused.detail


def test_a_plan_spreads_a_run_over_threads_as_the_build_does(trial_folder: Path) -> None:
    plan = planned(trial_folder, "loader.backend=processes", "loader.num_workers=3", "loader.threads_per_worker=2")
    with build_pipeline(plan.cfg) as pipeline:
        assert (pipeline.num_workers, pipeline.workers) == (plan.num_workers, plan.workers)
    assert plan.num_loading == 6
    assert planned(trial_folder, "loader.num_workers=0").num_loading == 1
    assert planned(trial_folder, "dist.nproc=2", "loader.num_workers=3", "run.device=cpu").num_loading == 6


def test_a_kernel_that_is_not_built_is_said_with_what_builds_it() -> None:
    assert "make native" in kernel_finding(None, "not built: make native builds it").detail
    for replaces in (True, False):
        kernel = ModuleType("kernel")
        kernel.replaces_libjpegs = replaces  # type: ignore[attr-defined]
        detail = kernel_finding(kernel, "").detail
        assert detail.startswith("built:")
        assert ("libjpeg's own Huffman decoder" in detail) is not replaces
