"""Claims about projected-latent and matryoshka diffusion that training must show, at the smallest size that can.

    python -m benchmarks.claims --family pvdm --json results/claims_pvdm.json
    python -m benchmarks.claims --family mdm --json results/claims_mdm.json
    python -m benchmarks.claims --family mdm --toy                            # a CPU, nothing learned

A quarter of an hour of two cores:

    python -m benchmarks.claims --family mdm --only pretraining --narrow --steps 160 --batch 16 --clips 1000 --num 32

Procedural clips of 16x32x32 (pairs of 32 frames for PVDM) in which shapes move over still backgrounds, a few seeds,
equal steps for all arms of a claim, held-out clips for every number. A claim holds if it does for every seed; what
failed is printed as it is.

PVDM  planes      three planes reconstruct moving clips 2 dB better than the one without time, still ones alike (0.5 dB)
      previous    noise is predicted best given the true clip before, then given none, then given another's
      joins       clips made one from the other join smoothly (1.5 times the change inside at most), others do not
MDM   low-loss    losses at low resolutions speed up the high one: a lower loss there at equal steps
      agreement   resolutions sampled together agree (25 dB), more so with training, though their noise is independent
      pretraining the more steps the inner parts were trained alone, the lower the outer loss after equal steps of all
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import write_json
from hpdm_core.config.schema import RunConfig
from hpdm_core.data.window import Batch
from hpdm_core.families.base import Family
from hpdm_core.families.mdm.config import MdmSample
from hpdm_core.families.pvdm.config import PvdmSample
from hpdm_core.families.pvdm.family import PvdmFamily
from hpdm_core.families.pvdm.views import ClipPair
from hpdm_core.families.registry import build_family, load_run_config
from hpdm_core.metrics.seams import join_ratio
from hpdm_core.nn.precision import matmul_precision
from hpdm_core.rng import BatchStreams
from hpdm_core.sampling.engine import run_plan
from hpdm_core.sampling.stage import Request
from hpdm_core.training.distributed import World
from hpdm_core.training.optim import RoleOptimizer, learning_rate
from hpdm_core.training.source import StoreSource
from hpdm_core.training.switches import computing
from hpdm_core.video import to_uint8

SIDE, FRAMES = 32, 16
Row = dict[str, Any]

COMMON = ("train.optimizer.warmup_steps=50", "train.compile=false", "data.workers=4")
PVDM = (
    *COMMON, f"model.video=[{FRAMES},{SIDE},{SIDE}]", "model.condition.kind=none", "model.training.ae_gan=null",
    "model.training.previous_share=0.5", "model.autoencoder.depth=2", "model.denoiser.blocks=1",
    "model.denoiser.multipliers=[1,2]",
)  # fmt: skip
TOY = ("train.precision=fp32", "data.workers=0")
MDM = (*COMMON, "model.condition.kind=none", 'model.phases=[{"name":"full","levels":3}]')


class Bench:
    """The stores, the device and the loop of one call."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.device = args, folder, torch.device(args.device)
        for name, clips, seed in (("train", args.clips, 1), ("test", args.num, 2)):
            shape = ["--num", str(clips), "--frames", str(2 * FRAMES), "--size", f"{SIDE}x{SIDE}"]
            command = ["prepare-data", "--source", "synthetic", "--style", "plain", *shape]
            command += ["--seed", str(seed), "--out", str(folder / name)]
            subprocess.run([sys.executable, "-m", "hpdm_cli", *command], check=True, stdout=subprocess.DEVNULL)

    def family(self, config: RunConfig, seed: int) -> Family:
        """A fresh family, the same for all arms of a seed."""
        torch.manual_seed(seed)
        return build_family(config).to(self.device).train()

    def batches(self, family: Family, phase: str, config: RunConfig, split: str, rows: int) -> Iterator[Batch]:
        """Endless batches of what `phase` reads."""
        source = StoreSource(self.folder / split, config)
        return source.batches(family.view(phase), start=0, batch_size=rows, micro_batch=rows, world=World(self.device))

    def held_out(self, family: Family, phase: str, config: RunConfig) -> Batch:
        """One batch of clips that no arm is trained on."""
        return next(self.batches(family, phase, config, "test", self.args.num))

    def train(
        self, family: Family, phase_name: str, config: RunConfig, steps: int, seed: int,
        measure: Callable[[float], None] | None = None,
    ) -> None:  # fmt: skip
        """Train one phase; `measure` is told the share done after a quarter, a half and all of the steps."""
        phase = next(p for p in family.phases() if p.name == phase_name)
        (role,) = phase.roles
        trained = {id(p) for name in role.modules for p in family.get_submodule(name).parameters()}
        for parameter in family.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        optimizer = RoleOptimizer(family, role, config.train.optimizer)
        config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        batches = self.batches(family, phase_name, config, "train", config.train.batch_size)
        marks = {max(1, round(steps * share)): share for share in (0.25, 0.5, 1.0)}
        for step in range(steps):
            batch = next(batches)
            optimizer.zero_grad()
            with computing(config.train, self.device):
                losses = family(role.name, batch, BatchStreams(seed, batch.positions, self.device))
            losses.total.backward()
            norm = optimizer.gradient_norm()
            rate = learning_rate(optimizer.section, step, steps)
            optimizer.step(rate, norm, (~torch.isfinite(norm)).float())
            if measure is not None and step + 1 in marks:
                measure(marks[step + 1])


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over rows of the peak signal to noise ratio of pixels in [-1, 1], dB."""
    error = (a.float() - b.float()).square().flatten(1).mean(dim=1).clamp_min(1e-10)
    return (10 * (4 / error).log10()).mean().item()


def pvdm_rows(bench: Bench, seed: int) -> list[Row]:
    """The three claims about projected latents, from two autoencoders and one denoiser."""
    args = bench.args
    tiny = ("model.autoencoder.width=32", "model.denoiser.width=16", *TOY) if args.toy else ()
    given = (f"train.max_steps={args.steps}", f"train.batch_size={args.batch}")
    config = load_run_config("pvdm-mini", (*PVDM, *tiny, *given))
    rows: list[Row] = []
    quality: dict[str, dict[str, float]] = {}
    for arm in ("xy only", "three planes"):
        family = bench.family(config, seed)
        assert isinstance(family, PvdmFamily)
        rows_hw, columns_hw = family.config.planes.shapes[0]
        kept = torch.arange(family.config.planes.num_cells, device=bench.device) < rows_hw * columns_hw
        encoder = family.autoencoder.encoder
        if arm == "xy only":
            encoder.register_forward_hook(lambda module, given, out, kept=kept: out * kept)
        bench.train(family, "ae", config, args.steps, seed)
        clips = bench.held_out(family, "ae", config).videos["clip"]
        still = clips[:, :, :1].expand_as(clips)
        with torch.no_grad(), computing(config.train, bench.device):
            quality[arm] = {n: psnr(family.autoencoder(v), v) for n, v in (("moving", clips), ("still", still))}
    gain = quality["three planes"]["moving"] - quality["xy only"]["moving"]
    apart = quality["three planes"]["still"] - quality["xy only"]["still"]
    rows.append({"claim": "planes", "seed": seed, "holds": gain >= 2 and apart >= -0.5,
                 "values": {"gain moving dB": gain, "gain still dB": apart,
                            "three planes moving dB": quality["three planes"]["moving"]}})  # fmt: skip
    bench.train(family, "ldm", config, 2 * args.steps, seed)
    family.eval()
    return [*rows, previous_row(bench, family, config, seed), joins_row(bench, family, seed)]


@torch.no_grad()
def previous_row(bench: Bench, family: PvdmFamily, config: RunConfig, seed: int) -> Row:
    """The error of predicted noise given the true clip before, none, and another video's."""
    view, rows = family.view("ldm"), bench.args.num
    assert isinstance(view, ClipPair)
    # Every row shows the second half of a video, and what came before it.
    always = replace(view, conditional=1.0)
    source = StoreSource(bench.folder / "test", config)
    batch = next(source.batches(always, start=0, batch_size=rows, micro_batch=rows, world=World(bench.device)))
    z, previous = family.encode_pair(batch.videos["clip"], batch.videos["previous"], batch.meta["conditional"])
    streams, values = BatchStreams(seed, batch.positions, bench.device), {}
    eps = streams.normal("noise", z.shape[1:])
    given = {"true": previous, "none": torch.zeros_like(previous), "another's": previous.roll(1, 0)}
    for name, condition in given.items():
        errors = []
        for time_share in (0.1, 0.3, 0.5):
            sigma = family.schedule.draw(torch.full((len(z),), time_share, device=bench.device))
            noisy = family.form.network_input(z + sigma[:, None, None] * eps, sigma)
            with computing(config.train, bench.device):
                output = family.denoiser(noisy, condition, family.schedule.coordinate(sigma))
            errors.append((output - eps).square().mean().item())
        values[name] = float(np.mean(errors))
    holds = values["true"] < values["none"] < values["another's"]
    return {"claim": "previous", "seed": seed, "holds": holds, "values": values}


