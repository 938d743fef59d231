"""Compiled blocks stay whole when DDP wraps the family: gradients' buckets cut no graph."""

import os
import subprocess
import sys

SCRIPT = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.train_step import random_batch
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.nn.devices import compile_units
from hpdm_core.rng import BatchStreams

graphs = []
def counting(graph, inputs):
    graphs.append(graph)
    return graph.forward

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
config = load_run_config("demo", ("model.condition.num_classes=2", "train.precision=fp32"))
for wrapped in (False, True):
    torch.compiler.reset()
    graphs.clear()
    family = build_family(config)
    units = family.compile_units()
    for unit in units:
        # As `compile_units` does, with a compiler that only counts.
        unit.compile = lambda unit=unit, **options: torch.nn.Module.compile(unit, backend=counting, **options)
    compile_units(units)
    module = DistributedDataParallel(family, gradient_as_bucket_view=True) if wrapped else family
    batch = random_batch(family, 2, "cpu")
    module(family.phases()[-1].roles[0].name, batch, BatchStreams(0, batch.positions, "cpu")).total.backward()
    print(len(graphs), len(units))
dist.destroy_process_group()
"""


def test_blocks_compile_to_one_graph_each_with_and_without_ddp():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    alone, wrapped = (tuple(map(int, line.split())) for line in run.stdout.splitlines()[-2:])
    assert alone == wrapped == (6, 6)
