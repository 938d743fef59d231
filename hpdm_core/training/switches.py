"""Switches that change how a family computes and not what: precision, checkpointed activations, compilation.

They are applied from outside and keep every parameter name, so that checkpoints do not depend on them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from hpdm_core.config.schema import TrainSection
from hpdm_core.errors import ConfigError
from hpdm_core.families.base import Family
from hpdm_core.nn.attention import attention_dtype
from hpdm_core.nn.devices import compile_units
from hpdm_core.nn.float8 import SMALLEST, use_float8
from hpdm_core.nn.precision import autocast, residual_dtype

FLOAT8_SINCE = (8, 9)


@contextmanager
def computing(train: TrainSection, device: torch.device) -> Iterator[None]:
    """Context for losses: autocast to bf16 products over fp32 weights, bf16 attention and bf16 streams, as told."""
    attention = attention_dtype(
        torch.bfloat16 if train.bf16_attention else None, projections=train.bf16_attention == "whole"
    )
    residual = torch.bfloat16 if train.residual == "bf16" else torch.float32
    with autocast(device, train.precision), attention, residual_dtype(residual):
        yield


def apply_switches(family: Family, train: TrainSection) -> None:
    """Checkpoint and compile the family's repeated blocks in place, their wide MLPs in float8, if told so."""
    units = family.compile_units()
    if not units and (train.compile or train.activation_checkpointing or train.float8):
        raise ConfigError(
            f"family {family.name!r} names no blocks to compile or checkpoint",
            hint="set train.compile, train.activation_checkpointing and train.float8 to false",
        )
    if train.float8:
        check_float8(next(family.parameters()).device)
        if not use_float8(units):
            raise ConfigError(
                f"train.float8 has nothing to do: no MLP of this model is {SMALLEST} wide at all its layers",
                hint="set train.float8 to false; float8 pays only for wide products",
            )
    for unit in units:
        if train.activation_checkpointing:
            unit.forward = _recomputed(unit.forward)
    if train.compile:
        compile_units(units)


def check_float8(device: torch.device) -> None:
    """Raise ConfigError for a GPU that has no float8 products; a CPU rounds as they would."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FLOAT8_SINCE:
        raise ConfigError(
            f"train.float8 needs a GPU of compute capability {'.'.join(map(str, FLOAT8_SINCE))} or later, "
            f"which {torch.cuda.get_device_name(device)} is not",
            hint="set train.float8 to false",
        )


def _recomputed(forward: Any) -> Any:
    """`forward` whose activations are computed again in the backward pass instead of being kept."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # No RNG state to restore: blocks draw no random numbers (all come from counted streams).
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
