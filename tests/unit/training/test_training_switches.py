"""Precision, checkpointed activations and compilation, applied from outside."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from hpdm_core.errors import ConfigError, EnvironmentProblem
from hpdm_core.training.distributed import pick_device
from hpdm_core.training.run import fit
from hpdm_core.training.switches import apply_switches, check_float8, computing
from tests.support.toy import ToyFamily, ToyModel, ToySource, read_log, toy_config


def test_switches_keep_every_name():
    plain = ToyFamily(ToyModel())
    switched = ToyFamily(ToyModel())
    apply_switches(switched, toy_config(compile=True, activation_checkpointing=True).train)
    assert list(plain.state_dict()) == list(switched.state_dict())
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in switched.named_parameters()]


def test_checkpointed_activations_run_the_block_twice_and_change_nothing(tmp_path):
    logs = []
    for switch in (False, True):
        run = tmp_path / str(switch)
        fit(toy_config(max_steps=4, activation_checkpointing=switch), ToySource(), run, device="cpu")
        logs.append(read_log(run))
    assert logs[0] == logs[1]

    family = ToyFamily(ToyModel())
    calls = []
    family.net.blocks[0].norm.register_forward_hook(lambda *_: calls.append(1))
    apply_switches(family, toy_config(activation_checkpointing=True).train)
    family.net(torch.randn(2, 5, 3), torch.zeros(2, dtype=torch.int64)).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        family.net(torch.randn(2, 5, 3), torch.zeros(2, dtype=torch.int64))
    assert len(calls) == 3


def test_a_family_without_blocks_cannot_be_compiled():
    family = ToyFamily(ToyModel())
    family.compile_units = tuple
    apply_switches(family, toy_config().train)
    with pytest.raises(ConfigError, match="no blocks"):
        apply_switches(family, toy_config(compile=True).train)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_losses_are_computed_in_the_precision_asked_for(precision, dtype):
    layer = nn.Linear(3, 3)
    with computing(toy_config(precision=precision).train, torch.device("cpu")):
        assert layer(torch.randn(2, 3)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_bf16_trains_near_fp32_and_keeps_fp32_weights(tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        fit(toy_config(precision=precision), ToySource(), run, device="cpu")
        losses.append([line["loss"] for line in read_log(run)])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1, abs=0.05)


def test_tf32_is_on_inside_the_run_alone(tmp_path):
    seen = []

    class Spy(ToySource):
        def batches(self, view, **where):
            seen.append(torch.get_float32_matmul_precision())
            return super().batches(view, **where)

    before = torch.get_float32_matmul_precision()
    for precision in ("tf32", "fp32"):
        fit(toy_config(max_steps=1, precision=precision), Spy(), tmp_path / precision, device="cpu")
    assert seen == ["high", "highest"]
    assert torch.get_float32_matmul_precision() == before


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None) == pick_device("auto")
    with pytest.raises(EnvironmentProblem, match="no device is called"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="cuda:0"):
            pick_device("cuda")


@pytest.mark.parametrize("switch", [{"residual": "bf16"}, {"float8": True}])
def test_low_precision_switches_need_bf16(switch):
    toy_config(precision="bf16", **switch)
    with pytest.raises(ValueError, match="needs precision: bf16"):
        toy_config(precision="tf32", **switch)


def test_float8_is_refused_where_no_layer_is_wide():
    config = toy_config(precision="bf16", float8=True)
    with pytest.raises(ConfigError, match="nothing to do"):
        apply_switches(ToyFamily(config.model), config.train)


@pytest.mark.parametrize(("capability", "has_it"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_float8_is_refused_by_gpus_without_it(monkeypatch, capability, has_it):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    with nullcontext() if has_it else pytest.raises(ConfigError, match=r"8\.9 or later, which Card is not"):
        check_float8(torch.device("cuda"))
    check_float8(torch.device("cpu"))


def test_a_cuda_graph_is_refused_on_the_cpu(tmp_path):
    with pytest.raises(ConfigError, match="needs a GPU"):
        fit(toy_config(max_steps=1, cuda_graph=True), ToySource(), tmp_path / "run", device="cpu")


def test_a_cuda_graph_if_there_can_be_one(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(toy_config(max_steps=1, cuda_graph="auto"), ToySource(), tmp_path / "run", device="cpu")
    assert "do not run as a CUDA graph: it needs a GPU" in caplog.text
    assert "cuda_graph: auto" in (tmp_path / "run/config.yaml").read_text()
