"""Loss by level against videos seen, as one SVG that stands alone.

python -m benchmarks.curves runs/fp32 runs/bf16 --title "fp32 and bf16" --out docs/images/precision.svg
"""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path

from hpdm_core.report.chart import Series, line_chart
from hpdm_core.report.reading import read_log


def losses(run: Path, prefix: str) -> list[Series]:
    """One line per level of a run's log."""
    rows = [row for row in read_log(run) if "loss_levels" in row]
    seen = [row["videos_seen"] for row in rows]
    return [Series(prefix + name, seen, [row["loss_levels"][name] for row in rows]) for name in rows[0]["loss_levels"]]


def alone(svg: str) -> str:
    """The chart with the styles that a report page would give it, on white."""
    css = files("hpdm_core.report").joinpath("page.css").read_text()
    colours = re.search(r":root \{.*?\}", css, re.DOTALL)
    kept = ("svg.chart", ".tick", ".axis", ".grid line", ".line", ".raw", ".dot", ".name")
    rules = [rule for rule in re.findall(r"^[^{\n]+\{[^}]*\}", css, re.MULTILINE) if rule.startswith(kept)]
    rules += [*re.findall(r"\.c\d \{[^}]*\}", css), "svg { font-family: system-ui, sans-serif; }"]
    style = "<style>" + (colours.group() if colours else "") + "".join(rules) + "</style>"
    head = svg.index(">") + 1
    opening = svg[:head].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return opening + style + '<rect width="100%" height="100%" fill="#fff"/>' + svg[head:]


def main() -> None:
    """Read the logs, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--title", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    several = len(args.runs) > 1
    lines = [line for run in args.runs for line in losses(run, f"{run.name} " if several else "")]
    args.out.write_text(alone(line_chart(lines, title=args.title, x_label="videos seen", log=True)))


if __name__ == "__main__":
    main()
