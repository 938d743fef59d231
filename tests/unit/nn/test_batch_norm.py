"""Batch norm by itself is PyTorch's; over two ranks it is that of all their rows (see also equivalence/)."""

import pytest
import torch
from torch import nn

from hpdm_core.nn.batch_norm import BatchNorm


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm2d, (3, 5, 4, 6)), (nn.BatchNorm3d, (2, 5, 3, 4, 2))])
def test_one_rank_is_pytorchs_layer(kind, shape):
    own, theirs, x = BatchNorm(5), kind(5, track_running_stats=False), torch.randn(shape) * 3 + 1
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    theirs.load_state_dict(own.state_dict())
    assert torch.equal(own(x), theirs(x))
    own.eval()
    assert torch.equal(own(x), theirs(x))
