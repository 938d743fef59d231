"""The job files of docs/scaling.md: what they start can train on as many ranks as they ask for."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from hpdm_core.families.registry import load_run_config
from hpdm_core.training.run import rank_rows

TEXT = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")


def block(kind):
    found = re.search(rf"```{kind}\n(#!/bin/bash|apiVersion)(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found[1] + found[2]


def slurm_job():
    """(its command's words, its ranks)"""
    text = block("bash").replace("\\\n", " ")
    numbers = {key: int(value) for key, value in re.findall(r"#SBATCH --([a-z-]+)=(\d+)$", text, re.MULTILINE)}
    (line,) = (line for line in text.splitlines() if line.startswith("srun "))
    assert f"--nproc-per-node={numbers['gpus-per-node']}" in line
    return shlex.split(line), numbers["nodes"] * numbers["gpus-per-node"]


def kubernetes_job():
    """(its command's words, its ranks)"""
    spec = yaml.safe_load(block("yaml"))["spec"]
    worker, elastic = spec["pytorchReplicaSpecs"]["Worker"], spec["elasticPolicy"]
    (container,) = worker["template"]["spec"]["containers"]
    assert elastic["minReplicas"] == elastic["maxReplicas"] == worker["replicas"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == elastic["nProcPerNode"]
    return container["command"], worker["replicas"] * elastic["nProcPerNode"]


@pytest.mark.parametrize("job", [slurm_job, kubernetes_job])
def test_the_batch_divides_among_the_ranks_of_the_job(job):
    words, ranks = job()
    words = words[words.index("hpdm_cli") + 1 :]
    assert words[0] == "train"
    overrides = tuple(value for flag, value in pairwise(words) if flag == "--set")
    train = load_run_config(words[words.index("--preset") + 1], overrides).train
    rows, micro = rank_rows(train.batch_size, train.micro_batch, ranks)
    assert rows * ranks == train.batch_size
    assert micro == train.micro_batch
