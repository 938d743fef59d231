"""A family of a few hundred weights and a source of made-up clips, for tests of the training loop.

Also a program: `python toy.py RUN KEY=VALUE...` trains the toy family in a process that tests can kill.
"""

import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpdm_core.config.schema import DataSection, ModelSection, RunConfig, SampleSection, TrainSection
from hpdm_core.data.window import Batch, Cut, Window
from hpdm_core.errors import HpdmError
from hpdm_core.families.base import Family, Losses, Phase, Plateau, Role
from hpdm_core.families.registry import FAMILIES
from hpdm_core.rng import numpy_stream


class ToyModel(ModelSection):
    width: int = 8
    adversarial: bool = False
    two_phases: bool = False
    bad_position: int | None = None
    plateau: tuple[int, int] | None = None


class ToySample(SampleSection):
    pass


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(torch.nn.functional.gelu(self.norm(x)))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.table = nn.Embedding(4, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.outer = nn.Linear(width, 3)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x, labels):
        h = self.inner(x) + self.table(labels)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.outer(h) * self.scale


class ToyView:
    frames = 2
    sizes = ((4, 4),)

    def cut(self, start, rng):
        return Cut({"clip": Window((4, 4), start, 1, 2, 0, 0, 4, 4)}, {})


class ToyFamily(Family):
    """Learns to predict clean pixels from noisy ones; `critic` is a second network for adversarial roles."""

    name = "toy"
    model_section = ToyModel
    sample_section = ToySample

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.net = Net(model.width)
        self.critic = nn.Linear(3, 1)

    def phases(self):
        joint = (Role("net", ("net",)),)
        if self.model.adversarial:
            joint = (
                Role("net", ("net",), active=lambda step: step % 3 != 2),
                Role("critic", ("critic",), active=lambda step: step % 3 == 2),
            )
        if self.model.plateau is not None:
            every, patience = self.model.plateau
            rule = Plateau(lambda batch: (batch.videos["clip"], batch.videos["clip"]), every, patience, clips=2)
            return (Phase("first", joint, plateau=rule), Phase("second", joint, steps=2))
        if self.model.two_phases:
            return (Phase("warm", (Role("critic", ("critic",)),), steps=3, batch_size=2), Phase("joint", joint))
        return (Phase("joint", joint),)

    def view(self, phase):
        return ToyView()

    def losses(self, role, batch, streams):
        x = batch.videos["clip"].flatten(2).transpose(1, 2)
        noise = streams.normal("noise", x.shape[1:])
        if role == "critic":
            total = (self.critic(x) - noise[..., :1]).square().mean()
            return Losses(total, {"critic": total.detach()})
        sigma = streams.uniform("sigma", 1)[..., None]
        error = (self.net(x + sigma * noise, batch.labels) - x).square()
        if self.model.bad_position in batch.positions:
            error = error * torch.where(torch.tensor(True), torch.nan, 1.0)
        dark, bright = error[:, :16].mean() / 2, error[:, 16:].mean() / 2
        parts = {"dark": dark.detach(), "bright": bright.detach()}
        return Losses(dark + bright, parts, {"dark": dark, "bright": bright})

    def outline(self, request, options):
        raise NotImplementedError

    def plan(self, request, options):
        raise NotImplementedError

    def compile_units(self):
        return list(self.net.blocks)


FAMILIES["toy"] = f"{__name__}:ToyFamily"


class ToySource:
    """Endless clips; item k is a function of k. `delay` makes steps slow enough to be killed in the middle."""

    classes = ("a", "b", "c", "d")
    fingerprint = "toy"
    fps = None

    def __init__(self, delay=0.0):
        self.delay = delay

    def batches(self, view, *, start, batch_size, micro_batch, world):
        position = start
        while True:
            share = batch_size // world.size
            mine = range(position + world.rank * share, position + (world.rank + 1) * share)
            for first in range(0, share, micro_batch):
                time.sleep(self.delay)
                yield _batch(mine[first : first + micro_batch]).to(world.device)
            position += batch_size


def _batch(positions):
    rngs = [numpy_stream(7, "toy", p) for p in positions]
    videos = torch.from_numpy(np.stack([r.standard_normal((3, 2, 4, 4)) for r in rngs]).astype(np.float32))
    labels = torch.tensor([int(r.integers(4)) for r in rngs])
    return Batch({"clip": videos}, {}, labels, [""] * len(positions), list(positions))


def toy_config(model=None, **train):
    """A run of the toy family: 20 steps of batch 4 with AdamW unless told otherwise."""
    settings = {
        "max_steps": 20,
        "batch_size": 4,
        "seed": 3,
        "log_every_steps": 1,
        "checkpoint_every_steps": 5,
        "optimizer": {"name": "adamw", "lr": 1e-2, "warmup_steps": 4},
        "ema": {"kind": "power", "widths": [0.05, 0.10]},
    }
    for key, value in train.items():
        old = settings.get(key)
        settings[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    if "max_videos" in train:
        del settings["max_steps"]
    return RunConfig(
        family="toy",
        model=ToyModel(**(model or {})),
        data=DataSection(dataset="toy"),
        train=TrainSection.model_validate_json(json.dumps(settings)),
        sample=ToySample(),
    )


def read_log(run):
    """The log without what depends on the clock or the machine."""
    volatile = ("seconds", "videos_per_s", "memory_gib")
    lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in volatile} for line in lines]


def state_hash(checkpoint):
    """One hash over every tensor a run continues from and over the sampled weights."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for file in sorted(Path(checkpoint).rglob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(f"{file.name}{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def slow_down_disk(seconds):
    """Make every checkpoint take so much longer to write."""
    from hpdm_core.training import checkpoint

    seal = checkpoint._seal

    def slow_seal(*args):
        time.sleep(seconds)
        seal(*args)

    checkpoint._seal = slow_seal if seconds else seal


def main(argv):
    from hpdm_core.training import lamb
    from hpdm_core.training.run import fit

    logging.basicConfig(level=logging.INFO)
    options = dict(arg.split("=", 1) for arg in argv[1:])
    delay = float(options.pop("delay", "0"))
    limit = float(options.pop("time_limit", "0")) or None
    device = options.pop("device", "cpu")
    slow_down_disk(float(options.pop("slow_disk", "0")))
    if os.environ.get("TRITON_INTERPRET") == "1":
        lamb.fits_kernels = lambda *tensors: True
    options = {key: json.loads(value) for key, value in options.items()}
    model = options.pop("model", None)
    code = 0
    try:
        fit(toy_config(model, **options), ToySource(delay), Path(argv[0]), time_limit=limit, device=device)
    except HpdmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    if "RANK" in os.environ:
        print(f"LAMB's kernels: {'hpdm_core.training.lamb_kernels' in sys.modules}", file=sys.stderr)
        print(f"gloo's threads at the end: {sum('gloo' in name for name in thread_names())}", file=sys.stderr)
    return code


def thread_names():
    """Of this process, as Linux shows them; those of libraries too."""
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
