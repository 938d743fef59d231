"""Sampling settings by name and by budget: what is chosen, and what is refused."""

import json
from dataclasses import replace

import pytest

from hpdm_core.config.load import parse_config, plain_config
from hpdm_core.errors import ConfigError
from hpdm_core.families.generate import outline, sample_options
from hpdm_core.families.registry import build_family, family_sections, load_run_config
from hpdm_core.families.settings import budget_options, fast_options, load_table
from hpdm_core.families.weights import LoadedModel, WeightsHeader

ROWS = [
    {"options": {"steps": [8]}, "frechet": 10.0, "calls": 80},
    {"options": {"steps": [4]}, "frechet": 12.0, "calls": 40},
    {"options": {"steps": [3]}, "frechet": 15.0, "calls": 30},
    {"options": {"steps": [1], "phases": "alternate"}, "frechet": 30.0, "calls": 10},
]
SECONDS = [8.0, 4.0, 3.0, 1.0]
SHA = "ab" * 32


@pytest.fixture
def model(tmp_path):
    config = load_run_config("hpdm-smoke", ("model.condition={kind: none}",))
    family = build_family(config).eval().requires_grad_(False)
    header = WeightsHeader(config=plain_config(config))
    return LoadedModel(family, config, header, tmp_path / "weights.safetensors", SHA)


def timed(seconds=SECONDS, *, probe=2.0, **options):
    return {"machine": "one core", "options": options, "probe": probe, "rows": seconds}


def write_table(model, **changes):
    table = {
        "model_sha256": SHA, "distance": "rFD", "rows": ROWS, "probe": {"steps": [1], "level": 0},
        "times": {"cpu": timed()}, **changes,
    }  # fmt: skip
    (model.path.parent / "sampling.json").write_text(json.dumps(table))


def test_fast_is_the_configs_setting(model):
    assert fast_options(model) == {"steps": [1], "phases": "alternate"}
    assert sample_options(model, fast_options(model)).phases == "alternate"


def test_a_model_without_a_fast_setting_says_so(model):
    sample = model.config.sample.model_copy(update={"fast": {}})
    with pytest.raises(ConfigError, match=r"no `sample.fast`"):
        fast_options(replace(model, config=model.config.model_copy(update={"sample": sample})))


@pytest.mark.parametrize("fast", [{"stops": [1]}, {"steps": "few"}, {"overlap": "much"}])
def test_an_impossible_fast_setting_is_refused_when_the_config_is_read(model, fast):
    raw = plain_config(model.config)
    raw["sample"]["fast"] = fast
    with pytest.raises(ConfigError, match=f"fast: {next(iter(fast))}"):
        parse_config(raw, family_sections, where="here")


@pytest.mark.parametrize(("budget", "steps", "seconds"), [(100.0, [8], 16.0), (8.5, [4], 8.0), (2.0, [1], 2.0)])
def test_the_best_setting_within_the_budget_on_a_machine_of_half_the_speed(model, budget, steps, seconds):
    write_table(model)
    asked = []

    def probe(model, device, options):
        asked.append((device, options))
        return 4.0

    chosen, expected = budget_options(model, budget, device="cpu", probe=probe)
    assert chosen["steps"] == steps
    assert expected == pytest.approx(seconds)
    assert asked == [("cpu", {"steps": [1], "level": 0})]


def test_a_part_of_the_video_takes_its_share_of_the_time(model):
    write_table(model)
    whole, _ = model.config.model.video, None
    frames = whole[0] // 4
    chosen, expected = budget_options(model, 100.0, frames=frames, probe=lambda *_: 2.0)
    evals = [sum(s.block_evals for s in outline(model, frames=f, size=None, **chosen).stages) for f in (frames, None)]
    assert expected == pytest.approx(8.0 * evals[0] / evals[1])
    assert expected < 8.0


def test_settings_that_cannot_make_the_part_are_passed_over(model):
    full = {"options": {"steps": [8], "overlap": "full"}, "frechet": 1.0, "calls": 99}
    write_table(model, rows=[full, *ROWS], times={"cpu": timed([8.0, *SECONDS])})
    assert budget_options(model, 100.0, probe=lambda *_: 2.0)[0] == full["options"]
    assert budget_options(model, 100.0, frames=2, probe=lambda *_: 2.0)[0] == ROWS[0]["options"]
    write_table(model, rows=[full], times={"cpu": timed([8.0])})
    with pytest.raises(ConfigError, match="overlap: full"):
        budget_options(model, 100.0, frames=2, probe=lambda *_: 2.0)


def test_a_budget_that_nothing_meets_names_the_fastest(model):
    write_table(model)
    with pytest.raises(ConfigError, match=r"in 1\.5 s here; the fastest takes about 2 s"):
        budget_options(model, 1.5, probe=lambda *_: 4.0)


def test_the_probe_runs_the_tables_setting(model):
    write_table(model)
    chosen, seconds = budget_options(model, 1e6, device="cpu")
    assert chosen == {"steps": [8]}
    assert seconds > 0


def test_a_machine_is_compared_with_one_of_its_kind_and_samples_as_that_kind_does_best(model):
    cuda = timed([0.8, 0.5, 0.4, 0.3], probe=0.1, precision="bf16")
    write_table(model, times={"cuda": cuda, "cpu": timed(precision="fp32")})
    asked = []

    def probe(model, device, options):
        asked.append(options)
        return 4.0

    chosen, expected = budget_options(model, 8.5, device="cpu", probe=probe)
    assert (chosen, expected) == ({"steps": [4], "precision": "fp32"}, pytest.approx(8.0))
    assert asked == [{"steps": [1], "level": 0, "precision": "fp32"}]
    write_table(model, times={"cuda": cuda})
    chosen, expected = budget_options(model, 25.0, device="cpu", probe=probe)
    assert (chosen, expected) == ({"steps": [4], "precision": "bf16"}, pytest.approx(20.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_sha256": "cd" * 32}, "other weights"),
        ({"rows": []}, "rows"),
        ({"rows": [{}]}, "not a table"),
        ({"times": {}}, "times"),
        ({"times": {"cpu": timed([1.0])}}, r"times\.cpu has seconds for 1 of 4 rows"),
    ],
)
def test_tables_of_other_models_and_broken_ones_are_refused(model, changes, message):
    write_table(model, **changes)
    with pytest.raises(ConfigError, match=message):
        load_table(model)


@pytest.mark.parametrize("damage", [lambda raw: raw[:40], lambda raw: b"\xff\xfe", lambda raw: b"[1]", lambda raw: b""])
def test_a_damaged_table_is_refused_in_one_line_that_says_what_to_do(model, damage):
    write_table(model)
    path = model.path.parent / "sampling.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"sampling\.json is not a table") as caught:
        load_table(model)
    assert "\n" not in str(caught.value)
    assert "measure again" in caught.value.hint


def test_a_table_of_before_names_the_keys_that_are_wrong(model):
    """As it was when seconds were those of one machine."""
    write_table(
        model, machine="one core", probe={"options": {"steps": [1]}, "seconds": 2.0}, rows=[ROWS[0] | {"seconds": 8.0}]
    )
    with pytest.raises(ConfigError, match=r"rows\[0\]\.seconds: unknown key.*machine: unknown key") as caught:
        load_table(model)
    assert "\n" not in str(caught.value)


def test_without_a_table_there_is_no_budget(model):
    with pytest.raises(ConfigError, match="no sampling settings were measured"):
        budget_options(model, 5.0)
