from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdm_core.config.load import dump_config, load_config, parse_config, plain_config
from hpdm_core.config.schema import RunConfig
from hpdm_core.errors import ConfigError
from hpdm_core.families.registry import load_run_config
from tests.support.sections import GOOD, Block, PaperModel, PaperSample, paper_sections

Load = Callable[..., RunConfig]
Complaint = Callable[..., str]


def test_a_good_file_loads_into_the_familys_own_sections(good: Path, load: Load) -> None:
    config = load(good)
    assert type(config) is RunConfig
    assert type(config.model) is PaperModel
    assert config.model.patch == (16, 64, 64)
    assert config.model.gain == 2.0
    assert type(config.model.gain) is float
    assert type(config.sample) is PaperSample
    assert config.train.optimizer.lr == 1e-6
    assert config.train.steps == 10


def test_a_path_needs_no_suffix_and_text_needs_a_slash_or_one(
    good: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = good.rename(tmp_path / "bare")
    monkeypatch.chdir(tmp_path)
    assert load(Path("bare")) == load("./bare") == load(str(bare))
    with pytest.raises(ConfigError, match="no preset is named 'bare'"):
        load("bare")


def test_configs_can_be_copied_and_pickled(good: Path, load: Load) -> None:
    config = load(good)
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 3  # type: ignore[misc]


def test_dump_round_trips_through_load_and_parse(good: Path, load: Load, tmp_path: Path) -> None:
    config = load(
        good,
        "train.optimizer.lr=3.3e-07",
        "model.blocks=[{width: 3}, {width: 4, heads: 1}]",
        "sample.steps=[5, 6]",
        "sample.options={churn: 40}",
        "data.dataset=1e-4",
        "description=yes",
    )
    assert config.model.blocks == (Block(width=3), Block(width=4, heads=1))  # type: ignore[attr-defined]
    text = dump_config(config)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load(again) == config
    assert dump_config(load(again)) == text
    assert parse_config(plain_config(config), paper_sections, where="header") == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    gain=st.floats(allow_nan=False, allow_infinity=False),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    name=st.text(max_size=20),
    widths=st.lists(st.integers(), max_size=4),
)
def test_any_values_round_trip(gain: float, lr: float, name: str, widths: list[int], tmp_path: Path) -> None:
    raw = {
        "family": "paper",
        "description": name,
        "model": {"gain": gain, "widths": widths},
        "data": {"dataset": name},
        "train": {"max_steps": 1, "optimizer": {"lr": lr}},
        "sample": {},
    }
    config = parse_config(raw, paper_sections, where="raw")
    assert parse_config(plain_config(config), paper_sections, where="raw") == config
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path, (), paper_sections) == config


