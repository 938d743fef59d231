"""A training step or a sampling plan on tensors that have shapes and no data: what it computes and what it keeps.

PyTorch's fake tensors run the family's real code, forward, backward and update, and allocate nothing. A ledger
counts the storages that are alive at every operator, which is what the allocator of a GPU would hold, and adds
up FLOPs by PyTorch's own formulas (2 per multiply-add), each in the module that it was computed in or, in the
backward pass, for. Nothing here knows a family.
"""

# pyright: reportPrivateImportUsage=false
# (torch exports these names only at run time)

from __future__ import annotations

import itertools
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hpdm_core.conditioning.text import without_towers
from hpdm_core.config.schema import RunConfig, TrainSection
from hpdm_core.data.window import Batch, ClipView
from hpdm_core.families.base import Phase, Role
from hpdm_core.nn.graphs import rehearsed_places
from hpdm_core.nn.precision import Bf16Products, autocast
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.solvers import solver_info
from hpdm_core.sampling.stage import Stage
from hpdm_core.training.conditions import one_video
from hpdm_core.training.ema import Ema
from hpdm_core.training.measured import COMPILED_SHARE
from hpdm_core.training.optim import RoleOptimizer
from hpdm_core.training.source import weightless_family
from hpdm_core.training.switches import apply_switches, computing

PARTS = ("weights", "gradients", "moments", "averages", "inputs", "activations")
"""What memory is for. `activations` is all that a forward, backward or update makes besides the others."""
BLOCK = 512
"""The GPU allocator hands out multiples of this many bytes."""
CPU = torch.device("cpu")
_ATEN = torch.ops.aten
CPU_FORMULAS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""FLOPs of the CPU's own attention kernel, which not every release of PyTorch counts."""
FORMULAS = {**CPU_FORMULAS, **flop_registry}


@dataclass(frozen=True)
class StepCost:
    """One role's step on one GPU.

    flops: of one training video, forward and backward, by the innermost module (dotted name) they belong to.
    kernels: operators of one micro-batch that write memory. update_kernels: the same for clipping, update and EMA.
    peak: bytes by part when most are held.
    """

    phase: str
    role: str
    micro_batch: int
    flops: Mapping[str, float]
    kernels: int
    update_kernels: int
    peak: Mapping[str, int]

    @property
    def total_flops(self) -> float:
        """FLOPs of one training video."""
        return sum(self.flops.values())

    @property
    def bytes(self) -> int:
        """The whole peak."""
        return sum(self.peak.values())

    def flops_below(self, module: str) -> float:
        """FLOPs of one training video in `module` and its submodules."""
        return sum(f for name, f in self.flops.items() if name == module or name.startswith(module + "."))


@dataclass(frozen=True)
class StageCost:
    """One sampling stage of one video: `setup` comes once before it, `call` is the mean over its network calls."""

    name: str
    setup_flops: float
    call_flops: float
    setup_kernels: int
    call_kernels: float


