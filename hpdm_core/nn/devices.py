"""Choosing a device, and compiling a network's repeated blocks for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from hpdm_core.errors import EnvironmentProblem

GRAPHS_PER_UNIT = 8
"""Blocks meet a few row counts each, with and without gradients."""


def pick_device(name: torch.device | str | None) -> torch.device:
    """The device meant by `auto` (or None), `cpu`, `cuda`, `cuda:1`; under torchrun `cuda` is the local rank's.

    Raises EnvironmentProblem for a device that is not there.
    """
    if name is None or str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EnvironmentProblem(f"no device is called {name!r}", hint="use cpu, cuda or cuda:1") from error
    if device.type != "cuda":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"device cuda:{index} was asked for, and this PyTorch finds {torch.cuda.device_count()} GPUs",
            hint="use --device cpu, or at most one process per GPU",
        )
    return torch.device("cuda", index)


def compile_units(units: Sequence[nn.Module]) -> None:
    """Compile each unit in place for static shapes; parameter names stay.

    Dynamo counts compiled graphs per code object, which all units of one class share, and past its limit
    falls back to eager code in silence: the limit is raised to what the units need. Under DDP it would also cut
    every graph where a bucket of gradients is full, so that a unit is no longer one: units are small enough for
    gradients to travel when the unit is done.
    """
    config = torch._dynamo.config
    config.optimize_ddp = False
    config.recompile_limit = max(config.recompile_limit, GRAPHS_PER_UNIT * len(units))
    for unit in units:
        unit.compile(dynamic=False)