@pytest.mark.parametrize("gain", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_refused(gain: float) -> None:
    raw = {
        "family": "paper",
        "model": {"gain": gain},
        "data": {"dataset": "any"},
        "train": {"max_steps": 1, "optimizer": {"lr": 1.0}},
        "sample": {},
    }
    with pytest.raises(ConfigError, match=rf"key model\.gain: expected a finite number, found {gain}"):
        parse_config(raw, paper_sections, where="raw")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  optimizer:",
            "  optimzer:",
            "bad.yaml:11: key train.optimzer: unknown key; did you mean train.optimizer?",
        ),
        (
            "sample: {}",
            "sample: {}\nbatch_size: 3",
            "bad.yaml:14: key batch_size: unknown key; did you mean train.batch_size?",
        ),
        (
            "sample: {}",
            "sample: {zzz: 1}",
            "bad.yaml:13: key sample.zzz: unknown key; sample knows precision, compile, graphs, fast, steps, options",
        ),
        (
            "max_steps: 10",
            "max_steps: 1.5",
            "bad.yaml:9: key train.max_steps: expected a whole number, found 1.5",
        ),
        ("gain: 2", "gain: two", "bad.yaml:5: key model.gain: expected a number, found text 'two'"),
        ("gain: 2", "gain: true", "bad.yaml:5: key model.gain: expected a number, found true"),
        ("gain: 2", "gain:", "bad.yaml:5: key model.gain: expected a number, found null"),
        (
            "gain: 2",
            "gain: '2'",
            "bad.yaml:5: key model.gain: expected a number, found text '2'; remove the quotes or the leading zero",
        ),
        (
            "gain: 2",
            "gain: nan",
            "bad.yaml:5: key model.gain: expected a number, found text 'nan'; it must be a finite number",
        ),
        ("gain: 2", "gain: .nan", "bad.yaml:5: key model.gain: expected a finite number, found nan"),
        (
            "precision: fp32",
            "compile: on",
            "bad.yaml:10: key train.compile: expected true or false, found text 'on'; write true",
        ),
        (
            "precision: fp32",
            "precision: bf61",
            "bad.yaml:10: key train.precision: expected 'fp32', 'tf32' or 'bf16', found text 'bf61'; "
            "did you mean bf16?",
        ),
        (
            "precision: fp32",
            "seed: 010",
            "bad.yaml:10: key train.seed: expected a whole number, found text '010'; "
            "remove the quotes or the leading zero",
        ),
        ("lr: 1.0e-6", "lr: -1.0", "bad.yaml:12: key train.optimizer.lr: expected a number > 0.0, found -1.0"),
        (
            "lr: 1.0e-6",
            "lr: 1e-6",
            "bad.yaml:12: key train.optimizer.lr: 1e-6 has an exponent and no decimal point; write 1.0e-6",
        ),
        (
            "patch: [16, 64, 64]",
            "patch: 16",
            "bad.yaml:4: key model.patch: expected a list such as [1, 2], found 16",
        ),
        (
            "patch: [16, 64, 64]",
            "patch: [16, 64, x]",
            "bad.yaml:4: key model.patch[2]: expected a whole number, found text 'x'",
        ),
        (
            "patch: [16, 64, 64]",
            "patch: [16, 64]",
            "bad.yaml:4: key model.patch[2] is missing",
        ),
        (
            "sample: {}",
            "sample: {steps: [a, 1]}",
            "bad.yaml:13: key sample.steps: expected a whole number or "
            "a list whose every item is a whole number, found ['a', 1]",
        ),
        ("  dataset: clips", "  workers: 1", "bad.yaml:6: key data.dataset is missing"),
        ("sample: {}\n", "", "bad.yaml: key sample is missing"),
        (
            "sample: {}",
            "sample: 3",
            "bad.yaml:13: key sample: expected a section of `key: value` lines, found 3",
        ),
        (
            "max_steps: 10",
            "max_videos: 10\n  max_steps: 3",
            "bad.yaml:8: key train: set exactly one of max_steps and max_videos",
        ),
        ("family: paper", "family: papre", "bad.yaml:1: key family: unknown family 'papre'"),
        ("family: paper", "family: [a]", "bad.yaml:1: key family: expected a name, found ['a']"),
        ("family: paper\n", "", "bad.yaml: key family is missing"),
        (
            "patch: [16, 64, 64]",
            "blocks: [{width: 1}, {with: 2, width: 3}]",
            "bad.yaml:4: key model.blocks[1].with: unknown key; did you mean model.blocks[1].width?",
        ),
    ],
)
def test_one_problem_names_file_line_key_and_remedy(old: str, new: str, message: str, complaint: Complaint) -> None:
    assert complaint(old, new) == message


def test_all_problems_are_listed_at_once(complaint: Complaint) -> None:
    message = complaint(GOOD, GOOD.replace("gain: 2", "gain: x\n  gian: 3").replace("1.0e-6", "1e-6"))
    lines = message.splitlines()
    assert lines[0] == "3 problems in the config:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == ["bad.yaml:13", "bad.yaml:5", "bad.yaml:6"]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.optimizer.lr=1e-4", ("train", "optimizer", "lr"), 1e-4),
        ("train.optimizer.lr=2", ("train", "optimizer", "lr"), 2.0),
        ("train.max_steps=7", ("train", "max_steps"), 7),
        ("model.patch=[1, 2,3]", ("model", "patch"), (1, 2, 3)),
        ("train.optimizer.clip_norm=null", ("train", "optimizer", "clip_norm"), None),
        ("train.compile=true", ("train", "compile"), True),
        ("data.dataset=101", ("data", "dataset"), "101"),
        ("data.dataset=true", ("data", "dataset"), "true"),
        ("data.store=runs/[val]=x", ("data", "store"), "runs/[val]=x"),
        ("data.store=a: b", ("data", "store"), "a: b"),
        (" train.seed = 5 ", ("train", "seed"), 5),
        ("description=", ("description",), ""),
        ("sample.options.eta=1e-1", ("sample", "options"), {"eta": 0.1}),
        ("train.optimizer={lr: 3.0, name: adamw}", ("train", "optimizer", "name"), "adamw"),
    ],
)
def test_overrides_are_typed_by_their_field(
    override: str, path: tuple[str, ...], value: object, good: Path, load: Load
) -> None:
    node: object = load(good, override)
    for name in path:
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)


