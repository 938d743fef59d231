"""Steps measured on one GPU, as data: what `hpdm estimate` takes its speeds from, and what it is checked against.

Source: docs/results.md, `python -m benchmarks.train_step` at commits eaab24a and da792ed. One NVIDIA H200, torch
2.11.0+cu130, 64x256x256, LAMB, clipping, one EMA track, random patches that stay on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU = "NVIDIA H200"
GPU_TFLOPS = 989.0
"""Dense bf16 TFLOP/s that the vendor states for `GPU`: other GPUs are scaled by theirs."""
GPU_MEMORY_GIB = 139.0


@dataclass(frozen=True)
class MeasuredStep:
    """One row: `ms` a step of `batch` videos, `gib` at its peak, `tflop` per video."""

    preset: str
    precision: str
    bf16_attention: bool
    compiled: bool
    batch: int
    ms: float
    gib: float
    tflop: float
    overrides: tuple[str, ...] = ()

    @property
    def tflop_per_s(self) -> float:
        """What the step reached."""
        return self.tflop * self.batch / self.ms * 1e3


DENSE = ("model.levels_per_block=[3,3,3,3,3,3]",)
_WHOLE = ("model.patch=[64,256,256]", "model.levels_per_block=[1,1,1,1,1,1]")
_LEVELS_4 = ("model.video=[64,512,512]", "model.levels_per_block=[1,1,2,2,3,4]")
_LEVELS_5 = ("model.video=[64,1024,1024]", "model.levels_per_block=[1,1,2,3,4,5]")

STEPS = (
    MeasuredStep("ucf101-m", "bf16", False, True, 32, 417.0, 92.3, 5.06),
    MeasuredStep("ucf101-m", "bf16", False, True, 24, 320.5, 68.0, 5.06),
    MeasuredStep("ucf101-m", "bf16", False, True, 1, 104.2, 5.94, 5.06),
    MeasuredStep("ucf101-m", "bf16", False, False, 16, 300.5, 48.5, 5.06),
    MeasuredStep("ucf101-m", "bf16", False, False, 1, 128.1, 6.01, 5.06),
    MeasuredStep("ucf101-m", "bf16", False, True, 16, 368.1, 66.6, 7.74, DENSE),
    MeasuredStep("ucf101-m", "bf16", False, True, 1, 85.9, 7.17, 7.74, DENSE),
    MeasuredStep("ucf101-s", "bf16", False, True, 24, 282.4, 54.2, 3.70),
    MeasuredStep("ucf101-l", "bf16", False, True, 16, 384.4, 68.1, 9.12),
    MeasuredStep("ucf101-m", "tf32", True, True, 12, 330.3, 59.0, 5.06),
    MeasuredStep("ucf101-m", "tf32", True, False, 12, 355.8, 59.1, 5.06),
    MeasuredStep("ucf101-m", "tf32", True, False, 1, 84.5, 7.62, 5.06),
    MeasuredStep("ucf101-m", "tf32", True, False, 8, 371.5, 58.7, 7.74, DENSE),
    MeasuredStep("ucf101-m", "fp32", False, False, 4, 514.1, 22.4, 5.06),
    MeasuredStep("ucf101-m", "fp32", False, True, 4, 499.8, 22.3, 5.06),
    MeasuredStep("ucf101-m", "fp32", False, False, 1, 161.3, 7.79, 5.06),
    MeasuredStep("ucf101-m", "bf16", False, True, 1, 314.1, 60.3, 116.95, (*_WHOLE, "model.token=[1,4,4]")),
    MeasuredStep("ucf101-m", "bf16", False, True, 4, 297.5, 59.7, 29.75, (*_WHOLE, "model.token=[1,8,8]")),
    MeasuredStep("ucf101-m", "bf16", False, False, 1, 118.0, 6.37, 5.51, _LEVELS_4),
    MeasuredStep("ucf101-m", "bf16", False, False, 1, 137.0, 7.15, 6.86, _LEVELS_5),
)

CALIBRATION = tuple(row for row in STEPS if row.preset == "ucf101-m" and not row.overrides and row.batch == 1)
"""The rows that `WORKSPACE` was set by; all others are predictions."""

WORKSPACE = 210 * 2**20
"""Bytes beside the tensors: libraries' workspaces and what kernels need in passing. The mean gap of `CALIBRATION`."""

COMPILED_SHARE = 0.58
"""Of the memory that a block needs beyond what lives at its start, what compiled code needs in sampling. Set by
HPDM-M's preset with CUDA graphs (7.65 GiB on an H100) and without (6.41): 0.61 and 0.55 would meet one each."""

SECONDS_PER_KERNEL = 35e-6
"""Host time of one operator where the GPU waits for it: batch-1 step over its operators; varies by 20 % and more."""

SECONDS_PER_REPLAYED_KERNEL = 7.5e-6
"""The same where a CUDA graph replays it, on an H100: sampling calls of a U-Net (15.0 ms, 1,937 operators) and of
HPDM-M's level 0 (4.4 ms, 582), commit 8198fad: too small to be bound by FLOPs."""


def fastest(precision: str, bf16_attention: bool, compiled: bool) -> MeasuredStep:
    """The measured step of this mode that reached most FLOP/s.

    tf32 without bf16 attention was not measured; strict fp32 stands in, a lower bound.
    """
    if precision == "tf32" and not bf16_attention:
        precision = "fp32"
    rows = [
        row
        for row in STEPS
        if row.preset == "ucf101-m"
        and not row.overrides
        and (row.precision, row.compiled) == (precision, compiled)
        and (precision != "tf32" or row.bf16_attention)
    ]
    return max(rows, key=lambda row: row.tflop_per_s)
