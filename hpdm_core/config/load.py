"""From a preset, file or header to a checked RunConfig, and back to text.

Every problem of a config is reported at once, each with the file, line and key it stands at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, create_model

from hpdm_core.config.document import (
    Document,
    dump_document,
    parse_value,
    read_document,
)
from hpdm_core.config.explain import child_annotation, nearest_key, problems_of
from hpdm_core.config.presets import preset_path
from hpdm_core.config.schema import ModelSection, RunConfig, SampleSection
from hpdm_core.errors import ConfigError

Sections = Callable[[str], tuple[type[ModelSection], type[SampleSection]]]
"""Family name to the classes of its `model` and `sample` sections; ConfigError if unknown."""

Target = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Family name and `model` section, not validated yet, to the keys of the section to change."""


def load_config(
    source: str | Path, overrides: Sequence[str], sections: Sections, target: Target | None = None
) -> RunConfig:
    """Read preset or YAML file `source`, lay `a.b=c` overrides and then `target` over it and validate everything.

    A bare word is a preset; a Path, and text with a slash or a .yaml suffix, is a path. A file may say
    `extends: <preset or path relative to itself>`: its mappings merge into the parent's, its lists and
    values replace them. Raises ConfigError listing every problem.
    """
    document = _read_chain(source if isinstance(source, Path) else _locate(source, Path()), ())
    schema = _schema(document, sections)
    for override in overrides:
        document = document.merge(_override(override, schema))
    if target is not None and isinstance(document.data.get("model"), Mapping):
        changes = dict(target(document.data["family"], document.data["model"]))
        document = document.merge(
            Document({"model": changes}, {("model", key): "--res and --frames" for key in changes})
        )
    return _validate(document, sections)


def parse_config(raw: Mapping[str, Any], sections: Sections, where: str) -> RunConfig:
    """Validate a config given as plain data, as in a weights file's header; `where` names it in messages."""
    return _validate(Document(dict(raw), {(): where}), sections)


def plain_config(config: RunConfig) -> dict[str, Any]:
    """`config` as JSON-ready data that `parse_config` turns back into an equal config."""
    return config.model_dump(mode="json")


def dump_config(config: RunConfig) -> str:
    """`config` as YAML text that `load_config` turns back into an equal config."""
    return dump_document(plain_config(config))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _locate(source: str, folder: Path) -> Path:
    """The file meant by `source`; relative paths start at `folder`."""
    is_path = "/" in source or "\\" in source or source.endswith((".yaml", ".yml"))
    return folder / Path(source).expanduser() if is_path else preset_path(source)


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Document:
    """The document at `path` laid over the one it extends."""
    document = read_document(path)
    parent = document.data.pop("extends", None)
    if parent is None:
        return document
    mark = document.where(("extends",))
    seen = (*seen, path.resolve())
    if not isinstance(parent, str):
        raise ConfigError(f"{mark}: key extends: expected the name of one preset, found {parent!r}")
    try:
        above = _locate(parent, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{mark}: key extends: {error}", hint=error.hint) from error
    if above.resolve() in seen:
        chain = " -> ".join(p.stem for p in (*seen, above))
        raise ConfigError(f"{mark}: key extends: the presets extend each other in a circle: {chain}")
    return _read_chain(above, seen).merge(document)


def _schema(document: Document, sections: Sections) -> type[RunConfig]:
    """RunConfig with the section classes of the document's family in place."""
    family, where = document.data.get("family"), document.where(("family",))
    if family is None:
        hint = "add `family: NAME`, or `extends: PRESET` to start from one (`hpdm presets list`)"
        raise ConfigError(f"{where}: key family is missing", hint=hint)
    if not isinstance(family, str):
        raise ConfigError(f"{where}: key family: expected a name, found {family!r}")
    try:
        model, sample = sections(family)
    except ConfigError as error:
        raise ConfigError(f"{where}: key family: {error}", hint=error.hint) from error
    return create_model("RunConfig", __base__=RunConfig, model=(model, ...), sample=(sample, ...))


def _override(text: str, schema: type[RunConfig]) -> Document:
    """`a.b=c` as a document that holds only that key, its value typed by the key's field."""
    where = f"--set {text}"
    name, equals, value_text = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{where}: expected key=value", hint="for example --set train.optimizer.lr=1e-4")
    annotation: Any = schema
    for depth, key in enumerate(keys):
        annotation = child_annotation(annotation, key)
        if annotation is None:
            raise ConfigError(f"{where}: {nearest_key(schema, keys[: depth + 1])}")
    value = _typed(value_text.strip(), annotation)
    for key in reversed(keys):
        value = {key: value}
    return Document(value, {keys[: i + 1]: where for i in range(len(keys))})


def _typed(text: str, annotation: Any) -> Any:
    """The reading of `text` that `annotation` accepts: as YAML, else as the text itself."""
    parsed = parse_value(text)
    adapter = TypeAdapter(annotation)
    for candidate in (parsed, text):
        try:
            adapter.validate_json(json.dumps(candidate), strict=True)
        except ValidationError:
            continue
        return candidate
    return parsed


def _validate(document: Document, sections: Sections) -> RunConfig:
    """The config that `document` describes; ConfigError lists everything that is wrong with it."""
    schema = _schema(document, sections)
    problems = list(document.problems)
    checked: RunConfig | None = None
    try:
        # JSON mode is strict about types and still takes a list for a tuple and 1 for 1.0.
        checked = schema.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems += problems_of(error, schema, document)
    if len(problems) == 1:
        raise ConfigError(problems[0], hint=_HINT)
    if checked is None or problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} problems in the config:{lines}", hint=_HINT)
    return RunConfig(**{name: getattr(checked, name) for name in RunConfig.model_fields})


_HINT = "`hpdm presets show NAME --resolved` prints a valid config with every key"
