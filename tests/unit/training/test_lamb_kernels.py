"""LAMB's kernels against torch's fused Adam with the trust ratio: compiled on a GPU, interpreted without one.

Triton must be told before anything imports it that it shall interpret, hence a process of its own.
"""

import copy
import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hpdm_core.training import lamb

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
runs_kernels = pytest.mark.skipif(not (GPU or INTERPRETED), reason="runs in the process that interprets")
SHAPES = ((5, 7), (3, 4), (9, 1000), (2, 3, 4), (2, 1024), (0, 3), (11,))
"""Less than a chunk of 2,048, several of them, just one, and none, as a rank may hold of a sharded tensor."""


@pytest.mark.skipif(INTERPRETED, reason="is the process that interprets")
def test_interpreted_kernels_pass_the_tests_below():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout


def optimizers(seed=0):
    """The same weights under two optimisers: matrices with decay and trust ratio, a vector without."""
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    start[1].zero_()  # a tensor without a norm
    found = []
    for _ in range(2):
        params = [nn.Parameter(tensor.to(DEVICE, copy=True)) for tensor in start]
        groups = [{"params": params[:-1]}, {"params": params[-1:], "weight_decay": 0.0, "adapt": False}]
        found.append((params, lamb.Lamb(groups, lr=0.02, weight_decay=0.03)))
    return found


def run(monkeypatch, params, optimizer, *, kernels, drop=()):
    monkeypatch.setattr(lamb, "fits_kernels", lambda *tensors: kernels)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 10.0**step).to(DEVICE)
            if step in drop:
                p.grad.fill_(math.nan)
        optimizer.grad_factor = torch.tensor(0.5 + step, device=DEVICE)
        optimizer.found_inf = torch.tensor(float(step in drop), device=DEVICE)
        optimizer.step()


@runs_kernels
@pytest.mark.parametrize("drop", [(), (2,)])
def test_the_kernels_do_what_torch_does(monkeypatch, drop):
    (ours, a), (theirs, b) = optimizers()
    run(monkeypatch, ours, a, kernels=True, drop=drop)
    run(monkeypatch, theirs, b, kernels=False, drop=drop)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for key, value in b.state[q].items():
            torch.testing.assert_close(a.state[p][key], value, rtol=1e-5, atol=1e-6 * float(value.norm()))
        assert a.state[p]["step"] == 4 - len(drop)


@runs_kernels
def test_gradients_may_move_between_steps(monkeypatch):
    """Tables of addresses follow them: the second step reads the new tensors, not the old ones."""
    monkeypatch.setattr(lamb, "fits_kernels", lambda *tensors: True)
    p = nn.Parameter(torch.ones(4, 4, device=DEVICE))
    optimizer = lamb.Lamb([p], lr=0.1, betas=(0.5, 0.5), weight_decay=0.0)
    held = torch.full((4, 4), 3.0, device=DEVICE)
    p.grad = held
    optimizer.step()
    p.grad = torch.full((4, 4), -1.0, device=DEVICE)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].unique().item() == 0.5 * 1.5 - 0.5


@runs_kernels
def test_triton_runs():
    assert lamb.kernels_work.__wrapped__(torch.device(DEVICE))


class OfTriton(Exception):
    """As its PTXASError and CompilationError, which come from none of Python's own."""


def try_out_raises(monkeypatch, error):
    from hpdm_core.training import lamb_kernels

    def broken(kernels):
        raise error

    monkeypatch.setattr(lamb_kernels.LambKernels, "try_out", broken)
    monkeypatch.setattr(lamb, "kernels_work", functools.cache(lamb.kernels_work.__wrapped__))
    monkeypatch.setattr(lamb, "fits_kernels", lambda *tensors: True)


@pytest.mark.parametrize("error", [ImportError("No module named 'triton'"), OfTriton("no such GPU\nmore"), OSError()])
def test_where_triton_does_not_run_torch_does_and_one_line_says_why(monkeypatch, caplog, error):
    try_out_raises(monkeypatch, error)
    params, optimizer = optimizers()[0]
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    (line,) = (record.getMessage() for record in caplog.records)
    assert (str(error).splitlines() or ["OSError"])[0] in line
    assert not optimizer._kernels
    assert params[0].isfinite().all()


def test_a_full_gpu_is_not_called_a_fault_of_triton(monkeypatch):
    try_out_raises(monkeypatch, torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        lamb.kernels_work(torch.device(DEVICE))


def test_ranks_agree_on_the_slower_way(monkeypatch, caplog):
    """One rank without Triton is enough: the replicas of the others would round otherwise."""
    try_out_raises(monkeypatch, None)
    monkeypatch.setattr(lamb, "_kernels_fail", lambda device: "")
    monkeypatch.setattr(lamb.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(lamb.dist, "all_reduce", lambda works, op: works.zero_() if op == lamb.dist.ReduceOp.MIN else 0)
    assert not lamb.kernels_work(torch.device(DEVICE))
    assert "another rank" in caplog.text


@runs_kernels
def test_a_copy_makes_its_own_kernels(monkeypatch):
    monkeypatch.setattr(lamb, "fits_kernels", lambda *tensors: True)
    copied = copy.deepcopy(optimizers()[0][1])
    for p in copied.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    copied.step()
    assert copied._kernels


def test_tensors_on_a_cpu_are_for_torch():
    assert not lamb.fits_kernels([torch.ones(3)])
