"""The two critics of the adversarial phase: patches of single frames, and patches of whole clips.

A critic is a stack of strided convolutions that scores overlapping patches. It returns the output of
every stage, because the autoencoder is also asked to match the features of real video.

Batch norm uses the statistics of the micro-batch at hand, over all ranks, and keeps none: critics are never
evaluated. Critics run in fp32 under any precision: they cost little beside the autoencoder, and 3-D convolutions
in bf16 have given non-finite gradients on CPUs.

Shapes: B batch, C channels, T H W frames and pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.families.pvdm.config import CriticSection
from hpdm_core.nn.batch_norm import BatchNorm

KERNEL, PADDING = 4, 2
MAX_WIDTH = 512
Stages = list[Tensor]
"""The outputs of a critic's stages; the last one holds the scores."""


class PatchCritic(nn.Module):
    """`layers` convolutions of stride 2, one of stride 1, one to scores; 2-D on frames, 3-D on clips."""

    def __init__(self, section: CriticSection, *, clips: bool) -> None:
        super().__init__()
        conv = nn.Conv3d if clips else nn.Conv2d
        widths = [min(section.width * 2**i, MAX_WIDTH) for i in range(section.layers + 1)]
        stages = [nn.Sequential(conv(3, widths[0], KERNEL, 2, PADDING), nn.LeakyReLU(0.2))]
        for i in range(section.layers):
            stride = 2 if i + 1 < section.layers else 1
            layer = conv(widths[i], widths[i + 1], KERNEL, stride, PADDING)
            act = nn.LeakyReLU(0.2)
            stages.append(nn.Sequential(layer, BatchNorm(widths[i + 1]), act))
        stages.append(nn.Sequential(conv(widths[-1], 1, KERNEL, 1, PADDING)))
        self.stages = nn.ModuleList(stages)
        self._init()

    def forward(self, x: Tensor) -> Stages:
        """Frames [B, 3, H, W] or clips [B, 3, T, H, W] to every stage's output, scores last."""
        outputs: Stages = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def _init(self) -> None:
        """DCGAN's: weights around 0 (norms around 1) with a deviation of 0.02."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, BatchNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)


class Critics(nn.Module):
    """A frame critic on one frame of each clip, and a clip critic."""

    def __init__(self, section: CriticSection) -> None:
        super().__init__()
        self.frame, self.clip = PatchCritic(section, clips=False), PatchCritic(section, clips=True)

    def forward(self, video_BCTHW: Tensor, frames_B: Tensor) -> tuple[Stages, Stages]:
        """The stages of the frame critic on frame `frames_B[b]` of row b, and of the clip critic."""
        with torch.autocast(video_BCTHW.device.type, enabled=False):
            video = video_BCTHW.float()
            return self.frame(pick_frames(video, frames_B)), self.clip(video)


def pick_frames(video_BCTHW: Tensor, frames_B: Tensor) -> Tensor:
    """One frame of each row, [B, C, H, W]."""
    return video_BCTHW[torch.arange(len(video_BCTHW), device=video_BCTHW.device), :, frames_B]


def hinge_loss(real: tuple[Stages, ...], fake: tuple[Stages, ...]) -> Tensor:
    """Sum over critics of half of E[relu(1 - real)] + E[relu(1 + fake)]."""
    losses = [0.5 * (F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).sum()


def adversarial_loss(fake: tuple[Stages, ...]) -> Tensor:
    """Minus the mean score, summed over critics."""
    return -torch.stack([stages[-1].mean() for stages in fake]).sum()


def feature_loss(real: tuple[Stages, ...], fake: tuple[Stages, ...]) -> Tensor:
    """Mean absolute difference of features, summed over critics and over all stages but the scores."""
    losses = [
        (f - r).abs().mean()
        for critic_real, critic_fake in zip(real, fake, strict=True)
        for r, f in zip(critic_real[:-1], critic_fake[:-1], strict=True)
    ]
    return torch.stack(losses).sum()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, what `module` computes is differentiable by its inputs and not by its parameters."""
    params = [p for p in module.parameters() if p.requires_grad]
    try:
        for param in params:
            param.requires_grad_(False)
        yield
    finally:
        for param in params:
            param.requires_grad_(True)
