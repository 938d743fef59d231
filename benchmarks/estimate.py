"""What `hpdm estimate` says beside what was measured: the tables of docs/scaling.md. Needs no GPU.

    python -m benchmarks.estimate --json estimate.json            # four minutes on two cores
    python -m benchmarks.estimate --tables training --only L      # rows whose name begins so

The measured numbers are those of docs/results.md and docs/scaling.md: training on an H200, or an H100 where it says so,
all else on H100s. With --json, rows that the file holds already, from the same commit and machine, are not computed
again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import stored_rows, write_json
from hpdm_core.families.registry import load_run_config
from hpdm_core.training.estimate import GIB, estimate
from hpdm_core.training.measured import CALIBRATION, STEPS, WORKSPACE, MeasuredStep
from hpdm_core.training.rehearsal import Rehearsal


@dataclass(frozen=True)
class Step:
    """The measured peak of a training step on `batch` videos, in the first role of `phase` (empty: the last one)."""

    name: str
    preset: str
    precision: str
    mode: str
    batch: int
    gib: float
    overrides: tuple[str, ...] = ()
    phase: str = ""
    averages: bool = True
    note: str = "H100"

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides of the preset."""
        return (f"train.precision={self.precision}", *self.overrides)


@dataclass(frozen=True)
class Ranks:
    """The measured peak of one of two GPUs."""

    parallel: str
    rows: int
    micro_batch: int
    gib: float

    @property
    def name(self) -> str:
        """How the ranks share the model."""
        return self.parallel

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides of the preset."""
        own = {"precision": "bf16", "parallel": self.parallel, "micro_batch": self.micro_batch}
        return tuple(f"train.{key}={value}" for key, value in {**own, "batch_size": 2 * self.rows}.items())


@dataclass(frozen=True)
class Video:
    """The measured time and peak of sampling one video in bf16."""

    preset: str
    setting: str
    mode: str
    seconds: float
    gib: float
    note: str = ""

    @property
    def name(self) -> str:
        """Preset and setting."""
        return f"{self.preset} {self.setting}".strip()

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides of the preset."""
        graphs, compiled = (str(word in self.mode).lower() for word in ("graphs", "compiled"))
        return (
            "sample.precision=bf16",
            f"sample.graphs={graphs}",
            f"sample.compile={compiled}",
            *SETTINGS[self.setting],
        )


SETTINGS = {
    "": (),
    "--fast": ("sample.steps=[12,6,3]", "sample.overlap=none"),
    "the paper's": ("sample.steps=[128,64,32]", "sample.solver=[heun,euler]", "sample.phases=together"),
}
STREAMS = ("train.residual=bf16",)
FLOAT8 = (*STREAMS, "train.float8=true")
WHOLE = ("train.bf16_attention=whole",)

H100_STEPS = (
    Step("S, streams in bf16", "ucf101-s", "bf16", "compiled", 24, 46.9, STREAMS),
    Step("L, streams in bf16", "ucf101-l", "bf16", "compiled", 16, 61.1, STREAMS),
    Step("M, attention layers in bf16", "ucf101-m", "tf32", "compiled", 16, 65.1, WHOLE),
    Step("S, attention layers in bf16", "ucf101-s", "tf32", "compiled", 16, 52.75, WHOLE),
    Step("L, attention layers in bf16", "ucf101-l", "tf32", "compiled", 8, 50.23, WHOLE),
    Step("M, streams in bf16", "ucf101-m", "bf16", "compiled", 24, 59.67, STREAMS),
    Step("M, streams in bf16", "ucf101-m", "bf16", "compiled", 28, 69.14, STREAMS),
    Step("M, streams in bf16, float8", "ucf101-m", "bf16", "compiled", 24, 56.21, FLOAT8),
    Step("M, streams in bf16, float8", "ucf101-m", "bf16", "compiled", 32, 73.93, FLOAT8),
    Step("S, streams in bf16, float8", "ucf101-s", "bf16", "compiled", 24, 43.46, FLOAT8),
    Step("S, streams in bf16", "ucf101-s", "bf16", "compiled, graph", 1, 3.66, STREAMS),
    Step("M, streams in bf16", "ucf101-m", "bf16", "compiled, graph", 1, 5.56, STREAMS),
    Step("L, streams in bf16", "ucf101-l", "bf16", "compiled, graph", 1, 11.71, STREAMS),
    *(
        Step(f"PVDM-{size.upper()}, {part}", f"pvdm-ucf101-{size}", "tf32", "eager", batch, gib, (), phase, False)
        for size, part, phase, batch, gib in (
            ("s", "autoencoder", "ae", 7, 14.22),
            ("s", "autoencoder", "ae", 16, 30.82),
            ("s", "denoiser", "ldm", 7, 5.58),
            ("s", "denoiser", "ldm", 16, 6.49),
            ("l", "autoencoder", "ae", 16, 32.30),
            ("l", "denoiser", "ldm", 7, 10.01),
            ("l", "denoiser", "ldm", 16, 10.92),
        )
    ),
)
RANKS = (Ranks("ddp", 12, 12, 37.30), Ranks("fsdp", 12, 12, 35.48), Ranks("fsdp", 24, 12, 36.20))
VIDEOS = (
    Video("ucf101-m", "", "graphs", 1.75, 8.88),
    Video("ucf101-m", "", "eager", 2.06, 7.93),
    Video("ucf101-m", "", "compiled, graphs", 1.32, 7.65, "calibrated"),
    Video("ucf101-m", "", "compiled", 1.56, 6.41, "calibrated"),
    Video("ucf101-m", "--fast", "graphs", 0.47, 5.3),
    Video("ucf101-m", "--fast", "eager", 0.58, 5.0),
    Video("ucf101-m", "--fast", "compiled, graphs", 0.37, 4.4),
    Video("ucf101-m", "--fast", "compiled", 0.46, 3.8),
    Video("ucf101-m", "the paper's", "eager", 12.8, 11.6),
    Video("ucf101-m", "the paper's", "compiled", 9.47, 9.2),
    Video("ucf101-l", "", "graphs", 2.40, 10.73),
    Video("ucf101-l", "", "compiled, graphs", 1.96, 9.50),
    Video("pvdm-ucf101-l", "", "graphs", 5.99, 3.07),
    Video("mdm-ucf101", "", "graphs", 17.4, 5.10),
)


