"""One batch, however it is split (micro-batches, ranks, shards), makes the same step."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hpdm_core.errors import ConfigError
from hpdm_core.training.run import fit, rank_rows
from tests.support.toy import ToySource, read_log, toy_config

PROGRAM = Path(__file__).parents[1] / "support" / "toy.py"


def launch(run, num_ranks, *options, **variables):
    """Train the toy family in `num_ranks` processes over gloo; returns their exit codes and errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(num_ranks):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            **variables,
        }
        command = [sys.executable, str(PROGRAM), str(run), *options]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], errors


def assert_all_ended_well(codes, errors):
    """What a failed rank said last, whole: pytest would shorten a list of all."""
    said = [
        f"rank {rank} ended with {code}:\n{error[-3000:]}"
        for rank, (code, error) in enumerate(zip(codes, errors, strict=True))
        if code
    ]
    assert not said, "\n".join(said)


def assert_no_thread_is_left(errors):
    """Of the process groups: one that frees a tensor while Python shuts down ends the process with SIGABRT."""
    for error in errors:
        assert "gloo's threads at the end: 0" in error, error[-3000:]


def assert_same_run(one, other, step=6):
    """Losses, gradient norms and final weights agree to float rounding."""
    for a, b in zip(read_log(one), read_log(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["loss_levels"] == pytest.approx(b["loss_levels"], rel=1e-4)
    name = f"checkpoints/step_{step:08d}/weights.safetensors"
    first, second = load_file(one / name), load_file(other / name)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert (tensor - second[key]).abs().max() < 2e-4, key


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory):
    runs = {}
    for name in ("adamw", "lamb", "muon"):
        run = tmp_path_factory.mktemp(name) / "run"
        config = toy_config(max_steps=6, batch_size=8, optimizer={"name": name})
        fit(config, ToySource(), run, device="cpu")
        runs[name] = run
    return runs


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path, whole_batch, micro_batch):
    config = toy_config(max_steps=6, batch_size=8, micro_batch=micro_batch)
    fit(config, ToySource(), tmp_path / "run", device="cpu")
    assert_same_run(whole_batch["adamw"], tmp_path / "run")


@pytest.mark.parametrize(
    ("ranks", "optimizer", "parallel", "micro"),
    [
        (2, "adamw", "ddp", 2),
        (4, "adamw", "ddp", 1),
        (2, "muon", "ddp", 2),
        (4, "lamb", "fsdp", 2),
        (2, "lamb", "fsdp, kept", 2),
    ],
)
def test_many_ranks_equal_one(tmp_path, whole_batch, ranks, optimizer, parallel, micro):
    options = [
        "max_steps=6",
        "batch_size=8",
        f"micro_batch={micro}",
        f'optimizer={{"name": "{optimizer}"}}',
        f'parallel="{parallel.removesuffix(", kept")}"',
        f"fsdp_keep_weights={str(parallel.endswith('kept')).lower()}",
    ]
    codes, errors = launch(tmp_path / "run", ranks, *options)
    assert_all_ended_well(codes, errors)
    assert_same_run(whole_batch[optimizer], tmp_path / "run")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_kernels_on_shards_equal_torch_on_whole_weights(tmp_path, whole_batch, parallel):
    pytest.importorskip("triton")
    options = ["max_steps=6", "batch_size=8", "micro_batch=2", f'parallel="{parallel}"', 'optimizer={"name": "lamb"}']
    codes, errors = launch(tmp_path / "run", 2, *options, TRITON_INTERPRET="1")
    assert_all_ended_well(codes, errors)
    assert all("LAMB's kernels: True" in error and "torch's passes" not in error for error in errors)
    assert_same_run(whole_batch["lamb"], tmp_path / "run")


def test_muon_refuses_sharded_weights(tmp_path):
    codes, errors = launch(tmp_path / "run", 2, 'parallel="fsdp"', 'optimizer={"name": "muon"}')
    assert codes == [2, 2]
    assert "needs whole weight matrices" in errors[0]


def half_a_sharded_run(run):
    """Three of six steps on two ranks; returns the options of the run."""
    common = ["batch_size=8", "max_steps=6", "checkpoint_every_steps=3", 'optimizer={"name": "lamb"}']
    assert_all_ended_well(*launch(run, 2, 'parallel="fsdp"', *common))
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    return common


def test_a_sharded_run_continues_on_another_number_of_ranks(tmp_path, whole_batch):
    run = tmp_path / "run"
    half_a_sharded_run(run)
    config = toy_config(max_steps=6, batch_size=8, checkpoint_every_steps=3, optimizer={"name": "lamb"})
    result = fit(config, ToySource(), run, device="cpu")
    assert result.resumed
    assert_same_run(whole_batch["lamb"], run)


def test_a_sharded_run_continues_on_more_ranks(tmp_path, whole_batch):
    run = tmp_path / "run"
    codes, errors = launch(run, 4, 'parallel="fsdp"', *half_a_sharded_run(run))
    assert_all_ended_well(codes, errors)
    assert "world_size changed from 2 to 4: the run continues" in errors[0]
    assert_same_run(whole_batch["lamb"], run)


def test_roles_and_stopping_agree_over_ranks(tmp_path):
    """Adversarial roles under DDP, and a time limit that every rank obeys at the same step."""
    codes, errors = launch(tmp_path / "run", 2, 'model={"adversarial": true}', "delay=0.05", "time_limit=0.5")
    assert codes == [75, 75], errors
    assert_no_thread_is_left(errors)
    codes, errors = launch(tmp_path / "run", 2, 'model={"adversarial": true}')
    assert_all_ended_well(codes, errors)
    assert_no_thread_is_left(errors)
    alone = tmp_path / "alone"
    fit(toy_config({"adversarial": True}), ToySource(), alone, device="cpu")
    assert_same_run(alone, tmp_path / "run", step=20)


def test_batches_that_do_not_divide_are_refused():
    assert rank_rows(8, None, 2) == (4, 4)
    assert rank_rows(8, 2, 2) == (4, 2)
    assert rank_rows(8, 100, 4) == (2, 2)
    for case in ((8, None, 3), (8, 3, 2), (2, None, 4)):
        with pytest.raises(ConfigError, match="does not divide"):
            rank_rows(*case)
    with pytest.raises(ConfigError) as refused:
        rank_rows(768, 8, 64)
    assert "be 6 or 12" in str(refused.value.hint)
