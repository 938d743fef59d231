"""`hpdm demo --quick` from nothing to its page, and what it promises on it."""

from __future__ import annotations

import re
import shlex
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hpdm_cli.app import app
from hpdm_core.families import shipped
from tests.support.box import make_box


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the quick demo has run, under a name that HTML must escape."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(shipped, "SHIPPED_MODEL", make_box(folder))
        result = demo()
    assert result.exit_code == 0, result.output
    assert result.stderr.index("[first] Sample a video from the model in the box") < result.stderr.index("[1/3] ")
    assert Path(result.stdout.splitlines()[-1]) == (folder / "a&<b>" / "index.html").resolve()
    assert "[2/3] Train a model on them" in result.stderr
    assert '"what": "train", "done": 4' in result.stderr
    return folder


@pytest.fixture(autouse=True)
def boxed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for the model in the box, in every test."""
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", folder / "box.safetensors")


def demo(*args: str) -> Result:
    return CliRunner().invoke(app, ["demo", "--quick", "--out", "a&<b>", *args])


def page_of(folder: Path) -> str:
    return (folder / "a&<b>" / "index.html").read_text(encoding="utf-8")


def stamps(folder: Path) -> dict[Path, int]:
    kept = [p for p in folder.rglob("*") if p.suffix in (".npz", ".npy", ".safetensors")]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    page = page_of(folder)
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "url(" not in page


def test_the_page_has_every_section_filled(folder: Path) -> None:
    page = page_of(folder)
    assert page.index('<section id="box">') < page.index('<section id="made">')
    assert f"{shipped.EXAMPLE_PROMPTS[0]} · seed 0" in page
    for anchor in ("made", "levels", "growth", "loss", "again", "config"):
        assert f'<section id="{anchor}">' in page
    assert 'class="empty"' not in page
    assert page.count("<svg") == 2
    assert ">level 2</text>" in page
    assert "after 4 steps" in page
    assert "2 frames, 8×8" in page
    assert page.count("<p>made</p>") == page.count("<p>real</p>") == 2


def test_paths_are_escaped(folder: Path) -> None:
    page = page_of(folder)
    assert "a&<b>" not in page
    assert "a&amp;&lt;b&gt;/run" in page


def test_the_printed_commands_are_the_ones_that_ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed again, they find their own work finished and change nothing."""
    monkeypatch.chdir(folder)
    again = page_of(folder).split("What next")[0]
    lines = [unescape(text) for text in re.findall(r'<pre class="command"><code>([^<]*)</code>', again)]
    assert [shlex.split(line)[1] for line in lines] == ["sample", "prepare-data", "train", *["sample"] * 3]
    before = stamps(folder)
    assert len(before) > 10
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert stamps(folder) == before


def test_the_same_command_again_keeps_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before, page = stamps(folder), page_of(folder)
    assert demo().exit_code == 0
    assert stamps(folder) == before
    assert page_of(folder) == page


def test_being_stopped_by_its_own_clock_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of one second stops a longer training cleanly, and the page shows what there is.

    Without a model in the box, too: then the demo begins with the clips.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr(shipped, "SHIPPED_MODEL", folder / "none.safetensors")
    result = CliRunner().invoke(app, ["demo", "--quick", "--out", "short", "--seconds", "1", "--steps", "100000"])
    assert result.exit_code == 0, result.output
    assert "the same command again trains on" in result.stderr
    assert result.stderr.splitlines()[1].startswith("[1/3] ")
    assert '<section id="box">' not in (folder / "short" / "index.html").read_text(encoding="utf-8")


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x")]).exit_code == 2
