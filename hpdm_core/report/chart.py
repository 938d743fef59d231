"""Line charts as inline SVG: readable without hovering, coloured by the page's own light or dark palette.

Lines are named at their right end. Where a line is noisy, its raw values stay behind it as a pale trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 84, 14, 44
LABEL_GAP = 15
MAX_TICKS = 6
NUM_COLOURS = 6
SMOOTH_FROM = 24
"""Series of fewer points are drawn as they are."""


@dataclass(frozen=True)
class Series:
    """One line: points in order of x. Values that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]

    def finite(self) -> Series:
        """Only the points that can be drawn."""
        pairs = [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        return Series(self.name, [x for x, _ in pairs], [y for _, y in pairs])


@dataclass(frozen=True)
class Axis:
    """A map from values to pixels with its ticks. `log` axes tick at 1, 2 and 5 times powers of ten."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        place: Callable[[float], float] = math.log10 if self.log else float
        share = (place(value) - place(self.low)) / (place(self.high) - place(self.low))
        return self.start + share * (self.end - self.start)


def line_chart(series: Sequence[Series], *, title: str, x_label: str, log: bool = False, smooth: bool = True) -> str:
    """An `<svg>` of the series over a common x; empty text where there is nothing to draw.

    `log` asks for a logarithmic y axis, which is given if all values are positive. `smooth: false` draws long series
    as they are.
    """
    drawn = [s for s in (s.finite() for s in series) if len(s.xs)]
    if not drawn:
        return ""
    ys = [y for s in drawn for y in s.ys]
    x_axis = linear_axis(min(s.xs[0] for s in drawn), max(s.xs[-1] for s in drawn), LEFT, WIDTH - RIGHT)
    y_axis = (log_axis if log and min(ys) > 0 else linear_axis)(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    lines = "".join(_line(s, i, x_axis, y_axis, smooth) for i, s in enumerate(drawn))
    words = f"{title}: " + ", ".join(f"{s.name} from {number(s.ys[0])} to {number(s.ys[-1])}" for s in drawn)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">'
        f"{_grid(x_axis, y_axis)}{lines}{_labels(drawn, y_axis, smooth)}"
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text></svg>"
    )


def linear_axis(low: float, high: float, start: float, end: float) -> Axis:
    """An axis of round ticks that covers [low, high]."""
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / (MAX_TICKS - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(k * step for k in range(first, last + 1))
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), start, end, ticks)


def log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis that covers [low, high], both positive, with a margin; it spans at least a factor of two."""
    margin = max(1.05, math.sqrt(2 * low / high))
    low, high = low / margin, high * margin
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = tuple(m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high)
        if len(ticks) <= MAX_TICKS + 1:
            break
    return Axis(low, high, start, end, ticks, log=True)


def smoothed(ys: Sequence[float]) -> list[float]:
    """A running mean over a sixteenth of the points to either side; short series come back as they are."""
    if len(ys) < SMOOTH_FROM:
        return list(ys)
    reach = max(1, len(ys) // 16)
    windows = [ys[max(0, i - min(reach, i)) : i + min(reach, i, len(ys) - 1 - i) + 1] for i in range(len(ys))]
    tails = [window if i < len(ys) - reach else ys[max(0, len(ys) - 2 * reach) :] for i, window in enumerate(windows)]
    return [sum(window) / len(window) for window in tails]


def number(value: float) -> str:
    """Three significant digits, thousands as k and millions as M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e3:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def _line(series: Series, index: int, x_axis: Axis, y_axis: Axis, smooth: bool) -> str:
    colour = f"c{index % NUM_COLOURS}"
    mean = smoothed(series.ys) if smooth else series.ys
    if len(series.xs) == 1:
        x, y = x_axis.at(series.xs[0]), y_axis.at(series.ys[0])
        return f'<circle class="{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    raw = _path(series.xs, series.ys, x_axis, y_axis)
    faint = f'<path class="{colour} raw" d="{raw}"/>' if mean != series.ys else ""
    return f'{faint}<path class="{colour} line" d="{_path(series.xs, mean, x_axis, y_axis)}"/>'


def _path(xs: Sequence[float], ys: Sequence[float], x_axis: Axis, y_axis: Axis) -> str:
    points = (f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return "M" + "L".join(points)


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    base = HEIGHT - BOTTOM
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 18}" text-anchor="middle">{number(tick)}</text>')
    return "".join(parts)


def _labels(drawn: Sequence[Series], y_axis: Axis, smooth: bool) -> str:
    """Name and last value at the right end of each line, moved apart where they would overlap."""
    last = [(smoothed(s.ys) if smooth else s.ys)[-1] for s in drawn]
    ends = sorted((y_axis.at(value), i) for i, value in enumerate(last))
    places: list[float] = []
    for y, _ in ends:
        places.append(max(y, places[-1] + LABEL_GAP) if places else max(y, TOP + 4))
    overflow = max(0.0, places[-1] - (HEIGHT - BOTTOM))
    parts = []
    for place, (_, i) in zip(places, ends, strict=True):
        name = drawn[i].name or number(last[i])
        parts.append(
            f'<text class="c{i % NUM_COLOURS} name" x="{WIDTH - RIGHT + 8}" y="{place - overflow + 4:.1f}">'
            f"{escape(name)}</text>"
        )
    return "".join(parts)
