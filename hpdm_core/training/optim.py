"""Optimisers of a phase: which parameters decay, how the learning rate runs, and one guarded step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer

from hpdm_core.config.schema import OptimizerSection
from hpdm_core.errors import ConfigError
from hpdm_core.families.base import Family, Role
from hpdm_core.training.adam import zero_moments
from hpdm_core.training.lamb import Lamb
from hpdm_core.training.muon import Muon


def learning_rate(section: OptimizerSection, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 0) out of `total_steps`: linear warm-up, then cosine or constant.

    The last step of a cosine run is one step short of `final_lr_fraction`; later steps stay at it.
    """
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.lr
    span = max(total_steps - section.warmup_steps, 1)
    progress = min((step - section.warmup_steps) / span, 1.0)
    floor = section.final_lr_fraction
    return section.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def trained_parameters(family: Family, role: Role) -> dict[str, nn.Parameter]:
    """The parameters that `role` trains, by their name in the family; a tied one appears once.

    An entry of `role.modules` is a submodule's dotted name; "" is the whole family.
    """
    names = {id(p): name for name, p in family.named_parameters()}
    found: dict[str, nn.Parameter] = {}
    for module in role.modules:
        for param in family.get_submodule(module).parameters():
            found[names[id(param)]] = param
    if not found:
        raise ConfigError(f"role {role.name!r} trains no parameters: its modules are {role.modules}")
    return found


def undecayed_names(family: Family) -> set[str]:
    """Names of the parameters without weight decay or trust ratio.

    These are biases, norms and other vectors, embedding tables, and parameters that a network tags with
    `no_weight_decay = True`.
    """
    tables = {id(m.weight) for m in family.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, p in family.named_parameters()
        if p.ndim <= 1 or id(p) in tables or getattr(p, "no_weight_decay", False)
    }


def build_optimizer(params: Mapping[str, nn.Parameter], undecayed: set[str], section: OptimizerSection) -> Optimizer:
    """The optimiser named by `section`, its state allocated so that a checkpoint can be read into it.

    Raises ConfigError for Muon on sharded weights: it needs whole matrices.
    """
    if section.name == "muon":
        return _muon(params, undecayed, section)
    decayed = [p for name, p in params.items() if name not in undecayed]
    plain = [p for name, p in params.items() if name in undecayed]
    groups = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if section.name == "lamb":
        groups[1]["adapt"] = False
        groups = [g for g in groups if g["params"]]
        optimizer: Optimizer = Lamb(groups, lr=section.lr, betas=section.betas, eps=section.eps)
    else:
        groups = [g for g in groups if g["params"]]
        # `capturable` only promises not to read the device: a CUDA graph of the step asks for the promise.
        optimizer = AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True, capturable=True)
    for param in params.values():
        optimizer.state[param].update(zero_moments(param))
    return optimizer


def _muon(params: Mapping[str, nn.Parameter], undecayed: set[str], section: OptimizerSection) -> Optimizer:
    """Muon for the matrices and kernels that decay, AdamW for all else."""
    if any(isinstance(p, DTensor) for p in params.values()):
        raise ConfigError(
            "train.optimizer.name=muon needs whole weight matrices, and train.parallel=fsdp shards them",
            hint="set train.parallel=ddp, or train.optimizer.name=lamb",
        )
    matrices = [p for name, p in params.items() if name not in undecayed and (p.ndim == 2 or p.ndim >= 4)]
    chosen = {id(p) for p in matrices}
    others = [(name, p) for name, p in params.items() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": section.weight_decay, "matrix": True},
        {"params": [p for name, p in others if name not in undecayed], "weight_decay": section.weight_decay},
        {"params": [p for name, p in others if name in undecayed], "weight_decay": 0.0},
    ]
    groups = [{"matrix": False, **g} for g in groups if g["params"]]
    optimizer = Muon(groups, lr=section.lr, momentum=section.momentum, betas=section.betas, eps=section.eps)
    for _, param in others:
        optimizer.state[param].update(zero_moments(param))
    return optimizer


class RoleOptimizer:
    """One role of a phase at work: its parameters, their optimiser and its schedule."""

    def __init__(self, family: Family, role: Role, section: OptimizerSection) -> None:
        self.name = role.name
        self.role = role
        self.section = role.optimizer or section
        self.params = trained_parameters(family, role)
        self.optimizer = build_optimizer(self.params, undecayed_names(family), self.section)

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """The global 2-norm of the gradients, a device scalar equal on all ranks."""
        norm = get_total_norm([p.grad for p in self.params.values() if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self, lr: float | Tensor, norm: Tensor, found_inf: Tensor) -> None:
        """Clip by `norm` and update; where `found_inf` is 1 nothing changes, without asking the host."""
        if self.section.clip_norm is not None:
            if isinstance(self.optimizer, Lamb):  # it clips where it reads them, by the same factor: a pass less
                self.optimizer.grad_factor = (self.section.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            else:
                clip_grads_with_norm_(self.params.values(), self.section.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The attributes that torch's fused optimisers read when a GradScaler drives them.
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's state by `role/parameter/key`; reading a checkpoint writes into these."""
        return {
            f"{self.name}/{name}/{key}": value
            for name, param in self.params.items()
            for key, value in self.optimizer.state[param].items()
        }
