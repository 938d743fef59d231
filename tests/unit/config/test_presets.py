from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hpdm_core.config import presets
from hpdm_core.config.presets import list_presets, preset_description, preset_path, read_preset
from hpdm_core.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose package data holds two presets, a base and an evaluation protocol."""
    package = tmp_path / "site" / "hpdm_core"
    root = package / "_presets"
    (root / "eval").mkdir(parents=True)
    (root / "alpha.yaml").write_text("# note\nfamily: x\ndescription: the first one\n")
    (root / "beta.yaml").write_text("family: x\n")
    (root / "_base.yaml").write_text("family: x\n")
    (root / "eval" / "fvd.yaml").write_text("n: 1\n")
    monkeypatch.setattr(presets, "_PACKAGE", package)
    return root


def test_only_top_level_files_are_presets(root: Path) -> None:
    assert list_presets() == ["alpha", "beta"]
    assert preset_path("alpha") == root / "alpha.yaml"
    assert read_preset("alpha").startswith("# note\n")
    assert preset_description("alpha") == "the first one"
    assert preset_description("beta") == ""


@pytest.mark.usefixtures("root")
def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no preset is named 'alhpa'; did you mean alpha\?"):
        preset_path("alhpa")
    for name in ("eval/fvd", "../secrets", "zzzzzz", ""):
        with pytest.raises(ConfigError, match="no preset is named"):
            preset_path(name)


def test_an_installation_without_presets_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "_PACKAGE", tmp_path / "hpdm_core")
    with pytest.raises(ConfigError, match="no presets"):
        list_presets()


def test_an_editable_install_reads_the_repository() -> None:
    assert presets.presets_root() == REPOSITORY / "presets"
    assert list_presets() == sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))


def test_a_wheel_carries_the_presets(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    wheel = tmp_path / run.stdout.split()[-1]
    inside = tmp_path / "inside"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(inside)
    shipped = {path.relative_to(REPOSITORY / "presets") for path in (REPOSITORY / "presets").rglob("*.yaml")}
    assert shipped
    assert {p.relative_to(inside / "hpdm_core/_presets") for p in inside.rglob("*.yaml")} == shipped
    code = "from hpdm_core.config import presets as p; print(p.presets_root()); print(*p.list_presets())"
    listed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(inside)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert listed[0] == str(inside / "hpdm_core" / "_presets")
    assert listed[1].split() == list_presets()


def test_the_demo_takes_as_long_as_the_readme_says() -> None:
    time = preset_description("demo").partition(" on ")[0]
    assert f"| `demo`, `hpdm-smoke` | {time} on two cores" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"about {time}, " in read_preset("demo").splitlines()[0]
