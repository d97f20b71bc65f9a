"""The schemas, as Python users meet them and as conf/ fills them."""

import functools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline._compat import HYDRA_DEFAULTS
from pipeline.cli import conf_dir
from pipeline.config import (
    ArraysData,
    BenchConfig,
    Cache,
    CachePolicy,
    Cifar10Data,
    Cifar100Data,
    ConfigError,
    Data,
    FolderData,
    Loader,
    ManifestData,
    ParquetData,
    PipelineConfig,
    Preload,
    Reachable,
    SyntheticData,
    TarData,
    TrainConfig,
    Transforms,
)
from pipeline.config import transforms as config_transforms
from pipeline.config.compose import run_dir, to_config
from pipeline.config.messages import one_line
from pipeline.config.paths import check_paths, make_paths_absolute

PROGRAMS = ("train", "bench")
# Options whose inputs the user has to name.
NEEDS = {
    "data/synthetic": ["data.num_images=100"],
    "data/folder": ["data.root={tmp}"],
    "data/manifest": ["data.path={tmp}/list.csv"],
    "data/tar": ["data.pattern={tmp}/*.tar"],
    "data/parquet": ["data.pattern={tmp}/*.tar"],
    "data/arrays": ["data.images={tmp}/list.csv", "data.labels={tmp}/list.csv"],
    "data/cifar10": ["data.download=true"],
    "data/cifar100": ["data.download=true"],
    "data/own": ["data.factory=package.module:function"],
    "experiment/cifar10": ["data.download=true"],
    "experiment/folder_finetune": ["data.root={tmp}"],
}
OPTIONS = sorted(str(path.relative_to(conf_dir()).with_suffix("")) for path in conf_dir().glob("*/*.yaml"))
IMAGES = SyntheticData(num_images=100)


@pytest.fixture(scope="module", autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(config_dir=str(conf_dir()), **HYDRA_DEFAULTS):
        yield


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "list.csv").touch()
    (tmp_path / "0.tar").touch()
    return tmp_path


@functools.cache  # composing takes a tenth of a second, and to_config works on a copy
def composed(*overrides: str, program: str = "train") -> DictConfig:
    return compose(program, list(overrides))


def config(*overrides: str, program: str = "train", cwd: str = "/") -> Any:
    return to_config(composed(*overrides, program=program), cwd=cwd)


def _options_by_program() -> Iterator[tuple[str, str]]:
    """Each option once, and what may set keys of any group with both programs, unless it sets keys of bench."""
    for option in OPTIONS:
        group = option.partition("/")[0]
        of_bench = group in ("bench", "rung") or option in ("sweep/cache", "sweep/ladder", "sweep/peers")
        programs = ("bench",) if of_bench else PROGRAMS if group in ("experiment", "sweep") else ("train",)
        yield from ((option, program) for program in programs)


@pytest.mark.parametrize(("option", "program"), list(_options_by_program()))
def test_every_option_of_every_group_becomes_a_configuration(option: str, program: str, inputs: Path) -> None:
    group, _, name = option.partition("/")
    needs = [need.format(tmp=inputs) for need in NEEDS.get(option, [])]
    cfg = config(f"{group}={name}", *needs, program=program)
    assert type(cfg) is {"train": TrainConfig, "bench": BenchConfig}[program]


def test_defaults_are_the_designs() -> None:
    train, bench = config(), config(program="bench")
    assert (train.data.num_images, train.transforms.size, train.transforms.augment) == (2000, 64, "standard")
    assert (bench.data.num_images, bench.transforms.size, bench.transforms.augment) == (2000, 224, "light")
    assert (train.cache.policy, train.optim.name, train.schedule.epochs) == ("none", "sgd", 8)


@pytest.mark.parametrize(
    ("tier", "num_images", "preload", "policy", "max_images", "workers"),
    [
        ("tiny", 256, "none", "none", None, 4),
        ("small", 2000, "ram", "none", None, 4),
        ("medium", 10_000, "none", "lru", 5000, 4),
        ("large", 100_000, "none", "lru", 10_000, 8),
    ],
)
def test_a_tier_sets_its_siblings(
    tier: str, num_images: int, preload: str, policy: str, max_images: int | None, workers: int
) -> None:
    cfg = config(f"data={tier}")
    assert cfg.data.num_images == num_images
    assert (cfg.preload.mode, cfg.cache.policy, cfg.cache.max_images) == (preload, policy, max_images)
    assert cfg.loader.resolved_num_workers(4) == workers


