"""Where is a model's error? By level and amount of noise, on unseen clips: seconds, where samples take minutes.

    python -m benchmarks.noise --ckpt RUN --data STORE --num 64 --noise 0.3,1,3,10,30

A row is one level of nested patches with noise of so many units of pixel value, [-1, 1] wide, and all coarser levels
nearly clean, as in sampling. `error` is the mean square error of the clean estimate, `salient` the same over the pixels
that differ most from their clip's mean colour (--share of them), which are objects where the rest is background, and
`best constant` the error of shrinking each noisy pixel alone towards the mean of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.levels import hpdm_of
from benchmarks.machine import write_json
from hpdm_core.data.window import Batch
from hpdm_core.diffusion.process import corrupt
from hpdm_core.families.weights import LoadedModel, load_model
from hpdm_core.nn.devices import pick_device
from hpdm_core.nn.precision import autocast, matmul_precision
from hpdm_core.rng import BatchStreams
from hpdm_core.training.distributed import World
from hpdm_core.training.source import StoreSource

SEED = 7
"""Of the noise: another than training's."""
COARSE_NOISE = 0.01


@torch.no_grad()
def measure(model: LoadedModel, batch: Batch, level: int, noise: float, share: float) -> dict[str, Any]:
    """One row of the table."""
    family = hpdm_of(model)
    device, rows, forms = batch.labels.device, len(batch.positions), family.levels[: level + 1]
    streams = BatchStreams(SEED, batch.positions, device)
    clean = [batch.videos[f"level{i}"] for i in range(level + 1)]
    amounts = [COARSE_NOISE] * level + [noise]
    sigmas = [torch.full((rows,), a / form.scale, device=device) for a, form in zip(amounts, forms, strict=True)]
    eps = [streams.normal(f"noise/level{i}", x.shape[1:]) for i, x in enumerate(clean)]
    parts = zip(clean, eps, sigmas, forms, strict=True)
    noisy = [corrupt(x, e, sigma, form.scale) for x, e, sigma, form in parts]
    inputs = [form.network_input(u, sigma) for form, u, sigma in zip(forms, noisy, sigmas, strict=True)]
    z, coordinate = torch.stack(inputs), family.schedule.coordinate(torch.stack(sigmas))
    condition = family.batch_condition(batch, streams)
    tokens, mask = (None, None) if condition is None else condition
    latents, output = None, z
    for _ in range(2 if family.config.self_conditioning else 1):
        output, latents = family.denoiser(z, coordinate, batch.meta["offsets"], tokens, latents, mask_BM=mask)
    form, x, sigma, answer = forms[level], clean[level], sigmas[level], output[level].float()
    error = (form.denoised(noisy[level], answer, sigma) - x).square().mean(dim=1)
    wrong = (answer - form.target(x, eps[level], sigma)).square().mean()
    variance = float(x.var())
    return {
        "level": level,
        "noise": noise,
        "error": float(error.mean()),
        "salient": float(error[salient(x, share)].mean()),
        "best constant": variance * noise**2 / (variance + noise**2),
        "loss": float(form.weight(sigma[:1]) * wrong),
    }


def salient(x_BCTHW: Tensor, share: float) -> Tensor:
    """bool [B, T, H, W]: the `share` of pixels of all clips that are farthest from their clip's mean colour."""
    distance = (x_BCTHW - x_BCTHW.mean(dim=(2, 3, 4), keepdim=True)).square().mean(dim=1)
    return distance >= torch.quantile(distance.flatten()[:: max(1, distance.numel() // 10**6)], 1 - share)


def main() -> None:
    """Read one batch, measure every level and noise, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="run or weights file of an HPDM model")
    parser.add_argument("--data", type=Path, required=True, help="a store; of clips not trained on")
    parser.add_argument("--num", type=int, default=64, help="windows")
    parser.add_argument("--noise", type=lambda text: [float(n) for n in text.split(",")], default=[0.3, 1, 3, 10, 30])
    parser.add_argument("--share", type=float, default=0.05, help="of pixels that count as salient")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = pick_device(args.device)
    model = load_model(args.ckpt, device=str(device))
    family = hpdm_of(model)
    family.condition_drop = 0.0
    reading = model.config.data.model_copy(update={"workers": 0})
    source = StoreSource(args.data, model.config.model_copy(update={"data": reading}))
    view = family.view(family.phases()[-1].name)
    batches = source.batches(view, start=0, batch_size=args.num, micro_batch=args.num, world=World(device))
    batch = next(batches)
    precision = "bf16" if device.type == "cuda" else "fp32"
    rows = []
    with matmul_precision(precision), autocast(device, precision):
        for level in range(len(family.levels)):
            for noise in args.noise:
                rows.append(measure(model, batch, level, noise, args.share))
                print("  ".join(f"{k} {v:8.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    write_json(args.json, rows, args.device)


if __name__ == "__main__":
    main()
