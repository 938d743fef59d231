"""The sampling benchmark's table of times, for models of every kind, at the size of tests."""

import json
import time

import pytest

from benchmarks.sampling import MODES, main, measure_speed, speed_rows
from hpdm_core.config.load import plain_config
from hpdm_core.families.pvdm.autoencoder import Decoder
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.settings import budget_options, load_table
from hpdm_core.families.weights import WeightsHeader, load_model, save_weights
from tests.support.growing import make_store

TOWER = (
    "model.condition={kind: text, text: {mode: frozen, arch: ViT-B-32, quick_gelu: false, width: 8, pooled_width: 8, "
    "context_length: 5}}",
    "sample.guidance=[4.0]",
)
"""A model that reads a text tower, of which there are no weights."""


def rows_of(preset, overrides=()):
    return speed_rows(load_run_config(preset, overrides).sample)


def eager(preset, name, overrides=()):
    """The last eager row called `name`: in tf32 where there is one, since bf16 is slow on CPUs."""
    return [row for row in rows_of(preset, overrides) if (row.name, row.mode) == (name, "eager")][-1]


@pytest.mark.parametrize(
    ("preset", "own", "stages", "changes"),
    [
        ("hpdm-smoke", "preset", ("level0", "level1", "level2"), ()),
        ("pvdm-smoke", "preset", ("clip0",), ()),
        ("mdm-smoke", "preset", ("joint",), ()),
        ("mdm-smoke", "preset", ("joint",), TOWER),
    ],
)
def test_a_video_is_timed_stage_by_stage_at_its_steps_and_at_few(preset, own, stages, changes):
    slow, fast = (measure_speed(eager(preset, name, changes), preset, "cpu", changes) for name in (own, "fast"))
    for result in (slow, fast):
        assert tuple(level["name"] for level in result["levels"]) == stages
        parts = [level["setup_s"] + level["seconds"] for level in result["levels"]]
        assert all(part > 0 for part in parts)
        assert result["seconds"] == pytest.approx(sum(parts) + result["finish_s"])
        assert result["memory_gib"] is None
        json.dumps(result, allow_nan=False)
    config = load_run_config(preset, changes).sample
    assert [level["steps"] for level in slow["levels"]] == list(config.steps[: len(stages)])
    assert fast["calls"] < slow["calls"]


def test_what_follows_the_last_stage_is_part_of_the_time(monkeypatch):
    """A chained model decodes there: a slow decoder must show."""
    decode = Decoder.forward

    def slowly(self, *args):
        time.sleep(0.2)
        return decode(self, *args)

    monkeypatch.setattr(Decoder, "forward", slowly)
    result = measure_speed(eager("pvdm-smoke", "preset"), "pvdm-smoke", "cpu", ())
    assert 0.2 < result["finish_s"] < result["seconds"]


def test_models_that_do_not_tile_have_no_rows_of_tiles():
    for preset in ("pvdm-ucf101-l", "mdm-ucf101", "mdm-text-256"):
        rows = rows_of(preset)
        assert {(row.name, row.mode, row.precision) for row in rows} == {
            (name, mode, precision) for name in ("fast", "preset") for mode in MODES for precision in ("bf16", "tf32")
        }
        assert all(bool(row.options) == (row.name == "fast") for row in rows)
    assert {row.mode for row in rows_of("ucf101-m")} == {"compiled+graphs", "compiled", "graphs", "eager", "plain"}


def test_the_command_writes_its_table_and_keeps_the_rows_it_has(tmp_path, capsys):
    path = tmp_path / "speed.json"
    words = ["speed", "--preset", "pvdm-smoke", "--device", "cpu", "--modes", "eager", "--json", str(path)]
    main(words)
    table = json.loads(path.read_text())
    assert [(row["name"], row["calls"]) for row in table["rows"]] == [("fast", 2), ("preset", 3)] * 2
    printed = capsys.readouterr().out
    assert printed.count("s/video") == 4
    main([*words, "--deadline", "0"])
    assert json.loads(path.read_text())["rows"] == table["rows"]
    assert capsys.readouterr().out == printed
    path.write_text(json.dumps({**table, "machine": {**table["machine"], "commit": "another"}}))
    main([*words, "--deadline", "0"])
    assert capsys.readouterr().out.count("past the deadline") == 4  # nothing was taken for this commit's
    assert not path.exists()
    assert json.loads(path.with_suffix(".old.json").read_text())["rows"] == table["rows"]


def test_the_table_of_qualities_is_what_a_budget_chooses_from(tmp_path):
    """And another kind of device joins it with its own seconds."""
    config = load_run_config("hpdm-smoke", ("model.condition={kind: none}",))
    path, table = tmp_path / "weights.safetensors", tmp_path / "sampling.json"
    save_weights(path, build_family(config).state_dict(), WeightsHeader(plain_config(config)))
    store = make_store(tmp_path / "store")
    words = ["--ckpt", str(path), "--table", str(table), "--device", "cpu"]
    main(["quality", *words, "--data", str(store), "--num", "2", "--steps", "2;1", "--solvers", "euler",
          "--tilings", "none", "--json", str(tmp_path / "rows.json")])  # fmt: skip
    model = load_model(path)
    measured = json.loads((tmp_path / "rows.json").read_text())["rows"]
    found = load_table(model)
    assert [row.frechet for row in found.rows] == [pytest.approx(sum(row["rfd"]) / 3) for row in measured]
    assert found.times["cpu"].rows == tuple(row["seconds"] for row in measured)
    chosen, _ = budget_options(model, 1e6, device="cpu")
    best = min(found.rows, key=lambda row: row.frechet)
    assert chosen == {**best.options, "precision": "fp32"}
    raw = json.loads(table.read_text())
    raw["times"] = {"cuda": raw["times"]["cpu"]}
    table.write_text(json.dumps(raw))
    main(["times", *words])
    again = load_table(model)
    assert again.times["cuda"].rows == found.times["cpu"].rows
    assert len(again.times["cpu"].rows) == len(again.rows) == 2
    quality = ["quality", *words, "--data", str(store), "--num", "2", "--solvers", "euler", "--tilings", "none"]
    main([*quality, "--steps", "2;1", "--json", str(tmp_path / "rows.json")])
    assert set(load_table(model).times) == {"cpu", "cuda"}  # the same settings measured again
    main([*quality, "--steps", "1"])
    assert set(load_table(model).times) == {"cpu"}  # other settings
    main([*quality, "--steps", "2;1"])
    save_weights(path, build_family(config).state_dict(), WeightsHeader(plain_config(config)))
    with pytest.raises(SystemExit, match="other weights"):
        main(["times", *words])
