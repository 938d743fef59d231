"""Protocols: every shipped one loads, each field changes the hash, prose does not."""

import json

import pytest

from hpdm_core.errors import ConfigError
from hpdm_core.metrics.protocol import (
    Protocol,
    differences,
    list_protocols,
    load_protocol,
    protocol_hash,
)

NAMED = ["fvd10k_16f", "fvd2048_128f", "fvd2048_16f", "fvd2048_64f", "fvd512", "fvd_tf", "smoke", "ucf_is10k"]


def test_shipped_protocols():
    assert list_protocols() == [*NAMED, "videogpt_fvd2048_16f"]
    for name in list_protocols():
        protocol = load_protocol(name)
        assert protocol.name == name
        assert protocol.description
        assert protocol.source


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("fvd2048_16f", {"select": "first", "count": 2048, "eps": 1e-3, "ddof": 0, "resize": "half_pixel"}),
        ("fvd10k_16f", {"select": "all", "count": None, "fake": 10000, "eps": 1e-3, "ddof": 0}),
        ("fvd2048_64f", {"frames": 64, "fake": 2048, "select": "all"}),
        ("fvd2048_128f", {"frames": 128, "fake": 2048, "select": "first"}),
        ("videogpt_fvd2048_16f", {"eps": 1e-5, "ddof": 1, "formula": "float32_svd", "fit": "crop"}),
        ("fvd_tf", {"resize": "tf1_legacy", "ddof": 1, "formula": "tfgan", "fit": "stretch"}),
        ("ucf_is10k", {"network": "c3d", "splits": 10, "fake": 10000}),
        ("fvd512", {"fake": 512, "select": "all"}),
    ],
)
def test_what_distinguishes_them(name, facts):
    p = load_protocol(name)
    values = {
        **p.real.model_dump(), **p.detector.model_dump(), **p.statistics.model_dump(), **p.inception.model_dump(),
        "fake": p.fake.count, "frames": p.clip.frames,
    }  # fmt: skip
    assert {key: values[key] for key in facts} == facts


def leaves(record, path=()):
    for key, value in record.items():
        yield from leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]


OTHER = {
    "clip.frames": "17", "clip.size": "[64, 64]", "clip.fit": "stretch", "real.select": "random", "real.count": "7",
    "real.start": "first", "real.stride": "2", "real.seed": "1", "fake.count": "7", "fake.start": "center",
    "fake.stride": "2", "detector.name": "random-i3d", "detector.output": "pooled", "detector.eps": "0.00001",
    "detector.resize": "tf1_legacy", "detector.fit": "crop", "detector.input_range": "[0.0, 1.0]",
    "detector.precision": "tf32", "statistics.ddof": "1", "statistics.formula": "tfgan", "inception.network": "c3d",
    "inception.splits": "1", "inception.shuffle_seed": "null",
}  # fmt: skip


def test_every_field_changes_the_hash():
    base = load_protocol("fvd2048_16f")
    assert set(OTHER) == {".".join(path) for path in leaves(base.record())}
    hashes = {protocol_hash(base, "w")}
    for key, value in OTHER.items():
        hashes.add(protocol_hash(load_protocol("fvd2048_16f", [f"{key}={value}"]), "w"))
    assert len(hashes) == len(OTHER) + 1
    assert protocol_hash(base, "other weights") not in hashes


def test_prose_does_not_change_the_hash():
    base = load_protocol("fvd2048_16f")
    renamed = base.model_copy(update={"name": "x", "description": "y", "source": "z", "metrics": ("kvd",)})
    assert protocol_hash(renamed, "w") == protocol_hash(base, "w")


def test_the_hash_is_stable():
    # A change here makes every published result incomparable: only ever on purpose.
    assert protocol_hash(Protocol(name="any"), "0" * 64) == STABLE


STABLE = "89eab836935b70df"


def test_count_changes_both_sides():
    few = load_protocol("fvd2048_16f").with_count(64)
    assert (few.real.count, few.fake.count) == (64, 64)
    all_real = load_protocol("fvd512").with_count(64)
    assert (all_real.real.select, all_real.real.count, all_real.fake.count) == ("random", 64, 64)


def test_bad_protocols_name_the_key(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nclip: {frame: 16}\nreal: {select: all}\n")
    with pytest.raises(ConfigError) as error:
        load_protocol(file)
    assert "clip.frame" in str(error.value)
    assert "did you mean clip.frames" in str(error.value)
    assert "count must be null" in str(error.value)
    with pytest.raises(ConfigError, match="did you mean fvd2048_16f"):
        load_protocol("fvd2048_16")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_protocol("smoke", ["frames"])
    with pytest.raises(ConfigError, match="expected a whole number"):
        load_protocol("smoke", ["clip.frames=many"])


def test_differences_name_each_leaf():
    a, b = load_protocol("fvd2048_16f").record(), load_protocol("fvd_tf").record()
    found = differences(a, b)
    assert "statistics.ddof: 0 against 1" in found
    assert "detector.resize: half_pixel against tf1_legacy" in found
    assert differences(a, json.loads(json.dumps(a))) == []