def test_a_choice_on_the_command_line_beats_the_tier() -> None:
    assert config("data=small", "preload=none").preload.mode == "none"
    assert config("data=medium", "cache.max_images=7").cache.max_images == 7
    chosen = config("data=large", "cache=pinned", "loader=default")
    assert (chosen.cache.policy, chosen.cache.max_images) == ("pinned", None)
    assert chosen.loader.resolved_num_workers(4) == 4
    assert config("data=large", "loader.num_workers=3").loader.resolved_num_workers(4) == 3


def test_an_experiment_beats_the_primary_file_and_the_command_line_beats_both() -> None:
    assert config("experiment=cpu_smoke").transforms.size == 32
    assert config("experiment=cpu_smoke", "transforms.size=48").transforms.size == 48


@pytest.mark.parametrize("name", ["none", "light", "standard", "heavy"])
def test_transforms_named_in_python_equal_the_yaml_option(name: str) -> None:
    assert Transforms.named(name) == config(f"transforms={name}", program="bench").transforms


def test_one_seed_moves_batches_and_weights_unless_the_run_has_its_own() -> None:
    assert config("seed=7").run.seed == 7
    cfg = config("seed=7", "run.seed=3")
    assert (cfg.seed, cfg.run.seed) == (7, 3)


def test_saved_overrides_replay_to_an_equal_configuration(tmp_path: Path) -> None:
    overrides = ["data=medium", "cache=pinned", "optim.grad_clip=1.5", "transforms.scale=[0.2,0.9]", "optim.amp=off"]
    OmegaConf.save(OmegaConf.create(overrides), tmp_path / "overrides.yaml")
    again = [str(line) for line in OmegaConf.load(tmp_path / "overrides.yaml")]
    assert config(*again) == config(*overrides)


def test_a_saved_configuration_read_as_yaml_keeps_every_value(tmp_path: Path) -> None:
    first = composed("optim.amp=off", "data=medium")
    OmegaConf.save(first, tmp_path / "config.yaml")
    schema = OmegaConf.structured(TrainConfig)
    schema.data = OmegaConf.structured(SyntheticData)
    again = OmegaConf.merge(schema, OmegaConf.load(tmp_path / "config.yaml"))
    assert isinstance(again, DictConfig)
    assert to_config(again, cwd="/") == to_config(first, cwd="/")


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        child = node._get_node(key)
        if OmegaConf.is_dict(child) and child:
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_schema_field_is_written_in_a_yaml_file() -> None:
    written: set[str] = set()
    for option in OPTIONS:
        group = option.partition("/")[0]
        loaded = OmegaConf.load(conf_dir() / f"{option}.yaml")
        written |= {f"{group}.{key}" for key in _leaves(loaded)}  # type: ignore[arg-type]
    for program in PROGRAMS:
        written |= set(_leaves(OmegaConf.load(conf_dir() / f"{program}.yaml")))  # type: ignore[arg-type]
    schemas = {field.name: field.type for field in fields(BenchConfig)}
    wanted = {
        f"{group}.{field.name}" for group, schema in schemas.items() if is_dataclass(schema) for field in fields(schema)
    }
    kinds = {schema for base in Data.__subclasses__() for schema in (base, *base.__subclasses__())}
    wanted |= {f"data.{field.name}" for kind in kinds for field in fields(kind)}
    assert wanted - written == set()


def test_every_option_file_opens_with_what_it_is_and_explains_its_nulls() -> None:
    for path in conf_dir().rglob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path
        unexplained = [line for line in lines if line.rstrip().endswith("null")]
        assert not unexplained, f"{path}: {unexplained}"