class Places:
    """Which module computes: by the calls in progress, and in the backward pass by when the forward one ran.

    Autograd numbers its nodes in the order in which the forward pass makes them, so that the numbers at which
    modules begin and end say which module a node came from.
    """

    def __init__(self, family: nn.Module) -> None:
        self._names = {id(module): name for name, module in family.named_modules()}
        self._open: list[str] = []
        self._numbers: list[int] = []
        self._since: list[str] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, module calls are followed."""
        hooks = (
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def now(self) -> str:
        """Dotted name of the module that the running operator belongs to; "" outside all."""
        if self._open:
            return self._open[-1]
        node = torch._C._current_autograd_node()
        at = 0 if node is None else bisect_right(self._numbers, node._sequence_nr())
        return self._since[at - 1] if at else ""

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._open.append(self._names.get(id(module), self._open[-1] if self._open else ""))
        self._mark()

    def _leave(self, *_: Any) -> None:
        self._open.pop()
        self._mark()

    def _mark(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._since.append(self._open[-1] if self._open else "")


class Ledger(TorchDispatchMode):
    """Live bytes by part, their peak, FLOPs by module, and the number of operators that write memory.

    Operators on real tensors alone (row numbers, noise levels, offsets: small) are carried out, so that code
    which asks for their values works. A number asked of a tensor without data is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.places: Places | None = None
        self._part = "activations"
        self._known: dict[int, tuple[str, int, Any]] = {}
        self._blocks: list[tuple[int, float]] = []
        self.restart()

    def restart(self) -> None:
        """Forget the peak, the FLOPs and the operators counted so far."""
        self.most, self.kernels = 0, 0
        self.peak: dict[str, int] = {}
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and enter the storages that it returns."""
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if inputs and not any(isinstance(t, FakeTensor) for t in inputs):
            with torch._C._DisableTorchDispatch():
                out = func(*args, **kwargs)
        elif func is torch.ops.aten._local_scalar_dense.default:
            return 1
        else:
            out = func(*args, **kwargs)
        new = [self.enter(t) for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.kernels += any(new) or func._schema.is_mutable
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops[self.places.now() if self.places else ""] += formula(*args, **kwargs, out_val=out)
        return out

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, new storages belong to part `name`."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def move(self, tensor: Tensor, part: str) -> None:
        """Count `tensor` under another part."""
        key = tensor.untyped_storage()._cdata
        old, size, ref = self._known[key]
        self._known[key] = part, size, ref
        self.live[old] -= size
        self.live[part] += size

    def enter(self, tensor: Tensor) -> bool:
        """Count a tensor's storage until it is freed; False if it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[key] = self._part, size, weakref.ref(storage, lambda _: self._leave(key))
        self.live[self._part] += size
        total = sum(self.live.values())
        if self._blocks:
            before, share = self._blocks[0]
            total = before + int(share * (total - before))
        if total > self.most:
            self.most, self.peak = total, dict(self.live)
        return True

    @contextmanager
    def blocks(self, modules: Sequence[nn.Module], share: float) -> Iterator[None]:
        """Inside, what a call of one of `modules` needs beyond what lives at its start counts `share` times."""

        def begin(*_: Any) -> None:
            self._blocks.append((sum(self.live.values()), share))

        def end(*_: Any) -> None:
            self._blocks.pop()

        hooks = [m.register_forward_pre_hook(begin) for m in modules]
        hooks += [m.register_forward_hook(end, always_call=True) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self, key: int) -> None:
        part, size, _ = self._known.pop(key)
        self.live[part] -= size


