"""Train for so many seconds, to the end of the learning rate's schedule: for comparisons under equal time.

    python -m benchmarks.timed --seconds 480 -- train --preset ucf101-mini --data STORE --out RUN

The first --probe seconds measure the rate; then the run goes on with `train.max_steps` set to what the rest of the time
allows. Anything that `hpdm train` or `hpdm finetune-hires` takes may follow `--`. A run that fails ends with its code.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hpdm_core.report.reading import read_log

STOPPED = 75
ENDLESS = 10**7
RESTART = 30.0
"""Seconds that the second start takes before its first step."""


def run(command: list[str], limit: float, max_steps: int) -> int:
    """One `hpdm` process; its exit code."""
    setting = ["--set", f"train.max_steps={max_steps}", "--time-limit", f"{max(1, int(limit))}s"]
    return subprocess.run([sys.executable, "-m", "hpdm_cli", *command, *setting], check=False).returncode


def steps_within(lines: list[dict[str, Any]], seconds: float) -> int:
    """The last step that a run with these log lines reaches in so many more seconds, at the median rate so far."""
    last = lines[-1]
    videos_a_step = last["videos_seen"] / last["step"]
    return int(
        last["step"] + max(0.0, seconds) * statistics.median(line["videos_per_s"] for line in lines) / videos_a_step
    )


def main() -> None:
    """Probe, then train to the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="for everything, both starts included")
    parser.add_argument("--probe", type=float, default=90.0, help="seconds of the first part, its start included")
    parser.add_argument(
        "command", nargs="+", help="after --: train or finetune-hires with their options, --out among them"
    )
    args = parser.parse_args()
    if "--out" not in args.command:
        parser.error("the command needs --out")
    out, started = Path(args.command[args.command.index("--out") + 1]), time.monotonic()
    code = run(args.command, args.probe, ENDLESS)
    lines = list(read_log(out))
    if code != STOPPED or not lines:
        sys.exit(f"no line was logged in {args.probe:g} seconds" if code == STOPPED else code)
    left = args.seconds - (time.monotonic() - started)
    steps = steps_within(lines, left - RESTART)
    print(f"{lines[-1]['videos_per_s']:.0f} videos/s: {steps} steps in {args.seconds:g} seconds", flush=True)
    code = run(args.command, left - 3, steps)
    lines = list(read_log(out))
    for line in lines[:: max(1, len(lines) // 12)]:
        levels = "  ".join(f"{name} {value:.4f}" for name, value in line["loss_levels"].items())
        print(f"step {line['step']:7d}  {levels}  {line['videos_per_s']:.0f} videos/s", flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
