"""What the package and the command line promise is there, and nothing else is."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hpdm_core
from hpdm_cli.app import COMMANDS, app
from hpdm_core import errors
from tests.support.source_tree import REPOSITORY, modules


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert hpdm_core.__all__ == sorted(hpdm_core.__all__)
    for name in hpdm_core.__all__:
        assert getattr(hpdm_core, name) is not None
    assert dir(hpdm_core) == hpdm_core.__all__


def test_all_equals_what_is_defined() -> None:
    (top,) = [m for m in modules("hpdm_core") if m.name == "hpdm_core"]
    typed = {a.name for n in ast.walk(top.tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    typed -= {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert typed == set(hpdm_core.__all__)
    assert set(hpdm_core._LAZY) <= typed


def test_every_error_is_public_and_has_a_documented_exit_code() -> None:
    tree = {name: c for name, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, errors.HpdmError)}
    assert set(tree) == {n for n in hpdm_core.__all__ if inspect.isclass(getattr(hpdm_core, n))} - {"VideoStore"}
    assert {c.exit_code for c in tree.values()} == {1, 2, 3, 4, 5, 6, 75}


def test_unknown_names_raise_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = hpdm_core.smaple  # type: ignore[attr-defined]


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, hpdm_core; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"


def test_every_command_file_is_registered() -> None:
    files = {m.name for m in modules("hpdm_cli") if m.path.stem.startswith("cmd_")}
    assert {target.partition(":")[0] for target, _ in COMMANDS.values()} == files


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_shows_its_help(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    assert getattr(importlib.import_module(module), attribute)
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: hpdm {name}" in result.stdout or f" {name} " in result.stdout.splitlines()[0]
    assert "--help" in result.stdout
