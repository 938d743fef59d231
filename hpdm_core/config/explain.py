"""Validation errors in the words of someone who edits a YAML file: place, key, expected, found."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from hpdm_core.config.document import Document, KeyPath, dotted

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list such as [1, 2]",
    "list_type": "a list such as [1, 2]",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "none_required": "null",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "literal_error": "{expected}",
    "union_tag_invalid": "{discriminator} to be {expected_tags}",
    "union_tag_not_found": "a section with the key {discriminator}",
    "string_pattern_mismatch": "text of the form {pattern}",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
}


def problems_of(error: ValidationError, schema: type[BaseModel], document: Document) -> list[str]:
    """One line per wrong key: `file:line: key a.b: what is wrong`."""
    grouped: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        if item["type"] == "too_short" and _is_long_enough(item):
            continue
        loc = _untagged(item["loc"], document.data)
        known = _present(loc, document.data)
        # What follows the data's own keys names a branch of a union, or the one key that is missing.
        path = loc[: len(known) + 1] if item["type"] == "missing" else known
        grouped.setdefault(path, []).append(item)
    return [_line(path, items, schema, document) for path, items in grouped.items()]


def _is_long_enough(item: Any) -> bool:
    """Whether a list is called too short only because its wrong items, each an error of its own, were not counted."""
    return isinstance(item["input"], list) and len(item["input"]) >= item["ctx"]["min_length"]


def _present(loc: KeyPath, data: Any) -> KeyPath:
    """The longest beginning of `loc` that leads somewhere in `data`."""
    for depth, key in enumerate(loc):
        children: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if not isinstance(children, Mapping) or key not in children:
            return loc[:depth]
        data = children[key]
    return loc


def _untagged(loc: KeyPath, data: Any) -> KeyPath:
    """`loc` without the tags of discriminated unions: there a value of the section, say its mode, follows its key."""
    keys: list[Any] = []
    for key in loc:
        if isinstance(data, Mapping) and key not in data and key in data.values():
            continue
        keys.append(key)
        children: Any = dict(enumerate(data)) if isinstance(data, list) else data
        data = children.get(key) if isinstance(children, Mapping) else None
    return tuple(keys)


def _line(path: KeyPath, items: list[Any], schema: type[BaseModel], document: Document) -> str:
    """The report of everything that is wrong at `path`."""
    where = document.where(path)
    place = f"{where}: " if where else ""
    kinds = {item["type"] for item in items}
    if kinds == {"extra_forbidden"}:
        return f"{place}{nearest_key(schema, path)}"
    if kinds == {"missing"}:
        return f"{place}key {dotted(path)} is missing"
    subject = f"key {dotted(path)}: " if path else ""
    expected = [_expected(item, path) for item in items]
    if None in expected:
        # A rule of ours between several keys, or a kind of error that needs no translation.
        first = items[expected.index(None)]
        return f"{place}{subject}{first['msg'].removeprefix('Value error, ')}"
    choices = " or ".join(dict.fromkeys(text for text in expected if text))
    found = next((i["input"] for i in items if not _is_item(i, path)), document.value(path))
    return f"{place}{subject}expected {choices}, found {_found(found)}{_advice(found, items)}"


def _is_item(item: Any, path: KeyPath) -> bool:
    """Whether the error is about an item of a list at `path`, reached through a branch of a union."""
    return len(item["loc"]) > len(path) and isinstance(item["loc"][-1], int)


def _expected(item: Any, path: KeyPath) -> str | None:
    """What was expected instead, None if the error is not of that sort."""
    template = _EXPECTED.get(item["type"])
    if template is None:
        return None
    text = template.format(**item.get("ctx", {}))
    return f"a list whose every item is {text}" if _is_item(item, path) else text


def _found(value: Any) -> str:
    """A value as its YAML author would recognise it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"text {value!r}"
    if isinstance(value, Mapping):
        return "a section"
    return str(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."


def _advice(value: Any, items: list[Any]) -> str:
    """A remedy for the usual slips, empty if none fits."""
    kinds = {item["type"] for item in items}
    if not isinstance(value, str):
        return ""
    if "bool_type" in kinds and value.lower() in {"yes", "no", "on", "off", "y", "n"}:
        return f"; write {'true' if value.lower() in {'yes', 'on', 'y'} else 'false'}"
    if kinds & {"int_type", "float_type"} and (number := _number(value)) is not None:
        return "; remove the quotes or the leading zero" if math.isfinite(number) else "; it must be a finite number"
    if kinds == {"literal_error"}:
        options = items[0]["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        near = get_close_matches(value, options, n=1)
        return f"; did you mean {near[0]}?" if near else ""
    return ""


def _number(text: str) -> float | None:
    """The number that `text` spells, None if it spells none."""
    try:
        return float(text)
    except ValueError:
        return None


def nearest_key(schema: type[BaseModel], path: KeyPath) -> str:
    """The sentence about unknown key `path`: the nearest valid one, or the ones of its section."""
    siblings = _fields(schema, path[:-1])
    parent, last = path[:-1], str(path[-1])
    near = get_close_matches(last, siblings, n=1)
    every = {dotted(p): p for p in _all_keys(schema)}
    elsewhere = [name for name, p in every.items() if p[-1] == last]
    if last in siblings:
        suggestion = f"it belongs to another kind of {dotted(parent)}"
    elif parent and not siblings:
        suggestion = f"{dotted(parent)} takes a value, not keys"
    elif near:
        suggestion = f"did you mean {dotted((*parent, near[0]))}?"
    elif elsewhere:
        suggestion = f"did you mean {elsewhere[0]}?"
    elif closest := get_close_matches(dotted(path), every, n=1, cutoff=0.8):
        suggestion = f"did you mean {closest[0]}?"
    else:
        suggestion = f"{dotted(parent) or 'the top'} knows {', '.join(siblings)}"
    return f"key {dotted(path)}: unknown key; {suggestion}"


def child_annotation(annotation: Any, key: str | int) -> Any:
    """The type of `key` inside a value of type `annotation`, None if it cannot hold one."""
    for option in _options(annotation):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if isinstance(option, type) and issubclass(option, BaseModel) and key in option.model_fields:
            return option.model_fields[str(key)].annotation
        if origin in (dict, Mapping) and isinstance(key, str):
            return args[1]
        if origin in (list, tuple) and isinstance(key, int) and args:
            return args[key] if key < len(args) and args[-1] is not Ellipsis else args[0]
    return None


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, metadata removed; a plain type is its only member."""
    if typing.get_origin(annotation) is Annotated:
        yield from _options(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from _options(option)
    else:
        yield annotation


def _fields(schema: Any, path: KeyPath) -> list[str]:
    """The keys of the section at `path`."""
    for key in path:
        schema = child_annotation(schema, key)
    return [
        name
        for option in _options(schema)
        if isinstance(option, type) and issubclass(option, BaseModel)
        for name in option.model_fields
    ]


def _all_keys(schema: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path that the schema names."""
    for name in _fields(schema, ()):
        yield (*path, name)
        yield from _all_keys(child_annotation(schema, name), (*path, name))
