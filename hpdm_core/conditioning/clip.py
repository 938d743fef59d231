"""The door to open_clip: its import, its text towers, weights that are what they claim to be.

open_clip forgives much in silence: without weights a tower stays random, a file whose activation differs from the
architecture's loads, a tag is downloaded. Here each of these is an error with a remedy.

Shapes: B prompts, M tokens of a prompt, W width of their states, E width of the pooled vector.
"""

from __future__ import annotations

import difflib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hpdm_core.config.schema import FrozenText
from hpdm_core.errors import ConfigError, EnvironmentProblem, IncompatibleCheckpoint, WeightsMissing
from hpdm_core.nn.tensor_files import file_sha256, read_plain_tensors

_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
"""Entries beside the tensors that only OpenAI's own files have; those networks were trained with QuickGELU."""


class TextStates(NamedTuple):
    """What a text encoder says about prompts. mask: True where there is a token; pooled: None if it makes none."""

    tokens_BMW: Tensor
    mask_BM: Tensor
    pooled_BE: Tensor | None = None


class TowerShape(NamedTuple):
    """Widths of the token states and of the pooled vector, tokens of a prompt, number of layers."""

    width: int
    pooled_width: int
    context_length: int
    layers: int


def import_open_clip() -> Any:
    """The open_clip package. Raises EnvironmentProblem where it cannot be imported."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"open_clip cannot be imported: {error}", hint="install torchvision from the same index as torch"
        ) from error
    return open_clip


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load `tensors` into `network`, every one of them. Raises IncompatibleCheckpoint if any is missing or left."""
    try:
        missing, unexpected = network.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:  # what torch raises for tensors of other shapes
        detail = str(error).splitlines()[-1].strip()
        raise IncompatibleCheckpoint(f"{path} is not {what}: {detail}", hint=_OTHER_FILE) from error
    if missing or unexpected:
        raise IncompatibleCheckpoint(
            f"{path} is not {what}: missing {missing[:2]}, unexpected {unexpected[:2]}", hint=_OTHER_FILE
        )


_OTHER_FILE = "the file and the architecture must belong together; `hpdm weights list` names what CLIPSIM reads"


def without_marks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the numbers that OpenAI's files hold beside them."""
    return {key: value for key, value in tensors.items() if key not in _OPENAI_MARKS}


def tower_config(arch: str) -> dict[str, Any]:
    """open_clip's description of architecture `arch`.

    Raises ConfigError for a name that open_clip does not know, and for text towers that would have to be downloaded.
    """
    open_clip = import_open_clip()
    if ":" in arch:
        raise ConfigError(f"{arch} would be downloaded or unpacked by open_clip", hint="give an arch and a path")
    config = open_clip.get_model_config(arch)
    if config is None:
        near = difflib.get_close_matches(arch, open_clip.list_models(), n=3) or ["ViT-B-32", "ViT-L-14"]
        raise ConfigError(f"open_clip knows no architecture {arch!r}", hint=f"did you mean {', '.join(near)}?")
    text = config["text_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise ConfigError(
            f"the text side of {arch} needs the transformers package and a download",
            hint="take an architecture with CLIP's own tokenizer, for example ViT-B-32 or ViT-L-14",
        )
    return config


def tower_shape(arch: str) -> TowerShape:
    """The sizes of the text tower of `arch`, without building it."""
    config = tower_config(arch)
    text = config["text_cfg"]
    defaults = import_open_clip().CLIPTextCfg()
    sizes = (text.get(name, getattr(defaults, name)) for name in ("context_length", "layers"))
    return TowerShape(text.get("width", defaults.width), config["embed_dim"], *sizes)


def find_tower_file(text: FrozenText) -> Path:
    """The weights of a frozen tower. Raises WeightsMissing where there is none, IncompatibleCheckpoint for another."""
    if text.path is None or text.sha256 is None:
        raise ConfigError(
            "model.condition.text names no weights",
            hint="give path and sha256, or run `hpdm cache-text`, which fills both in",
        )
    path = Path(text.path).expanduser()
    if not path.is_file() and "HPDM_WEIGHTS" in os.environ:
        path = Path(os.environ["HPDM_WEIGHTS"]) / path.name
    if not path.is_file():
        raise WeightsMissing(
            f"no weights of the text tower {text.arch} at {text.path}",
            hint="put the file there, or under the same name into $HPDM_WEIGHTS; nothing is downloaded",
        )
    found = file_sha256(path)
    if found != text.sha256:
        raise IncompatibleCheckpoint(
            f"{path} is another file than the model was trained with: its sha256 is {found}, expected {text.sha256}",
            hint="give the very file; a converted copy has another hash",
        )
    return path


def load_tower(text: FrozenText) -> nn.Module:
    """The text tower of `text`, frozen, in fp32 on the CPU, with every tensor from the file.

    Raises ConfigError, WeightsMissing or IncompatibleCheckpoint where arch, path, sha256 and quick_gelu do not agree.
    """
    open_clip, config, path = import_open_clip(), tower_config(text.arch), find_tower_file(text)
    if config.get("quick_gelu", False) and not text.quick_gelu:
        raise ConfigError(
            f"{text.arch} is an architecture with QuickGELU, and quick_gelu is false",
            hint=f"set quick_gelu to true, or take {text.arch.removesuffix('-quickgelu')}",
        )
    tensors = _read_tower_tensors(path)
    if any(mark in tensors for mark in _OPENAI_MARKS) and not text.quick_gelu:
        raise ConfigError(
            f"{path} is one of OpenAI's files, trained with QuickGELU, and quick_gelu is false",
            hint="set quick_gelu to true; with the other activation the embeddings are silently wrong",
        )
    tower = open_clip.model._build_text_tower(config["embed_dim"], config["text_cfg"], text.quick_gelu)
    own = open_clip.model.convert_to_custom_text_state_dict(without_marks(tensors))
    own = {k.removeprefix("text."): v.float() for k, v in own.items() if k.startswith("text.")}
    own.pop("attn_mask", None)
    fill_network(tower, own, path, f"the text tower of {text.arch}")
    return tower.eval().requires_grad_(False)


def _read_tower_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = read_plain_tensors(path)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        raise IncompatibleCheckpoint(
            f"{path} cannot be read as plain tensors: {str(error).splitlines()[0]}",
            hint="expected safetensors or a PyTorch state dict",
        ) from error
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


@torch.no_grad()
def tower_states(tower: nn.Module, ids_BM: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Normalised states of the layer before the last, [B, M, W], and the pooled vectors, [B, E].

    The last layer of a contrastive tower is bent towards its one pooled token; the one before says more about each.
    """
    found: dict[str, Any] = tower.forward_intermediates(  # type: ignore[operator]
        ids_BM, indices=[max(layers - 2, 0)], normalize_intermediates=True, output_fmt="NLC"
    )
    return found["text_intermediates"][0], found["text_features"]