@torch.no_grad()
def joins_row(bench: Bench, family: PvdmFamily, seed: int) -> Row:
    """The change at joins over the change inside clips, of chained clips and of independent ones."""
    count, clips = min(16, bench.args.num), 4
    seeds = tuple(range(count))
    options = PvdmSample(steps=(bench.args.sample_steps,), chunk=count)
    request = Request(seeds, frames=clips * FRAMES, device=bench.device)
    chained = to_uint8(run_plan(family.plan(request, options), seeds, bench.device, None)).cpu().numpy()
    apart = np.concatenate([np.roll(chained[:, :FRAMES], shift, axis=0) for shift in range(clips)], axis=1)
    joins = tuple(range(FRAMES, clips * FRAMES, FRAMES))
    values = {name: float(np.mean([join_ratio(v, joins) for v in videos]))
              for name, videos in (("chained", chained), ("independent", apart))}  # fmt: skip
    holds = values["chained"] <= 1.5 < values["independent"]
    return {"claim": "joins", "seed": seed, "holds": holds, "values": values}


def mdm_config(args: argparse.Namespace, steps: int, *changes: str) -> RunConfig:
    """The small matryoshka model at this benchmark's size."""
    levels = load_run_config("mdm-mini").model.model_dump(mode="json")["levels"]
    for level, side in zip(levels, (SIDE // 4, SIDE // 4, SIDE), strict=True):
        level["size"] = [side, side]
        level["channels"] = [32] * len(level["channels"]) if args.narrow else level["channels"]
    size = (f"model.levels={json.dumps(levels)}", f"train.max_steps={steps}", f"train.batch_size={args.batch}")
    return load_run_config("mdm-mini", (*MDM, *size, *changes, *(TOY if args.toy else ())))


def held_out_losses(bench: Bench, family: Family, config: RunConfig, seed: int) -> dict[str, float]:
    """The loss of every resolution on held-out clips."""
    batch, training = bench.held_out(family, "full", config), family.training
    family.eval()
    with torch.no_grad(), computing(config.train, bench.device):
        losses = family.losses("full", batch, BatchStreams(seed, batch.positions, bench.device))
    family.train(training)
    return {name: value.item() for name, value in losses.parts.items()}


def nested_rows(bench: Bench, seed: int) -> list[Row]:
    """The two claims about nested resolutions, from two trainings of one network."""
    args = bench.args
    high: dict[str, dict[str, float]] = {"with": {}, "without": {}}
    agreement: dict[str, dict[str, float]] = {}
    for arm, weights in (("with", "null"), ("without", "[0.0,0.0,1.0]")):
        config = mdm_config(args, args.steps, f"model.level_weights={weights}")
        family = bench.family(config, seed)

        def measure(share: float, arm: str = arm, family: Family = family, config: RunConfig = config) -> None:
            high[arm][f"{share:.0%}"] = held_out_losses(bench, family, config, seed)["level2"]
            if arm == "with":
                family.eval()
                agreement[f"{share:.0%}"] = agreements(bench, family)
                family.train()

        bench.train(family, "full", config, args.steps, seed, measure)
    losses = {f"{arm} at {share}": value for arm, found in high.items() for share, value in found.items()}
    low = {"claim": "low-loss", "seed": seed, "holds": high["with"]["100%"] < high["without"]["100%"], "values": losses}
    first, last = agreement["25%"], agreement["100%"]
    agree = last["spatial"] >= 25 and last["spatial"] > last["chance"] + 3 and last["spatial"] >= first["spatial"]
    values = {f"{name} dB at {share}": value for share, found in agreement.items() for name, value in found.items()}
    return [low, {"claim": "agreement", "seed": seed, "holds": agree, "values": values}]


def pretraining_row(bench: Bench, seed: int) -> Row:
    """The loss of the large clip after equal steps of the whole nest, for more and more steps of its inner parts."""
    steps = max(2, bench.args.steps // 2)
    phases = json.dumps([{"name": name, "levels": 1 + i} for i, name in enumerate(("low", "mid", "full"))])
    config = mdm_config(bench.args, steps, f"model.phases={phases}")
    losses: dict[str, float] = {}
    for before in (0, steps, 2 * steps):
        family = bench.family(config, seed)
        for phase in ("low", "mid"):
            if before:
                bench.train(family, phase, config, before, seed)
        bench.train(family, "full", config, steps, seed)
        losses[f"after {before} steps"] = held_out_losses(bench, family, config, seed)["level2"]
    none, some, more = losses.values()
    return {"claim": "pretraining", "seed": seed, "holds": more < some < none, "values": losses}


def mdm_rows(bench: Bench, seed: int) -> list[Row]:
    """All claims of matryoshka diffusion, or the one that was asked for."""
    rows = [] if bench.args.only == "pretraining" else nested_rows(bench, seed)
    return rows if bench.args.only == "nested" else [*rows, pretraining_row(bench, seed)]


def agreements(bench: Bench, family: Family) -> dict[str, float]:
    """PSNR of the pooled large clip and the small one, of its frame 0 and the image, and of two different samples."""
    count = min(16, bench.args.num)
    seeds = tuple(range(count))
    videos = []
    for level in range(3):
        options = MdmSample(steps=(bench.args.sample_steps,), level=level, chunk=count)
        plan = family.plan(Request(seeds, device=bench.device), options)
        videos.append(run_plan(plan, seeds, bench.device, None))
    pooled = F.avg_pool3d(videos[2], (1, 4, 4))
    return {
        "spatial": psnr(pooled, videos[1]), "frame 0": psnr(videos[1][:, :, :1], videos[0]),
        "chance": psnr(pooled, videos[1].roll(1, 0)),
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    """Every number's mean and spread over the seeds, and whether the claim held for all of them."""
    lines = []
    for claim in dict.fromkeys(row["claim"] for row in rows):
        own = [row for row in rows if row["claim"] == claim]
        lines.append(f"{claim}: {'holds' if all(r['holds'] for r in own) else 'DOES NOT HOLD'} "
                     f"({sum(r['holds'] for r in own)} of {len(own)} seeds)")  # fmt: skip
        for name in own[0]["values"]:
            found = np.array([row["values"][name] for row in own])
            spread = f" ± {found.std(ddof=1):.4g}" if len(found) > 1 else ""
            lines.append(f"  {name:24s} {found.mean():10.4g}{spread}")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("pvdm", "mdm"), required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="for seeds on several GPUs: one command each")
    parser.add_argument("--steps", type=int, default=800, help="of each arm (a PVDM denoiser takes twice as many)")
    parser.add_argument("--clips", type=int, default=2000, help="procedural training clips")
    parser.add_argument("--num", type=int, default=64, help="held-out clips")
    parser.add_argument("--sample-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=("nested", "pretraining"), help="of MDM: the first two claims, or the last")
    parser.add_argument("--narrow", action="store_true", help="MDM with 32 channels everywhere, for a CPU")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.toy:
        args.seeds, args.steps, args.clips, args.num, args.sample_steps = 1, 4, 4, 2, 2
        args.batch, args.narrow = 2, True
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, matmul_precision("bf16"):
        bench = Bench(args, Path(folder))
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            started = time.perf_counter()
            found = (pvdm_rows if args.family == "pvdm" else mdm_rows)(bench, seed)
            seconds = time.perf_counter() - started
            rows += [{**row, "steps": args.steps, "seconds": seconds} for row in found]
            print(f"seed {seed}: {seconds:.0f} s", flush=True)
            write_json(args.json, rows, args.device)
    print(table(rows))


if __name__ == "__main__":
    main()