class Rehearsal:
    """The family of a config without memory for its weights, ready to be stepped and sampled."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.ledger = config, Ledger()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        family = weightless_family(config).train()
        without_towers(family)
        with self.fake, self.ledger.part("weights"):
            self.family = family.to_empty(device=CPU)
            for tensor in itertools.chain(self.family.parameters(), self.family.buffers()):
                self.ledger.enter(tensor)
        apply_switches(self.family, config.train.model_copy(update={"compile": False}))

    def step(self, phase: Phase, role: Role, rows: int, micro_batch: int, *, resident: bool) -> StepCost:
        """One step of `role` on `rows` rows in micro-batches of `micro_batch`.

        resident: gradients are there from the start, as with gradient accumulation and under DDP.
        """
        train, family, ledger = self.config.train, self.family, self.ledger
        with self.fake, ledger:
            trained = {id(p) for r in phase.roles for m in r.modules for p in family.get_submodule(m).parameters()}
            for p in family.parameters():
                p.requires_grad_(id(p) in trained)
            with ledger.part("moments"):
                optimizers = {r.name: RoleOptimizer(family, r, train.optimizer) for r in phase.roles}
            optimizer = optimizers[role.name]
            params = {name: p for o in optimizers.values() for name, p in o.params.items()}
            with ledger.part("averages"):
                ema = Ema(train.ema, params)
            with ledger.part("gradients"):
                for p in family.parameters():
                    p.grad = torch.zeros_like(p) if resident and id(p) in trained else None
            hooks = [p.register_post_accumulate_grad_hook(self._own_gradient) for p in params.values()]
            with ledger.part("inputs"):
                batch = empty_batch(family.view(phase.name), micro_batch)
                waiting = [torch.empty_like(v) for _ in range(rows // micro_batch - 1) for v in batch.videos.values()]
            ledger.restart()
            self._backward(role.name, batch, train)
            kernels = ledger.kernels
            optimizer.step(1e-4, optimizer.gradient_norm(), torch.zeros(()))
            ema.update(train.ema.every_steps, rows)
            update_kernels = ledger.kernels - kernels
            for hook in hooks:
                hook.remove()
            for p in family.parameters():
                p.grad = None
        del waiting
        return StepCost(
            phase.name, role.name, micro_batch,
            {name: f / micro_batch for name, f in ledger.flops.items()}, kernels, update_kernels,
            {part: ledger.peak.get(part, 0) for part in PARTS},
        )  # fmt: skip

    def stages(self) -> list[StageCost]:
        """The stages of one video at the config's sampling settings, each called once, or once for every turn.

        Network calls are as large as on a GPU, and with `sample.graphs` their inputs have places of their own.
        """
        sample, costs = self.config.sample, []
        ledger = self.ledger
        done = 0.0, 0

        def spent() -> tuple[float, int]:
            nonlocal done
            before, done = done, (sum(ledger.flops.values()), ledger.kernels)
            return done[0] - before[0], done[1] - before[1]

        self.family.eval().requires_grad_(False)
        with self.fake, ledger, ledger.part("weights"):
            products = Bf16Products(self.family.compile_units(), sample.precision)
        # Outside the fake mode: what does not touch the weights is small, and its values steer the tiling.
        ledger.restart()
        shrunk = ledger.blocks(self.family.compile_units() if sample.compile else (), COMPILED_SHARE)
        with torch.no_grad(), autocast(CPU, sample.precision), ledger, products.held(), rehearsed_places(), shrunk:
            request = replace(one_video(self.config), sized_for="cuda")
            plan = self.family.plan(request, sample)
            stage = next(plan)
            while True:
                setup = spent()
                with self.fake:
                    state = {name: torch.empty(1, *shape) for name, shape in stage.shapes.items()}
                calls = _calls_by_turn(stage)
                call = [0.0, 0.0]
                for turn, count in enumerate(calls):
                    state = stage.denoise(state, 1.0, turn)
                    call = [mean + new * count / sum(calls) for mean, new in zip(call, spent(), strict=True)]
                costs.append(StageCost(stage.name, setup[0], call[0], setup[1], call[1]))
                try:
                    stage = plan.send(state)
                except StopIteration:
                    return costs

    @property
    def sampling_bytes(self) -> int:
        """The peak of what `stages` held, weights included; of compiled blocks, what they would have held."""
        return self.ledger.most

    def _backward(self, role: str, batch: Batch, train: TrainSection) -> None:
        self.ledger.places = places = Places(self.family)
        with places.watched():
            with computing(train, CPU):
                losses = self.family(role, batch, BatchStreams(train.seed, batch.positions))
            losses.total.backward()

    def _own_gradient(self, param: Tensor) -> None:
        if param.grad is not None:
            self.ledger.move(param.grad, "gradients")


def _calls_by_turn(stage: Stage) -> list[int]:
    """How many of a stage's network calls fall to each of its turns."""
    each = solver_info(stage.solver.name).step_calls(len(stage.sigmas) - 1)
    return [sum(each[turn :: stage.turns]) for turn in range(min(stage.turns, len(each)))]


def empty_batch(view: ClipView, rows: int) -> Batch:
    """A batch of the shapes that `view` reads."""
    cuts = [view.cut(0, np.random.default_rng(row)) for row in range(rows)]
    videos = {name: torch.empty(rows, 3, w.frames, w.height, w.width) for name, w in cuts[0].windows.items()}
    meta = {key: torch.from_numpy(np.stack([cut.meta[key] for cut in cuts])) for key in cuts[0].meta}
    return Batch(videos, meta, torch.zeros(rows, dtype=torch.long), [""] * rows, list(range(rows)))