def test_every_experiment_and_sweep_opens_with_the_command_that_runs_it() -> None:
    for path in [*conf_dir().glob("experiment/*.yaml"), *conf_dir().glob("sweep/*.yaml")]:
        lines = path.read_text().splitlines()
        assert lines[1].startswith("# python "), path
        assert f"{path.parent.name}={path.stem}" in lines[1], path
        assert lines[2].startswith("# Expect: "), path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Loader(num_workers=-1),
            "loader.num_workers must be auto or a whole number >= 0, got -1; 0 is none",
        ),
        (lambda: Loader(num_workers="many"), "loader.num_workers must be auto or a whole number >= 0, got 'many'"),
        (lambda: Loader(backend="thread"), "loader.backend has no choice 'thread'; did you mean threads?"),
        (lambda: Loader(batch_size=2.5), "loader.batch_size must be a whole number >= 1, got 2.5"),
        (lambda: Loader(batch_size=True), "loader.batch_size must be a whole number >= 1, got True"),
        (lambda: Loader(drop_last="false"), "loader.drop_last must be true or false, got 'false'"),
        (lambda: Loader(stall_timeout_s=float("nan")), "loader.stall_timeout_s must be > 0, got nan"),
        (lambda: Cache(max_gib=0), "cache.max_gib must be > 0, got 0"),
        (lambda: Data(val_fraction=1.0), "data.val_fraction must be > 0 and < 1, got 1.0"),
        (lambda: SyntheticData(num_images=19), "data.num_images must be >= 20, got 19"),
        (lambda: TarData(pattern="x.tar", root="y"), "data.root has no use for tar, got 'y'"),
        (lambda: Transforms(scale=[0.5]), "transforms.scale must be two numbers, least and greatest, got [0.5]"),
        (lambda: Transforms(ratio=[2, 1]), "transforms.ratio must be least, then greatest, got [2, 1]; swap them"),
        (lambda: Transforms(std=[1, 1, 0]), "transforms.std must be > 0 and <= 1, got 0"),
        (lambda: Transforms(hue=0.6), "transforms.hue must be >= 0 and <= 0.5, got 0.6"),
        (lambda: Transforms(size=64, max_side=32), "transforms.max_side must be >= 64, got 32"),
        (lambda: Transforms.named("hevy"), "transforms.augment has no choice 'hevy'; did you mean heavy?"),
    ],
)
def test_a_wrong_value_names_its_key_the_value_and_what_to_use(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_strings_become_enum_members_that_equal_them() -> None:
    cache = Cache(policy="lru")  # type: ignore[arg-type]
    assert cache.policy is CachePolicy.lru
    assert cache.policy == "lru"
    assert Data(on_error="replace").on_error == "replace"


def test_scaled_decoding_into_a_decoded_store_is_refused_naming_both_keys() -> None:
    with pytest.raises(ConfigError, match=r"cache\.store=decoded .* transforms\.decode=scaled"):
        PipelineConfig(
            data=IMAGES,
            cache=Cache(store="decoded"),  # type: ignore[arg-type]
            transforms=Transforms(decode="scaled"),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("policy", ["lru", "pinned"])
def test_a_cache_before_a_pack_of_pixels_is_refused_naming_its_keys(policy: str) -> None:
    def make(policy: str, store: str) -> PipelineConfig:
        cache, preload = Cache(policy=policy, store=store), Preload(mode="pack")  # type: ignore[arg-type]
        return PipelineConfig(data=IMAGES, cache=cache, preload=preload)

    with pytest.raises(ConfigError, match=rf"^cache\.policy={policy} .* cache\.store=decoded .* use cache=none"):
        make(policy, "decoded")
    make("none", "decoded")
    make(policy, "encoded")
    make(policy, "auto")


def test_a_limit_of_bad_samples_is_refused_where_the_first_one_stops() -> None:
    with pytest.raises(ConfigError, match=r"^data\.max_bad_fraction=0.5 has no use with data\.on_error=raise"):
        config("data.max_bad_fraction=0.5")
    assert config("data.max_bad_fraction=0.5", "data.on_error=skip").data.max_bad_fraction == 0.5


def test_a_pipeline_alone_needs_no_training_groups() -> None:
    cfg = PipelineConfig(data=IMAGES)
    assert cfg.loader == Loader()
    assert not hasattr(cfg, "dist")


@pytest.mark.parametrize(("kernel", "chosen"), [(object(), "fused"), (None, "fast")])
def test_evaluation_draws_nothing_and_resolved_chooses_the_resize(
    kernel: Any, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_transforms, "kernel", kernel)
    training = Transforms.named("heavy", decode="scaled")
    assert training.resolved().resize == chosen
    assert Transforms.named("none").resolved().resize == "exact"
    assert Transforms.named("heavy", resize="exact").resolved().resize == "exact"
    evaluation = training.evaluation()
    assert (evaluation.augment, evaluation.decode, evaluation.resize) == ("none", "full", "exact")
    assert (training.augment, training.size) == ("heavy", evaluation.size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FolderData(root="no"), "data.root is not a directory: {tmp}/no; give the one that holds"),
        (ManifestData(path="no.csv"), "data.path is not a file: {tmp}/no.csv"),
        (ManifestData(path="list.csv", root="no"), "data.root is not a directory: {tmp}/no; use null"),
        (TarData(pattern="no*.tar"), "data.pattern matches no file: {tmp}/no*.tar"),
        (TarData(pattern="no/{0..3}.tar"), "data.pattern is in {tmp}/no, which is not a directory"),
        (
            ParquetData(pattern="*.tar", val_pattern="no*.parquet"),
            "data.val_pattern matches no file: {tmp}/no*.parquet; give a glob such as data/train-*.parquet",
        ),
        (Cifar10Data(), "data.root is not a directory: {tmp}/data/cifar10; add data.download=true"),
        (
            Cifar100Data(),
            "data.root is not a directory: {tmp}/data/cifar100; add data.download=true to fetch CIFAR-100",
        ),
        (ArraysData(images="no.npy", labels="l"), "data.images is not a file: {tmp}/no.npy; give a .npy file"),
    ],
    ids=repr,
)
def test_an_input_that_does_not_exist_is_refused(data: Data, message: str, inputs: Path) -> None:
    cfg = PipelineConfig(data=replace(data))
    make_paths_absolute(cfg, inputs)
    with pytest.raises(ConfigError) as caught:
        check_paths(cfg)
    assert str(caught.value).startswith(message.format(tmp=inputs))


