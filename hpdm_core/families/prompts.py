"""Prompts for sampling: which seed shows which text, files of prompts, and what a model will not take in of one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpdm_core.conditioning.text import TextTokens
from hpdm_core.errors import ConfigError
from hpdm_core.families import shipped
from hpdm_core.families.weights import LoadedModel

Prompts = Sequence[str] | Mapping[int, str]
"""Texts, of which seed k takes number k mod n; or the text of each seed."""

EXAMPLES = 8


def read_prompts(path: Path) -> Prompts:
    """The prompts of a text file, one per line; or of a .jsonl file of objects with `prompt`, and `seed` or `seeds`.

    Either every object of a file says its seeds or none does. Raises ConfigError with the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read prompts from {path}: {error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{path} holds no prompts", hint="write one per line")
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return [line for _, line in numbered]
    rows = [_row(path, number, line) for number, line in numbered]
    texts: list[str] = [row["prompt"] for row in rows]
    seeds = [_seeds(path, number, row) for (number, _), row in zip(numbered, rows, strict=True)]
    if not any(seeds):
        return texts
    if not all(seeds):
        raise ConfigError(f"some lines of {path} have seeds and some have none", hint="give every line a seed, or none")
    by_seed: dict[int, str] = {}
    for text, own in zip(texts, seeds, strict=True):
        for seed in own:
            if seed in by_seed:
                raise ConfigError(f"{path} gives seed {seed} twice", hint="a seed makes one video; name it once")
            by_seed[seed] = text
    return by_seed


def prompts_of(model: LoadedModel, seeds: Sequence[int], prompts: Prompts) -> list[str] | None:
    """The prompt of each seed; None without prompts.

    Raises ConfigError for prompts that the model does not read, with what it is told instead.
    """
    if not prompts:
        return None
    if text_tokens(model) is None:
        raise ConfigError("this model is not conditioned on text", hint=_told_instead(model))
    if isinstance(prompts, Mapping):
        missing = [seed for seed in seeds if seed not in prompts]
        if missing:
            raise ConfigError(f"seed {missing[0]} has no prompt", hint="sample the seeds that the prompts name")
        return [prompts[seed] for seed in seeds]
    return [prompts[seed % len(prompts)] for seed in seeds]


def prompt_notes(model: LoadedModel, texts: Sequence[str]) -> list[str]:
    """What the model will leave out of `texts`: in one note all words that it was never told, and what is too long."""
    told = text_tokens(model)
    if told is None:
        return []
    read = {text: told.read(text) for text in dict.fromkeys(texts)}
    strange = [text for text, prompt in read.items() if prompt.unknown]
    notes = []
    if strange:
        unknown = list(dict.fromkeys(word for text in strange for word in read[text].unknown))
        others = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        words = _words_instead(unknown, told.encoder.vocabulary.words or ())
        notes.append(
            f"{strange[0]!r}{others}: the model has never met {', '.join(unknown)}, and leaves it out; {words}"
            + (f"; prompts that work: {_quoted(shipped.EXAMPLE_PROMPTS)}" if shipped.is_shipped(model.path) else "")
        )
    cut = {text: prompt.cut for text, prompt in read.items() if prompt.cut}
    return notes + [f"{t!r} is longer than the model reads; it leaves out the end: {end!r}" for t, end in cut.items()]


def text_tokens(model: LoadedModel) -> TextTokens | None:
    """The part of the model that reads text, if it has one."""
    told = getattr(model.family, "text", None)
    return told if isinstance(told, TextTokens) else None


def _words_instead(unknown: Sequence[str], vocabulary: Collection[str]) -> str:
    """How many words the model knows, with examples: those like the unknown ones first."""
    known = sorted(word for word in vocabulary if len(word) > 1)
    near = [found for word in unknown for found in difflib.get_close_matches(word, known, n=2, cutoff=0.7)]
    return f"it knows {len(known)} words, for example {', '.join(list(dict.fromkeys([*near, *known]))[:EXAMPLES])}"


def _quoted(prompts: Sequence[str]) -> str:
    return ", ".join(f'"{prompt}"' for prompt in prompts)


def _told_instead(model: LoadedModel) -> str:
    classes = model.header.classes
    if not classes or getattr(model.config.model, "condition", None) is None:
        return "leave --prompt away"
    return f"it is told a class: --class {classes[0]!r}" + (f", {classes[1]!r}, …" if len(classes) > 1 else "")


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {number}: not JSON: {error.msg}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ConfigError(f"{path}, line {number}: no prompt", hint='write {"prompt": "a red star", "seed": 3}')
    strange = sorted(row.keys() - {"prompt", "seed", "seeds"})
    if strange:
        raise ConfigError(f"{path}, line {number}: unknown key {strange[0]}", hint="the keys are prompt, seed, seeds")
    return row


def _seeds(path: Path, number: int, row: dict[str, Any]) -> list[int]:
    """The seeds of one line: `seed: 3`, `seeds: [3, 4]`, or none."""
    found = row.get("seeds", [row["seed"]] if "seed" in row else [])
    if not isinstance(found, list) or not all(type(seed) is int and seed >= 0 for seed in found):
        raise ConfigError(f"{path}, line {number}: seeds are whole numbers from 0 on", hint='for example "seeds": [3]')
    return found
