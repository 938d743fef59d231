"""Imports point one way: each layer reads only the layers before it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest

from tests.support.source_tree import REPOSITORY, Import, Module, module, package_modules

LAYERS = (
    ("errors", "rng", "video", "version", "config"),
    ("pyramid", "nn", "diffusion", "conditioning", "data"),
    ("sampling", "families", "metrics"),
    ("training",),
    ("report",),
)
LEVEL = {f"hpdm_core.{name}": depth for depth, names in enumerate(LAYERS) for name in names}
LEVEL |= {"hpdm_cli": len(LAYERS)}

FOUNDATION_WITHOUT_TORCH = ("hpdm_core.errors", "hpdm_core.version", "hpdm_core.config")
BANNED_IN_CORE = {"typer", "rich", "click", "hpdm_cli"}
DEFERRED = {
    "decord": {"hpdm_core.data.backends"},
    "av": {"hpdm_core.data.backends", "hpdm_core.data.decode", "hpdm_core.data.write"},
    "open_clip": {"hpdm_core.conditioning.clip"},
    "torch.utils.tensorboard": {"hpdm_core.training.hooks"},
    "ray": {"hpdm_core.data.ray"},
    "scipy": None,
}
"""Third parties that only functions import, and the modules that may (None: any)."""


def internal(imports: Iterable[Import]) -> list[Import]:
    return [i for i in imports if i.target.startswith(("hpdm_core", "hpdm_cli"))]


def package_of(target: str) -> str:
    return "hpdm_cli" if target.startswith("hpdm_cli") else ".".join(target.split(".")[:2])


def upward(m: Module) -> list[str]:
    """Imports of `m` that point to a later layer, or to the public names of the package it is part of."""
    if m.name == "hpdm_core":
        return []
    wrong = []
    for i in internal(m.imports()):
        above = i.target == "hpdm_core" or LEVEL[package_of(i.target)] > LEVEL[m.package]
        sideways = m.package == "hpdm_core.sampling" and package_of(i.target) == "hpdm_core.families"
        if (above and m.package != "hpdm_cli") or sideways:
            wrong.append(f"{m.path}:{i.line} imports {i.target}")
    return wrong


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of the graph, empty if there is none."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for child in sorted(graph.get(node, ())):
            if found := visit(child, [*trail, node]):
                return found
        done.add(node)
        return []

    for node in sorted(graph):
        if found := visit(node, []):
            return found
    return []


def not_deferred(m: Module) -> list[str]:
    """Imports of heavy third parties at the top of `m`, or in a module that has no business with them."""
    wrong = []
    for i in m.imports():
        name = next((d for d in DEFERRED if i.target == d or i.target.startswith(d + ".")), None)
        if name is None or i.for_types:
            continue
        allowed = DEFERRED[name]
        if not i.deferred or (allowed is not None and m.name not in allowed):
            wrong.append(f"{m.path}:{i.line} imports {i.target}")
    return wrong


def test_every_module_belongs_to_a_layer() -> None:
    assert {m.package for m in package_modules()} - {"hpdm_core"} <= set(LEVEL)


def test_imports_point_to_earlier_layers() -> None:
    assert [line for m in package_modules() for line in upward(m)] == []


def test_packages_of_a_layer_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for m in package_modules():
        if m.name != "hpdm_core":
            targets = {package_of(i.target) for i in internal(m.imports())}
            graph.setdefault(m.package, set()).update(targets - {m.package})
    assert circle(graph) == []


def test_modules_form_no_circle() -> None:
    graph = {m.name: {i.target for i in internal(m.imports()) if not i.for_types} for m in package_modules()}
    assert circle(graph) == []


def test_the_core_knows_no_command_line() -> None:
    wrong = [
        f"{m.path}:{i.line} imports {i.target}"
        for m in package_modules()
        if m.package != "hpdm_cli"
        for i in m.imports()
        if i.target.split(".")[0] in BANNED_IN_CORE
    ]
    assert wrong == []


def test_heavy_third_parties_are_imported_where_they_are_used() -> None:
    assert [line for m in package_modules() for line in not_deferred(m)] == []


def test_imports_are_absolute() -> None:
    assert [m.path for m in package_modules() for i in m.imports() if i.target.startswith(".")] == []


def test_importing_everything_loads_no_optional_package() -> None:
    names = [m.name for m in package_modules() if m.package != "hpdm_cli"]
    optional = sorted({*DEFERRED, *BANNED_IN_CORE})
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {optional!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("name", FOUNDATION_WITHOUT_TORCH)
def test_configs_are_read_without_torch(name: str) -> None:
    names = [m.name for m in package_modules() if m.name == name or m.name.startswith(name + ".")]
    assert names
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_the_rules_catch_offenders() -> None:
    bad = module(
        "hpdm_core.sampling.x",
        "import decord\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import av\n"
        "from hpdm_core import sample\nimport hpdm_core.training\n"
        "def f():\n    from hpdm_core.families import registry\n    import open_clip, scipy\n",
    )
    assert [line.rpartition(":")[2] for line in upward(bad)] == [
        "5 imports hpdm_core",
        "6 imports hpdm_core.training",
        "8 imports hpdm_core.families.registry",
    ]
    assert [line.split()[-1] for line in not_deferred(bad)] == ["decord", "open_clip"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
