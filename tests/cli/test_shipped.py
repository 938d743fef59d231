"""The model in the box: what its file must be, how `hpdm sample` takes it, and what is said where there is none."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hpdm_cli import cmd_sample
from hpdm_cli.app import app
from hpdm_core import load_model, sample
from hpdm_core.conditioning.tokenizer import words_of
from hpdm_core.data.scenes import captions_of, draw_scene
from hpdm_core.data.write import read_npz
from hpdm_core.families import shipped
from hpdm_core.families.prompts import prompt_notes
from hpdm_core.families.settings import fast_options, load_table
from tests.support.box import make_box

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "hpdm_core/models"
MOST_BYTES = 20_000_000


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in's weights file."""
    return make_box(tmp_path_factory.mktemp("box"))


@pytest.fixture
def boxed(box: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, put where the package looks for its model."""
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", box)
    return box


@pytest.fixture
def boxless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version without a model, whatever this one has."""
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", tmp_path / "none.safetensors")


def hpdm(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def faults(path: Path) -> list[str]:
    """What keeps the file `path` from being shipped."""
    found = []
    if path.stat().st_size > MOST_BYTES:
        found.append(f"{path.stat().st_size} bytes")
    card = path.with_suffix(".md").read_text(encoding="utf-8") if path.with_suffix(".md").is_file() else ""
    model = load_model(path)
    needed = [hashlib.sha256(path.read_bytes()).hexdigest(), model.header.store_fingerprint or "a fingerprint",
              "GPU-minutes", "## Recipe", "## Vocabulary", "## Limits"]  # fmt: skip
    found += [f"the card lacks {text}" for text in needed if text not in card]
    found += prompt_notes(model, shipped.EXAMPLE_PROMPTS)
    options = {**fast_options(model), "level": 0}
    one, two = (
        sample(model, num=1, prompts=[p], device="cpu", **options)[0].video for p in shipped.EXAMPLE_PROMPTS[:2]
    )
    if one.std() == 0 or np.array_equal(one, two):
        found.append("prompts change nothing")
    return found


def test_what_is_shipped_is_all_that_it_must_be(box: Path) -> None:
    """Of the real files too, where this version has any."""
    for path in (box, *sorted(MODELS.glob("*.safetensors"))):
        assert faults(path) == []
    assert {p.stem for p in MODELS.glob("*.md")} == {p.stem for p in MODELS.glob("*.safetensors")}
    assert shipped.SHIPPED_MODEL.parent == MODELS
    assert shipped.has_shipped_model() == any(MODELS.glob("*.safetensors"))


def test_settings_for_a_budget_are_of_a_shipped_model_and_of_one_tiling() -> None:
    """A Fréchet distance does not see seams, so that among tilings it would choose the one without overlap."""
    tables = [*(REPOSITORY / "presets/sampling").glob("*.json")]
    shas = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in MODELS.glob("*.safetensors")}
    assert {path.stem for path in tables} == {sha[:16] for sha in shas}
    for path in shas.values():
        table = load_table(load_model(path))
        assert set(table.times) == {"cpu", "cuda"}
        assert len({str({k: v for k, v in row.options.items() if k != "steps"}) for row in table.rows}) == 1


def test_a_file_that_must_not_be_shipped_is_noticed(box: Path, tmp_path: Path) -> None:
    path = tmp_path / "box.safetensors"
    path.write_bytes(box.read_bytes())
    assert any("the card lacks" in fault for fault in faults(path))
    card = box.with_suffix(".md").read_text(encoding="utf-8")
    path.with_suffix(".md").write_text(card.replace("GPU-minutes", "minutes"))
    assert faults(path) == ["the card lacks GPU-minutes"]


def test_a_wheel_carries_the_model_and_its_card(box: Path, tmp_path: Path) -> None:
    """Built from a copy of what says how to build, with the stand-in in its place."""
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    kept = ["pyproject.toml", "README.md", "LICENSE", ".gitignore", "hpdm_core/version.py", "hpdm_cli/__init__.py",
            "presets/demo.yaml"]  # fmt: skip
    for name in kept:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    (source / "hpdm_core/models").mkdir()
    for path in (box, box.with_suffix(".md")):
        (source / "hpdm_core/models" / path.name).write_bytes(path.read_bytes())
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(tmp_path / run.stdout.split()[-1]) as wheel:
        assert wheel.read("hpdm_core/models/box.safetensors") == box.read_bytes()
        assert "hpdm_core/models/box.md" in wheel.namelist()
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "hpdm_core" in packages["packages"]


def test_sampling_without_a_checkpoint_takes_it_and_says_so(boxed: Path, tmp_path: Path) -> None:
    words = ["sample", "--level", "0", "--fast", "--format", "npz", "--device", "cpu"]
    result = hpdm(*words, "--prompt", shipped.EXAMPLE_PROMPTS[0], "--out", str(tmp_path / "a"))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("the model in the box, box: procedural shapes") == 1
    assert "never met" not in result.stderr
    model = load_model()
    made = sample(model, num=1, prompts=shipped.EXAMPLE_PROMPTS, device="cpu", level=0, **fast_options(model))[0].video
    assert np.array_equal(read_npz(tmp_path / "a/seed_000000.npz")[0], made)
    result = hpdm(*words, "--dry-run", "--out", str(tmp_path / "b"))
    assert f'try --prompt "{shipped.EXAMPLE_PROMPTS[0]}"' in result.stderr
    result = hpdm(*words, "--ckpt", str(boxed), "--dry-run", "--out", str(tmp_path / "b"))
    assert "in the box" not in result.stderr


def test_words_that_it_does_not_know_give_one_warning_with_prompts_that_work(
    boxed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model()
    (note,) = prompt_notes(model, ["a dragon bounces", "a red star", "a horse", "a green dragon"])
    assert note.startswith("'a dragon bounces' and 2 more: the model has never met dragon, horse, ")
    assert all(f'"{prompt}"' in note for prompt in shipped.EXAMPLE_PROMPTS)
    sample(model, num=1, prompts=["a dragon bounces"], device="cpu", level=0, **fast_options(model))
    assert len(caplog.records) == 1
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(boxed.read_bytes())
    (note,) = prompt_notes(load_model(copy), ["a dragon bounces"])
    assert "prompts that work" not in note


def test_example_prompts_are_of_words_and_pairs_that_training_shows() -> None:
    scenes = [draw_scene(0, index) for index in range(3000)]
    known = set(words_of(caption for i, scene in enumerate(scenes) for caption in captions_of(scene, 0, i)))
    assert set(words_of(shipped.EXAMPLE_PROMPTS)) <= known


def test_help_mentions_it_where_it_is(boxed: Path) -> None:
    assert "the model in the box, box" in cmd_sample.ckpt_help()


@pytest.mark.usefixtures("boxless")
def test_without_it_sampling_says_how_to_get_a_model(tmp_path: Path) -> None:
    assert cmd_sample.ckpt_help() == "A run directory or weights file."
    result = hpdm("sample", "--prompt", "a red star", "--res", "288x512", "--out", str(tmp_path / "out"))
    assert result.exit_code == 4
    assert "hpdm demo" in result.stderr
    assert not (tmp_path / "out").exists()
