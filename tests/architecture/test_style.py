"""What linters do not check: sizes, names, prints, swallowed errors, family names, private words."""

from __future__ import annotations

import ast
import re

from tests.support.source_tree import REPOSITORY, Module, module, package_modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common"}
FAMILY_WORDS = re.compile(r"pvdm|(?<![A-Za-z])mdm|[Pp]vdm|(?<![A-Za-z])Mdm")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".html", ".txt", ".sh", ""}
SHIPPED = ("hpdm_core", "hpdm_cli", "presets", "tests", "docs", "benchmarks", ".ci")


def long_functions(m: Module) -> list[str]:
    """Functions over the limit. A command's signature is its table of options and is not counted."""
    wrong = []
    for f in m.functions():
        first = f.body[0].lineno if m.package == "hpdm_cli" else f.lineno
        lines = (f.end_lineno or first) - first + 1
        if lines > MAX_FUNCTION_LINES:
            wrong.append(f"{m.path}:{f.lineno} {f.name} has {lines} lines")
    return wrong


def swallowed(m: Module) -> list[str]:
    """Handlers that catch everything and neither raise again nor use the error they caught."""
    wrong = []
    for node in ast.walk(m.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
        used = node.name and any(isinstance(n, ast.Name) and n.id == node.name for s in node.body for n in ast.walk(s))
        raises = any(isinstance(n, ast.Raise) for s in node.body for n in ast.walk(s))
        if broad and not (used or raises):
            wrong.append(f"{m.path}:{node.lineno} swallows every error")
    return wrong


def calls(m: Module, name: str) -> list[str]:
    return [
        f"{m.path}:{node.lineno} calls {name}"
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def family_comparisons(m: Module) -> list[str]:
    """Decisions by a family's name."""
    wrong = []
    for node in ast.walk(m.tree):
        if isinstance(node, ast.Compare | ast.Match):
            sides = [node.subject] if isinstance(node, ast.Match) else [node.left, *node.comparators]
            about = any(ast.unparse(s).split(".")[-1] == "family" for s in sides)
            constant = isinstance(node, ast.Match) or any(isinstance(s, ast.Constant) and s.value for s in sides)
            if about and constant:
                wrong.append(f"{m.path}:{node.lineno} decides by a family's name")
    return wrong


def outside_families() -> list[Module]:
    return [m for m in package_modules() if not m.name.startswith("hpdm_core.families")]


def test_files_are_short() -> None:
    long = {str(m.path): len(m.text.splitlines()) for m in package_modules()}
    assert {path: n for path, n in long.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    assert [line for m in package_modules() for line in long_functions(m)] == []


def test_no_file_is_named_after_nothing() -> None:
    assert [m.path for m in package_modules() if m.path.stem in VAGUE] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [m.path for m in package_modules() if m.text.strip() and not ast.get_docstring(m.tree)] == []


def test_the_core_never_prints() -> None:
    assert [line for m in package_modules() if m.package != "hpdm_cli" for line in calls(m, "print")] == []


def test_no_error_is_swallowed() -> None:
    assert [line for m in package_modules() for line in swallowed(m)] == []


def test_nothing_is_unpickled_or_seeded_globally() -> None:
    allowed = {
        "pickle.load": ["hpdm_core.data.isolate"],  # answers of our own child process
        "torch.manual_seed": ["hpdm_core.training.run"],  # weights start from the global generator, forked
    }
    for name in ("pickle.load", "pickle.loads", "torch.manual_seed", "np.random.seed", "random.seed"):
        places = [m for m in package_modules() if calls(m, name)]
        assert [m.name for m in places if m.name not in allowed.get(name, [])] == []
        assert name != "torch.manual_seed" or all("fork_rng" in m.text for m in places)


def test_only_families_and_presets_name_families() -> None:
    wrong = [
        f"{m.path}:{number}: {line.strip()}"
        for m in outside_families()
        for number, line in enumerate(m.text.splitlines(), 1)
        if FAMILY_WORDS.search(line)
    ]
    assert wrong == []
    assert [line for m in outside_families() for line in family_comparisons(m)] == []


def test_no_marks_of_unfinished_work() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|raise NotImplementedError")
    wrong = [
        f"{m.path}:{number}"
        for m in package_modules()
        for number, line in enumerate(m.text.splitlines(), 1)
        if marks.search(line)
    ]
    assert wrong == []


def test_shipped_files_name_no_private_places() -> None:
    # In pieces, so that this file passes its own test.
    words = ("/wo" + "rk/", "/ro" + "ot/", "py" + "pi.org", "npm" + "js", "pythonhosted" + ".org", "sub" + "agent")
    words += tuple("shared/" + name for name in ("specs", "guides", "design", "golden", "hooks"))
    paths = [p for p in REPOSITORY.iterdir() if p.is_file() and p.name != ".git"]
    for folder in SHIPPED:
        paths += [p for p in (REPOSITORY / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    texts = {p: p.read_text(encoding="utf-8") for p in paths if p.suffix in TEXT_SUFFIXES}
    assert len(texts) > 50
    wrong = [f"{p.relative_to(REPOSITORY)}: {w}" for p, text in texts.items() for w in words if w in text]
    assert wrong == []


def test_ci_runs_the_very_commands_of_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    for command in ('pip install -e ".[dev]"', "pytest -n auto"):
        assert f"run {command}\n" in script
        assert command in readme


def test_the_rules_catch_offenders() -> None:
    bad = module(
        "hpdm_core.training.x",
        "def f():\n" + "    x = 1\n" * 60 + "try:\n    print(1)\nexcept Exception:\n    pass\n"
        "try:\n    pass\nexcept Exception as error:\n    log(error)\n"
        "if config.family == 'hpdm': pass\nif family == other: pass\n",
    )
    assert [line.rpartition("x.py")[2] for line in long_functions(bad)] == [":1 f has 61 lines"]
    assert [line.rpartition("x.py")[2] for line in swallowed(bad)] == [":64 swallows every error"]
    assert len(calls(bad, "print")) == 1
    assert len(family_comparisons(bad)) == 1
    assert FAMILY_WORDS.search("a PvdmFamily")
    assert FAMILY_WORDS.search("use mdm")
    assert not FAMILY_WORDS.search("PVDM's autoencoder; cmdmap")
