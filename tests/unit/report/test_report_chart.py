"""Line charts: axes, ticks, smoothing, labels, what is left out."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from hpdm_core.report.chart import HEIGHT, WIDTH, Series, line_chart, linear_axis, log_axis, number, smoothed


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def drawn_lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each solid line."""
    paths = [e.attrib["d"] for e in parsed(svg).iter("path") if e.attrib["class"].endswith("line")]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", path)] for path in paths]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.0, 3.0), (0.0, 0.0), (-2.5, 19_000.0), (1e-6, 2e-6)])
def test_linear_ticks_are_round_and_cover_the_values(low: float, high: float) -> None:
    axis = linear_axis(low, high, 0, 100)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 8
    steps = {round((b - a) / (axis.ticks[1] - axis.ticks[0]), 6) for a, b in itertools.pairwise(axis.ticks)}
    assert steps == {1.0}
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high) == 100


@pytest.mark.parametrize(("low", "high"), [(0.1, 10.0), (0.30, 0.31), (1e-5, 3.0), (2.0, 2.0)])
def test_log_ticks_lie_inside_and_are_few(low: float, high: float) -> None:
    axis = log_axis(low, high, 0, 100)
    assert axis.low < low <= high < axis.high
    assert 1 <= len(axis.ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert axis.at(math.sqrt(axis.low * axis.high)) == pytest.approx(50)


def test_points_land_where_the_axes_say_and_inside_the_picture() -> None:
    svg = line_chart([Series("a", [0, 10, 20], [1.0, 3.0, 2.0])], title="t", x_label="x")
    (line,) = drawn_lines(svg)
    xs, ys = zip(*line, strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[1] < ys[2] < ys[0]  # SVG counts downwards
    assert all(0 < x < WIDTH for x in xs)
    assert all(0 < y < HEIGHT for y in ys)


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = line_chart([Series("a", [0, 1, 2], [1.0, math.nan, 2.0])], title="t", x_label="x")
    assert len(drawn_lines(svg)[0]) == 2
    assert "nan" not in svg
    assert line_chart([Series("a", [0], [math.inf])], title="t", x_label="x") == ""
    assert line_chart([], title="t", x_label="x") == ""


def test_a_log_axis_gives_way_to_zero() -> None:
    assert "nan" not in line_chart([Series("", [0, 1], [0.0, 5.0])], title="t", x_label="x", log=True)


def test_a_single_point_is_a_dot() -> None:
    assert len(list(parsed(line_chart([Series("a", [3], [1.0])], title="t", x_label="x")).iter("circle"))) == 1


def test_long_noisy_lines_are_smoothed_with_the_raw_trace_behind() -> None:
    ys = [1.0 + (-1) ** i for i in range(200)]
    svg = line_chart([Series("a", range(200), ys)], title="t", x_label="x")
    classes = [e.attrib["class"] for e in parsed(svg).iter("path")]
    assert classes == ["c0 raw", "c0 line"]
    assert max(smoothed(ys)[20:-20]) - min(smoothed(ys)[20:-20]) < 0.3
    assert smoothed([1.0, 5.0]) == [1.0, 5.0]
    assert smoothed([2.0] * 50) == [2.0] * 50


def test_labels_of_close_lines_do_not_overlap() -> None:
    series = [Series(f"level {i}", [0, 1], [1.0, 2.0 + i * 1e-3]) for i in range(5)]
    root = parsed(line_chart(series, title="t", x_label="x"))
    heights = sorted(float(e.attrib["y"]) for e in root.iter("text") if e.attrib["class"].endswith("name"))
    assert len(heights) == 5
    assert all(b - a >= 14 for a, b in itertools.pairwise(heights))
    assert 0 < heights[0] < heights[-1] < HEIGHT


def test_names_are_escaped() -> None:
    svg = line_chart([Series("<b>&", [0, 1], [1.0, 2.0])], title='"<t>', x_label="<x>")
    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;" in svg
    parsed(svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345.0, "12.3k"),
        (1234.0, "1.23k"),
        (5000, "5k"),
        (2_500_000.0, "2.5M"),
        (0.00012, "1.2e-4"),
        (0.25, "0.25"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
