"""What of a computation would make a GPU and its host wait for each other."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Notes operations that wait for a GPU, or bring numbers from Python to it: a capture may hold neither."""

    WAITING = ("aten.lift_fresh", "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = "aten.index" in str(func) and any(
            i is not None and i.dtype == torch.bool for i in args[1] if isinstance(args[1], (list, tuple))
        )
        if by_mask or str(func).startswith(self.WAITING):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
