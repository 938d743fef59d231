"""The repository's source as data: what the architecture tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Import:
    """One imported module. `deferred`: inside a function; `for_types`: only under TYPE_CHECKING."""

    target: str
    line: int
    deferred: bool
    for_types: bool


@dataclass(frozen=True)
class Module:
    """One Python file. `name` is its dotted name, `path` is relative to the repository."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        """`hpdm_core.data` for anything below it, `hpdm_core.rng` for a module at the top, `hpdm_cli` for that."""
        parts = self.name.split(".")
        return parts[0] if parts[0] == "hpdm_cli" else ".".join(parts[:2])

    def imports(self) -> list[Import]:
        """Every import statement; `from hpdm_core.a import b` targets `hpdm_core.a.b` where that is a module."""
        found: list[Import] = []
        _collect(self.tree, found, deferred=False, for_types=False)
        return found

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def _collect(node: ast.AST, found: list[Import], *, deferred: bool, for_types: bool) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [Import(alias.name, child.lineno, deferred, for_types) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            names = [f"{base}.{alias.name}" for alias in child.names]
            targets = {name if _is_module(name) else base for name in names}
            found += [Import(target, child.lineno, deferred, for_types) for target in sorted(targets)]
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            _collect(child, found, deferred=deferred or inside, for_types=for_types or typing)


def _is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return name.startswith("hpdm_") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def module(name: str, text: str) -> Module:
    """A module that exists only in a test."""
    return Module(name, Path(*name.split(".")).with_suffix(".py"), text)


@cache
def modules(*tops: str) -> tuple[Module, ...]:
    """Every Python module below the top-level packages `tops`, sorted by name."""
    found = []
    for top in tops:
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            relative = path.relative_to(REPOSITORY)
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, relative, path.read_text(encoding="utf-8")))
    return tuple(found)


def package_modules() -> tuple[Module, ...]:
    """Every module that ships."""
    return modules("hpdm_core", "hpdm_cli")
