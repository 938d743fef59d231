"""A stand-in for the model in the box: untrained, tiny, and with all that the real one must have beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from hpdm_core.conditioning.tokenizer import words_of
from hpdm_core.config.load import plain_config
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.families.shipped import EXAMPLE_PROMPTS
from hpdm_core.families.weights import WeightsHeader, save_weights


def make_box(folder: Path) -> Path:
    """Write the weights file and its card into `folder`; returns the file."""
    words = ", ".join(words_of(EXAMPLE_PROMPTS))
    config = load_run_config("hpdm-text-smoke", [f"model.condition.text.words=[{words}]"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        family = build_family(config)
    path = folder / "box.safetensors"
    header = WeightsHeader(plain_config(config), step=4, videos_seen=16, store_fingerprint="0123456789abcdef", fps=8.0)
    save_weights(path, {name: t.bfloat16() for name, t in family.state_dict().items()}, header)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".md").write_text(
        f"# box\n\nsha256 `{digest}`, data fingerprint `{header.store_fingerprint}`, 0 GPU-minutes.\n\n"
        "## Recipe\n\n## Vocabulary\n\n## Limits\n"
    )
    return path
