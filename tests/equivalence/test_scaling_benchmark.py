"""The scaling benchmark at toy size: its numbers exist, and one rank learns what two learn."""

from argparse import Namespace

import numpy as np
import pytest

from benchmarks.scaling import ROWS, cases, curve_case, losses, run_case, timings

TOY = Namespace(
    ranks=2, device="cpu", preset="hpdm-smoke", mini="hpdm-smoke", batch=2, micro=None, precision="fp32", compile=False,
    steps=2, curve_steps=4, rows=ROWS,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_rows_of_the_table(tmp_path):
    table = cases(TOY)
    assert [(case.name, case.ranks, case.batch) for case in table] == [
        ("one", 1, 2), ("apart", 2, 2), ("ddp", 2, 4), ("ddp-sync", 2, 4), ("fsdp", 2, 4), ("fsdp-kept", 2, 4),
    ]  # fmt: skip
    for case, runs in ((table[1], 2), (table[2], 1)):
        outs = run_case(case, tmp_path)
        assert len(outs) == runs
        row = timings(case, outs)
        assert row["checkpoint_gb"] > 0
        assert row["step_ms"] == max(row["steps_ms"]) == pytest.approx(4e3 / row["videos_per_s"])


def test_rows_in_several_passes():
    table = cases(Namespace(**{**vars(TOY), "batch": 8, "micro": 2, "rows": ["ddp"]}))
    assert [(case.batch, case.micro) for case in table] == [(16, 2)]
    assert {"train.batch_size=16", "train.micro_batch=2"} <= set(table[0].overrides)


def test_the_same_curve_on_one_and_two_ranks(tmp_path):
    one, two = (losses(*run_case(curve_case(TOY, ranks), tmp_path)) for ranks in (1, 2))
    assert len(one) == 4
    assert np.allclose(one, two, rtol=1e-4)