def measured_step(row: MeasuredStep) -> Step:
    """A row that speeds are taken from, as the others here."""
    mode, note = "compiled" if row.compiled else "eager", "calibrated" if row in CALIBRATION else ""
    attention = ("train.bf16_attention=true",) if row.bf16_attention else ()
    changes = ", ".join(change.removeprefix("model.") for change in row.overrides)
    name = row.preset.removeprefix("ucf101-").upper() + (f", {changes}" if changes else "")
    return Step(name, row.preset, row.precision, mode, row.batch, row.gib, (*attention, *row.overrides), note=note)


def step_row(row: Step) -> dict[str, Any]:
    """Measured and estimated peak."""
    rehearsal = Rehearsal(load_run_config(row.preset, row.settings))
    phase = next(p for p in reversed(rehearsal.family.phases()) if row.phase in ("", p.name))
    cost = rehearsal.step(phase, phase.roles[0], row.batch, row.batch, resident=False)
    kept = 0 if row.averages else cost.peak["averages"]
    return {**asdict(row), **errors(gib=(row.gib, (cost.bytes + WORKSPACE - kept) / GIB))}


def ranks_row(row: Ranks) -> dict[str, Any]:
    """Measured and estimated peak of one of two GPUs."""
    found = estimate(load_run_config("ucf101-m", row.settings), gpus=2)
    return {**asdict(row), **errors(gib=(row.gib, found.peak.total_bytes / GIB))}


def video_row(row: Video) -> dict[str, Any]:
    """Measured and estimated time and peak of sampling."""
    found = estimate(load_run_config(row.preset, row.settings))
    seconds, gib = sum(stage.seconds for stage in found.sampling), found.sampling_bytes / GIB
    return {**asdict(row), **errors(seconds=(row.seconds, seconds), gib=(row.gib, gib))}


def errors(**pairs: tuple[float, float]) -> dict[str, float]:
    """By name, (measured, estimated) with what the estimate is off by, in percent."""
    found: dict[str, float] = {}
    for name, (measured, estimated) in pairs.items():
        found |= {name: measured, f"{name}_estimated": round(estimated, 3)}
        found[f"{name}_error"] = round(100 * (estimated / measured - 1), 1)
    return found


TABLES: dict[str, tuple[Sequence[Any], Any]] = {
    "training": ((*map(measured_step, STEPS), *H100_STEPS), step_row),
    "ranks": (RANKS, ranks_row),
    "sampling": (VIDEOS, video_row),
}


def line(row: dict[str, Any]) -> str:
    """One row of a Markdown table."""
    labels = [str(row[key]) for key in ("name", "precision", "rows", "mode", "batch", "micro_batch") if key in row]
    numbers = [
        f"{row[name]:g} | {row[f'{name}_estimated']:.2f} | {row[f'{name}_error']:+.1f} %"
        for name in ("seconds", "gib")
        if name in row
    ]
    return f"| {' | '.join([*labels, *numbers, row.get('note', '')])} |"


def main() -> None:
    """Compute what is asked for and print it row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=lambda text: text.split(","), default=list(TABLES))
    parser.add_argument("--only", default="", help="rows whose name begins with this")
    parser.add_argument("--json", type=Path, help="write, and continue, this file")
    args = parser.parse_args()
    if unknown := set(args.tables) - TABLES.keys():
        parser.error(f"--tables takes {', '.join(TABLES)}, not {', '.join(sorted(unknown))}")
    rows = stored_rows(args.json)
    held = {row["key"]: row for row in rows}
    for table in args.tables:
        cases, compute = TABLES[table]
        print(f"\n{table}")
        for case in cases:
            if not case.name.startswith(args.only):
                continue
            key = f"{table} {case}"
            row = held[key] if key in held else {"key": key, "name": case.name, **compute(case)}
            print(line(row), flush=True)
            if key not in held:
                rows.append(row)
                write_json(args.json, rows)


if __name__ == "__main__":
    main()