def test_the_page_of_sources_lists_every_option_of_data_with_its_own_keys() -> None:
    page = (conf_dir().parent / "docs" / "sources.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    of_all = {field.name for field in fields(Reachable)} - {"root"}
    for option in (option.removeprefix("data/") for option in OPTIONS if option.startswith("data/")):
        (keys,) = (row[2] for row in rows if len(row) == 3 and f"`{option}`" in row[0])
        written = set(OmegaConf.load(conf_dir() / "data" / f"{option}.yaml")) - of_all - {"defaults"}
        lacking = {key for key in written if f"`{key}`" not in keys and "those of" not in keys}
        assert not lacking, f"{option}: {lacking}"
    assert all(f"`{key}`" in page for key in of_all)


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("arrays", "images"),
        ("parquet", "pattern"),
        ("own", "factory"),
        ("folder", "root"),
        ("manifest", "path"),
        ("tar", "pattern"),
        ("synthetic", "num_images"),
    ],
)
def test_an_input_that_is_not_given_is_asked_for(option: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key} must be given; add data\.{key}="):
        config(f"data={option}")


def test_relative_paths_start_from_the_directory_the_program_was_started_in(inputs: Path) -> None:
    (inputs / "images").mkdir()
    cfg = config("data=folder", "data.root=images", "preload.dir=packs", cwd=str(inputs))
    assert isinstance(cfg.data, FolderData)
    assert (cfg.data.root, cfg.preload.dir) == (f"{inputs}/images", f"{inputs}/packs")
    (inputs / "weights.pt").touch()
    assert config("init_from=weights.pt", cwd=str(inputs)).init_from == f"{inputs}/weights.pt"
    with pytest.raises(ConfigError, match=f"init_from is not a file: {inputs}/none.pt; give a checkpoint"):
        config("init_from=none.pt", cwd=str(inputs))
    assert config("data=tar", "data.pattern=*.tar", cwd=str(inputs)).data.pattern == f"{inputs}/*.tar"
    assert config("data=tar", "data.pattern='{0..0}.tar'", cwd=str(inputs)).data.pattern == f"{inputs}/{{0..0}}.tar"


