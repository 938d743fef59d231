"""CLIPSIM: does a captioned video show its caption? Cosine of CLIP's image and text vectors, averaged over frames.

The literature's network is OpenAI's ViT-B/32 (QuickGELU) with its own preprocessing: bicubic to 224 on the short side,
centre crop, CLIP's mean and deviation. Values are near 0.3, not 30. The network is built by open_clip and filled from
a file; nothing is downloaded, and a file that leaves a tensor unfilled is refused.

Shapes: T frames, H W pixels, D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpdm_core.conditioning.clip import fill_network, import_open_clip, without_marks
from hpdm_core.errors import DataError, WeightsMissing
from hpdm_core.metrics.catalogue import find_file
from hpdm_core.metrics.observer import Observer
from hpdm_core.metrics.sources import VideoSource
from hpdm_core.metrics.weight_files import read_tensors, tensors_digest
from hpdm_core.nn.precision import matmul_precision

ARCHITECTURE = "ViT-B-32-quickgelu"
SIDE = 224
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

Encode = Callable[[Tensor], Tensor]


def build_clipsim(weights: Path | None, captions: list[str], device: torch.device | str) -> Observer:
    """An observer that scores video number i, uint8 [T, H, W, 3], against `captions[i]`.

    Raises WeightsMissing without CLIP's file, IncompatibleCheckpoint if it does not fit, EnvironmentProblem
    where open_clip cannot be imported.
    """
    path = weights or find_file("clip")
    if path is None:
        raise WeightsMissing(
            "CLIPSIM needs the CLIP ViT-B/32 weights, and no file was given or found",
            hint="pass --clip-weights FILE; `hpdm weights list` says where it comes from",
        )
    open_clip = import_open_clip()
    model: Any = open_clip.create_model(ARCHITECTURE, pretrained=None)
    tensors = without_marks(read_tensors(path))
    fill_network(model, tensors, path, "CLIP ViT-B/32")
    model = model.float().to(device).eval()
    tokenize = open_clip.get_tokenizer(ARCHITECTURE)
    with torch.inference_mode(), matmul_precision("fp32"):
        texts = [model.encode_text(tokenize([caption]).to(device)) for caption in dict.fromkeys(captions)]
    vectors = dict(zip(dict.fromkeys(captions), texts, strict=True))
    observer = clipsim_observer(model.encode_image, [vectors[caption] for caption in captions], device)
    return replace(observer, facts=clipsim_facts(tensors, captions))


def clipsim_facts(tensors: Mapping[str, Tensor], captions: Sequence[str]) -> dict[str, Any]:
    """What a CLIPSIM depends on beside the videos: CLIP's tensors and the captions, by SHA-256."""
    lines = "".join(f"{caption}\n" for caption in captions)
    return {
        "network": ARCHITECTURE,
        "clip_sha256": tensors_digest(tensors),
        "captions_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def clipsim_observer(encode_image: Encode, text_vectors: list[Tensor], device: torch.device | str) -> Observer:
    """Mean cosine of each frame's vector with the text vector [1, D] of the video's number."""

    def observe(index: int, video_THWC: np.ndarray) -> dict[str, float]:
        with torch.inference_mode(), matmul_precision("fp32"):
            images = encode_image(clip_preprocess(torch.from_numpy(video_THWC).to(device)))
            return {"cosine": float(F.cosine_similarity(images.float(), text_vectors[index].float()).mean())}

    return Observer(observe)


def clip_preprocess(frames_THWC: Tensor) -> Tensor:
    """uint8 frames [T, H, W, 3] to CLIP's input [T, 3, 224, 224]: antialiased bicubic, centre crop."""
    images = frames_THWC.movedim(-1, 1).float()
    height, width = images.shape[-2:]
    short = min(height, width)
    target = (round(height * SIDE / short), round(width * SIDE / short))
    if target != (height, width):
        images = F.interpolate(images, size=target, mode="bicubic", align_corners=False, antialias=True)
    top, left = (target[0] - SIDE) // 2, (target[1] - SIDE) // 2
    images = images[:, :, top : top + SIDE, left : left + SIDE].round().clamp(0, 255) / 255
    mean, deviation = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
    return (images - mean) / deviation


def read_captions(path: Path | None, source: VideoSource | None, count: int) -> list[str]:
    """Captions of the first `count` videos: the lines of `path`, else the source's own. DataError if one is missing."""
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read captions {path}: {error.strerror}") from error
        while lines and not lines[-1].strip():
            lines.pop()
        captions = [line.strip() for line in lines]  # a blank line in between must not shift the rest
    else:
        captions = [source.caption(index) for index in range(min(count, len(source)))] if source is not None else []
    if len(captions) < count or not all(captions[:count]):
        raise DataError(
            f"CLIPSIM needs a caption for each of {count} videos; there are {sum(map(bool, captions))}"
            + _first_gap(captions[:count]),
            hint="give --prompts FILE with one caption per line, in the order of the videos",
        )
    return captions[:count]


def _first_gap(captions: Sequence[str]) -> str:
    """Which caption is blank, in words, if one is."""
    return f", and number {captions.index('') + 1} is blank" if "" in captions else ""
