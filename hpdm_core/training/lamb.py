"""LAMB: Adam's direction, rescaled per tensor so that every weight matrix moves in proportion to its norm.

Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2.

Why not timm's: it cannot drop one step without asking the device first (the non-finite guard needs that),
it clips by a second global norm inside, and it takes one reduction per tensor when weights are sharded. Its
import also loads torchvision, which took 3.5 s. This one is torch's fused Adam kernel followed by the trust
ratio, and on a GPU `lamb_kernels`; a test holds it to timm's results, another the kernels to it.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from hpdm_core.training.adam import fused_step, zero_moments

if TYPE_CHECKING:
    from hpdm_core.training.lamb_kernels import LambKernels

logger = logging.getLogger(__name__)


class Lamb(Optimizer):
    """LAMB over parameter groups; a group with `adapt: False` (biases, norms) gets plain Adam updates.

    Setting `found_inf` to a device scalar before `step` makes that step a no-op on the device where it is 1:
    weights, moments and counters stay. Gradients count `grad_factor` times, a device scalar: how they are clipped.
    They may be multiplied in place or not.
    """

    found_inf: Tensor | None = None
    grad_factor: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5.0e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1.0e-6,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)
        self._kernels: dict[tuple[int, ...], LambKernels] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and pickles hold what torch keeps of an optimiser; kernels are made again."""
        super().__setstate__(state)
        self._kernels = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Lamb takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)

    def _step_group(self, group: dict[str, Any], params: Sequence[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(zero_moments(p))
        states = [{key: _local(value) for key, value in self.state[p].items()} for p in params]
        weights, gradients = [_local(p) for p in params], [_local(p.grad) for p in params if p.grad is not None]
        moments = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")]
        if fits_kernels(weights, gradients, *moments) and kernels_work(weights[0].device):
            self._by_kernels(group, params, (weights, gradients, *moments), [state["step"] for state in states])
        else:
            self._by_torch(group, params, weights, gradients, states)

    def _by_torch(
        self, group: dict[str, Any], params: Sequence[Tensor], weights: list[Tensor], gradients: list[Tensor],
        states: list[dict[str, Tensor]],
    ) -> None:  # fmt: skip
        if self.grad_factor is not None:
            torch._foreach_mul_(gradients, self.grad_factor)
        # Minus Adam's bias-corrected direction is what the kernel makes of zeros at rate 1.
        updates = _zeros(weights)
        fused_step(updates, gradients, states, group, lr=1.0, weight_decay=0.0, found_inf=self.found_inf)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=-group["weight_decay"])
        # The kernel has left the moments alone where a step is dropped; a zero rate leaves the weights alone as well.
        rate = self._rate(group, weights[0].device) * self._kept(weights[0].device)
        if group["adapt"]:
            squares = torch.stack([torch.stack(torch._foreach_norm(part)) for part in (weights, updates)]).square_()
            ratios = _trust_ratios(squares, like=params[0]).mul_(rate)
            # One pass and one launch per tensor: a foreach product with many factors on the device is no better.
            for weight, update, ratio in zip(weights, updates, ratios.unbind(), strict=True):
                weight.addcmul_(update, ratio)
        else:
            torch._foreach_mul_(updates, rate)
            torch._foreach_add_(weights, updates)

    def _by_kernels(
        self, group: dict[str, Any], params: Sequence[Tensor], tensors: Sequence[list[Tensor]], steps: list[Tensor]
    ) -> None:
        device, key = steps[0].device, tuple(map(id, params))
        if key not in self._kernels:
            from hpdm_core.training.lamb_kernels import LambKernels

            self._kernels[key] = LambKernels([weight.numel() for weight in tensors[0]], device)
        kernels, kept = self._kernels[key], self._kept(device)
        torch._foreach_add_(steps, [kept] * len(steps))  # with the bare tensor torch asks the device for its value
        betas, counts = dict(zip(("beta1", "beta2"), group["betas"], strict=True)), torch.stack(steps)
        biases = torch.stack([1.0 - beta**counts for beta in betas.values()])
        factor = torch.ones((), device=device) if self.grad_factor is None else self.grad_factor
        scalars = torch.stack([self._rate(group, device), factor, kept])
        options = {**betas, "eps": group["eps"], "decay": group["weight_decay"]}
        with torch.cuda.device_of(biases):  # Triton launches on the current device
            squares = kernels.first(tensors, biases, scalars, options)
            ratios = _trust_ratios(squares, like=params[0]) if group["adapt"] else torch.ones_like(squares[0])
            kernels.second(ratios, biases, scalars, options)

    def _rate(self, group: dict[str, Any], device: torch.device) -> Tensor:
        return torch.ones((), device=device).mul_(group["lr"])

    def _kept(self, device: torch.device) -> Tensor:
        """0 where the step is dropped, else 1."""
        return torch.ones((), device=device) if self.found_inf is None else 1.0 - self.found_inf


def fits_kernels(*tensors: Sequence[Tensor]) -> bool:
    """Whether `lamb_kernels` can work on these: contiguous fp32 on a GPU."""
    return all(t.is_cuda and t.dtype is torch.float32 and t.is_contiguous() for group in tensors for t in group)


@functools.cache
def kernels_work(device: torch.device) -> bool:
    """Whether Triton can run them on `device`, on every rank: two ways of rounding would let replicas drift apart."""
    failure = _kernels_fail(device)
    works = torch.tensor(float(not failure), device=device)
    if dist.is_initialized():
        dist.all_reduce(works, op=dist.ReduceOp.MIN)
    if not works:
        logger.warning(
            "LAMB takes torch's passes, slower at small batches: Triton does not run on %s (it needs a C compiler and"
            " Python's headers)",
            f"this rank: {failure}" if failure else "another rank",
        )
    return bool(works)


def _kernels_fail(device: torch.device) -> str:
    """What Triton says if it cannot compile and launch; its errors have no class in common."""
    try:
        from hpdm_core.training.lamb_kernels import LambKernels

        LambKernels([1], device).try_out()
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # those are not Triton's
        raise
    except Exception as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _zeros(like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros in the shapes of `like`, parts of one allocation: hundreds of small fills would each be a launch."""
    # Parts begin at multiples of 16 bytes, where the fused kernels can read four numbers at once.
    sizes = [-(-tensor.numel() // 4) * 4 for tensor in like]
    parts = torch.zeros(sum(sizes), dtype=like[0].dtype, device=like[0].device).split(sizes)
    return [part[: tensor.numel()].view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _trust_ratios(squares_2N: Tensor, like: Tensor) -> Tensor:
    """|w| / |update| per tensor, 1 where one is 0, from sums of squares: this process's, if `like` is sharded."""
    if isinstance(like, DTensor):
        for axis, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(squares_2N, group=like.device_mesh.get_group(axis))
    weight_norm, update_norm = squares_2N.sqrt().unbind()
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))
