from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdm_core.config.document import dotted, dump_document, parse_document, parse_value, read_document
from hpdm_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-22", "2026-11-22"),
        ("1.5", 1.5),
        ("1.0e-4", 1e-4),
        ("1.0e4", 1e4),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("'1e-4'", "1e-4"),
        ('"5"', "5"),
        ("!!str 5", "5"),
        ("a b", "a b"),
    ],
)
def test_scalars_follow_yaml_1_2_without_surprises(text: str, value: object) -> None:
    document = parse_document(f"key: {text}", "f")
    assert document.problems == []
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_document("key: .nan", "f").data["key"])


def test_bare_exponent_is_a_problem_with_line_key_and_remedy() -> None:
    document = parse_document("a:\n  b: [1, 2E5]\n  lr: 1e-4\n", "f.yaml")
    assert document.problems == [
        "f.yaml:2: key a.b[1]: 2E5 has an exponent and no decimal point; write 2.0e5",
        "f.yaml:3: key a.lr: 1e-4 has an exponent and no decimal point; write 1.0e-4",
    ]


def test_equal_keys_are_a_problem_that_names_both_lines() -> None:
    document = parse_document("a:\n  x: 1\n  y: 2\n  x: 3\n", "f.yaml")
    assert document.problems == ["f.yaml:4: key a.x: the key appears twice, first on line 2"]


def test_marks_name_the_line_of_each_key_and_fall_back_to_the_parent() -> None:
    document = parse_document("a:\n  b:\n    - c: 1\n", "f")
    assert document.where(("a",)) == "f:1"
    assert document.where(("a", "b")) == "f:2"
    assert document.where(("a", "b", 0, "c")) == "f:3"
    assert document.where(("a", "zzz", "y")) == "f:1"
    assert document.where(()) == "f"


def test_merge_key_and_python_tags_have_no_power() -> None:
    document = parse_document("base: &b {x: 1}\nuse: {<<: *b}\n", "f")
    assert document.data["use"] == {"<<": {"x": 1}}
    tagged = parse_document("x: !!python/object/apply:os.getcwd []\ny: !!int abc\n", "f")
    assert tagged.data == {"x": [], "y": None}
    assert len(tagged.problems) == 1


def test_an_alias_of_its_own_parent_is_a_problem_not_a_hang() -> None:
    document = parse_document("a: &loop\n  b: *loop\n", "f")
    assert "alias refers to its own parent" in document.problems[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2\nb: 3\n", "f:2: not valid YAML"),
        ("- 1\n- 2\n", "`key: value` lines"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a:\n\t- 1\n", "f:2: not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_text_that_is_no_config_says_where(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="f") as caught:
        parse_document(text, "f")
    assert words in str(caught.value)


def test_empty_file_is_an_empty_document() -> None:
    assert parse_document("# nothing\n", "f").data == {}


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_document(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_document(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_document(binary)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("[1e-4, 2]", [1e-4, 2]),
        ("{a: 1}", {"a": 1}),
        ("runs/[val]/x", "runs/[val]/x"),
        ("[unclosed", "[unclosed"),
        ("{a: 1, a: 2}", "{a: 1, a: 2}"),
        ("", None),
        ("true", True),
        ("a: b", {"a": "b"}),
    ],
)
def test_command_line_values(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_dotted() -> None:
    assert dotted(("model", "levels", 1, "patch")) == "model.levels[1].patch"


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), _trees, max_size=4))
def test_dump_reads_back_to_the_same_data(data: dict[str, object]) -> None:
    document = parse_document(dump_document(data), "f")
    assert document.problems == []
    assert document.data == data


@pytest.mark.parametrize("text", ["1e-4", "1.0e4", "yes", "010", "null", "1:30", "~", "<<", "=", "0o7", "1E5"])
def test_dump_quotes_text_that_looks_like_something_else(text: str) -> None:
    assert parse_document(dump_document({"k": text}), "f").data == {"k": text}