def test_later_overrides_win(good: Path, load: Load) -> None:
    assert load(good, "train.seed=1", "train.seed=2").train.seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.optimzer.lr=3",
            "--set train.optimzer.lr=3: key train.optimzer: unknown key; did you mean train.optimizer?",
        ),
        ("lr=3", "--set lr=3: key lr: unknown key; did you mean train.optimizer.lr?"),
        (
            "train.compile=yes",
            "--set train.compile=yes: key train.compile: expected true or false, found text 'yes'; write true",
        ),
        ("train.seed=1e3", "--set train.seed=1e3: key train.seed: expected a whole number, found 1000.0"),
        (
            "train.optimizer.lr=nan",
            "--set train.optimizer.lr=nan: key train.optimizer.lr: expected a number, found text 'nan'; "
            "it must be a finite number",
        ),
        (
            "train.optimizer.lr=-.inf",
            "--set train.optimizer.lr=-.inf: key train.optimizer.lr: expected a finite number, found -inf",
        ),
        ("train.seed", "--set train.seed: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("train..seed=3", "--set train..seed=3: expected key=value"),
        ("train.seed.x=3", "--set train.seed.x=3: key train.seed.x: unknown key; train.seed takes a value, not keys"),
        ("train.batch_size=0", "--set train.batch_size=0: key train.batch_size: expected a number >= 1, found 0"),
    ],
)
def test_a_wrong_override_is_blamed_on_the_command_line(override: str, message: str, complaint: Complaint) -> None:
    assert complaint(overrides=[override]) == message


def test_a_header_is_blamed_on_its_file() -> None:
    with pytest.raises(ConfigError, match=r"w\.safetensors: key modle: unknown key; did you mean model\?"):
        parse_config(
            {"family": "paper", "model": {}, "data": {"dataset": "x"}, "train": {"max_steps": 1}, "sample": {}}
            | {"modle": {}},
            paper_sections,
            where="w.safetensors",
        )


def test_extends_merges_mappings_and_replaces_lists(good: Path, load: Load, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: ./good.yaml\nmodel:\n  widths: [9]\ntrain:\n  max_steps: null\n  max_videos: 64\n")
    config = load(child)
    assert config.model.widths == (9,)  # type: ignore[attr-defined]
    assert config.model.patch == (16, 64, 64)  # type: ignore[attr-defined]
    assert (config.train.max_steps, config.train.max_videos, config.train.steps) == (None, 64, 8)
    assert config.train.optimizer.lr == 1e-6


def test_problems_in_a_parent_are_blamed_on_the_parent(good: Path, load: Load, tmp_path: Path) -> None:
    good.write_text(GOOD.replace("gain: 2", "gain: x"))
    child = tmp_path / "child.yaml"
    child.write_text("extends: ./good.yaml\nmodel:\n  widths: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(child)
    assert f"{good}:5: key model.gain" in str(caught.value)
    assert f"{child}:3: key model.widths" in str(caught.value)


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("./child.yaml", "circle: child -> child"),
        ("nosuchpreset", "key extends: no preset is named 'nosuchpreset'"),
        ("[a, b]", "expected the name of one preset"),
    ],
)
def test_bad_extends(parent: str, message: str, load: Load, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(f"# a comment\nextends: {parent}\n")
    with pytest.raises(ConfigError) as caught:
        load(child)
    assert f"{child}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_a_long_circle_is_found(load: Load, tmp_path: Path) -> None:
    for name, parent in [("a", "b"), ("b", "c"), ("c", "a")]:
        (tmp_path / f"{name}.yaml").write_text(f"extends: ./{parent}.yaml\n")
    with pytest.raises(ConfigError, match="circle: a -> b -> c -> a"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sample.steps=[0]", "key sample.steps[0]: expected a number >= 1, found 0"),
        ("sample.steps=[]", "key sample.steps: expected a list of at least 1 items, found []"),
        (
            "sample.chunk=[0]",
            "key sample.chunk: expected a whole number or a list whose every item is a number >= 1, found [0]",
        ),
    ],
)
def test_a_list_of_wrong_items_is_not_called_too_short(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config("hpdm-smoke", [override])
    assert str(caught.value) == f"--set {override}: {said}"


def test_a_key_of_another_mode_is_not_said_to_be_unlike_itself() -> None:
    said = r"key model\.condition\.text\.layers: unknown key; it belongs to another kind of model\.condition\.text"
    with pytest.raises(ConfigError, match=said):
        load_run_config("hpdm-text-smoke", ("model.condition.text.mode=frozen",))
