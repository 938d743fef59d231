"""How matrix products are computed: strict fp32, TF32, or bf16 over fp32 storage.

The paper trained in fp32 and found mixed precision worse, so fp32 is the reference and TF32 is never on
by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "tf32", "bf16"]

_residual = torch.float32


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Inside, float32 matrix products and convolutions run in TF32 if and only if `precision` is tf32."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """Context for running networks: bf16 products over fp32 weights, or nothing at all."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def residual_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, `to_residual` means `dtype`; fp32 unless someone says so."""
    global _residual
    before, _residual = _residual, dtype
    try:
        yield
    finally:
        _residual = before


def to_residual(x: Tensor) -> Tensor:
    """`x` in the dtype that the streams between layers are kept in."""
    return x.to(_residual)


class Bf16Products:
    """bf16 weights for the linear layers of `units`, which autocast would else make in every call: same results.

    They are made once, and lie in the layers only inside `held` blocks: between these the model has its own weights.
    Nothing changes unless `precision` is bf16, nor for layers that are being trained. They keep their place in memory
    as long as the layers live, where a captured CUDA graph (graphs.py) reads them.
    """

    def __init__(self, units: Iterable[nn.Module], precision: Precision) -> None:
        modules = (m for unit in units for m in unit.modules()) if precision == "bf16" else ()
        layers = [m for m in modules if isinstance(m, nn.Linear) and not m.weight.requires_grad]
        self._rounded = {layer: _rounded(layer) for layer in layers}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the layers hold the bf16 weights."""
        own = {layer: dict(layer._parameters) for layer in self._rounded}
        try:
            for layer, rounded in self._rounded.items():
                layer._parameters.update(rounded)
            yield
        finally:
            for layer, parameters in own.items():
                layer._parameters.update(parameters)


_places: WeakKeyDictionary[nn.Linear, dict[str, nn.Parameter | None]] = WeakKeyDictionary()


def _rounded(layer: nn.Linear) -> dict[str, nn.Parameter | None]:
    """The parameters of `layer` in bf16, where they lay the last time if that still fits them."""
    old, new = _places.get(layer, {}), {}
    for name, own in layer._parameters.items():
        place = old.get(name)
        if own is None:
            new[name] = None
        elif place is None or place.shape != own.shape or place.device != own.device:
            new[name] = nn.Parameter(own.to(torch.bfloat16), requires_grad=False)
        else:
            new[name] = place
            with torch.no_grad():
                place.copy_(own)
    _places[layer] = new
    return new