def test_resume_is_the_directory_that_is_named_and_auto_that_of_the_name(tmp_path: Path) -> None:
    cwd = str(tmp_path)
    assert config("resume=runs/a", cwd=cwd).resume == f"{cwd}/runs/a"
    assert config("resume=./auto", cwd=cwd).resume == f"{cwd}/auto"
    assert config("resume=auto", "run.name=a", cwd=cwd).resume == "auto"
    assert config("resume='~/a'", cwd=cwd).resume == str(Path.home() / "a")
    assert config(cwd=cwd).resume is None
    with pytest.raises(ConfigError, match=r"resume=auto needs to know which run: add run\.name=NAME"):
        config("resume=auto")
    with pytest.raises(ConfigError, match="resume must be auto or a run's directory, got ''"):
        config("resume=''")


@pytest.mark.parametrize(
    ("name", "resume", "directory"),
    [
        (None, None, "outputs/train/now"),
        ("a", None, "outputs/train/a"),
        ("a", "auto", "outputs/train/a"),
        (None, "runs/b", "runs/b"),
        (None, "./auto", "auto"),
        ("a", "runs/b", "outputs/train/a"),
    ],
)
def test_a_runs_directory_follows_from_its_name_or_from_what_it_resumes(
    name: str | None, resume: str | None, directory: str
) -> None:
    assert run_dir("outputs/train", name, resume, "now") == directory


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("data=smal", "data has no option 'smal'; did you mean small?"),
        ("daat=small", "daat is not a key; did you mean data?"),
        ("experimnt=cifar10", "experimnt is not a key; did you mean experiment?"),
        ("loader.num_worker=3", "loader.num_worker is not a key; did you mean num_workers?"),
        ("laoder.num_workers=3", "laoder is not a key; did you mean loader?"),
        (
            "loader.num_workers=abc",
            "loader.num_workers must be auto or a whole number >= 0, got 'abc'; 0 is none",
        ),
        ("loader.batch_size=abc", "loader.batch_size must be a whole number, got 'abc'"),
        ("loader.batch_size=null", "loader.batch_size must be a whole number, got null"),
        ("loader.drop_last=maybe", "loader.drop_last must be true or false, got 'maybe'"),
        ("cache.policy=lrru", "cache.policy has no choice 'lrru'; did you mean lru? choices: none, lru, pinned"),
        ("cache.max_gib=lots", "cache.max_gib must be a number or null, got 'lots'"),
        ("transforms.scale=3", "transforms.scale must be a list of numbers, got 3"),
        ("transforms.scale=[a,1]", "transforms.scale[0]: Value 'a' of type 'str' could not be converted to Float"),
        ("data=folder data.num_images=3", "data.num_images is not a key; choices: root"),
        ("+typo=1", "typo is not a key; choices: data"),
        ("~data", "data must be given; add data=VALUE"),
        ("run.seed=${nothing}", "run.seed: Interpolation key 'nothing' not found"),
        ("data=small,tiny", "Ambiguous value for argument 'data=small,tiny'; "),
        ("loader", "cannot read 'loader'; write GROUP=OPTION or KEY=VALUE"),
        ("loader=3", "Config group override must be a string or a list. Got int"),
        ("+loader.num_worker=1", "loader.num_worker is not a key; did you mean num_workers?"),
        ("+data.rot=x", "data.rot is not a key; did you mean root?"),
    ],
)
def test_a_wrong_override_is_one_line_with_key_value_and_nearest_choice(command: str, line: str) -> None:
    with pytest.raises((ConfigError, HydraException, OmegaConfBaseException, ValueError)) as caught:
        config(*command.split(" "))
    message = str(caught.value) if isinstance(caught.value, ConfigError) else one_line(caught.value)
    assert message.startswith(line)
    assert "\n" not in message
