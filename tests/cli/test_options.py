from __future__ import annotations

from collections.abc import Callable

import pytest

from hpdm_cli.options import parse_duration, parse_seeds, parse_size, parse_tolerance
from hpdm_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"), [("288x512", (288, 512)), ("64", (64, 64)), (" 8 X 9 ", (8, 9)), ("10×20", (10, 20))]
)
def test_sizes(text: str, value: tuple[int, int]) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("3", (3,)), ("0-3", (0, 1, 2, 3)), ("1,5,9", (1, 5, 9)), ("7, 2-3", (7, 2, 3)), ("4-4", (4,))]
)
def test_seeds(text: str, value: tuple[int, ...]) -> None:
    assert parse_seeds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("2h", 7200), ("11h50m", 42600), ("90s", 90), ("1d2h", 93600), ("1.5h", 5400), ("45", 45), ("1H 30M", 5400)],
)
def test_durations(text: str, value: float) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("2.5 %", 0.025), ("25", 25), ("0", 0), ("100%", 1.0)])
def test_tolerances(text: str, value: float) -> None:
    result = parse_tolerance(text)
    assert result == pytest.approx(value)
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_size, "288x"),
        (parse_size, "0x4"),
        (parse_size, "1x2x3"),
        (parse_size, "-4"),
        (parse_size, ""),
        (parse_seeds, "9-3"),
        (parse_seeds, "1,1"),
        (parse_seeds, "0-3,2"),
        (parse_seeds, "1,,2"),
        (parse_seeds, "-3"),
        (parse_seeds, "a"),
        (parse_seeds, "0-999999999999"),
        (parse_seeds, "0-9999999,10000000"),
        (parse_duration, "2x"),
        (parse_duration, "50m2h"),
        (parse_duration, ""),
        (parse_duration, "0s"),
        (parse_duration, "-2h"),
        (parse_tolerance, "101%"),
        (parse_tolerance, "0.5"),
        (parse_tolerance, "-1"),
        (parse_tolerance, "%"),
    ],
)
def test_nonsense_is_a_config_error_with_an_example(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert any(character.isdigit() for character in caught.value.hint) or "once" in caught.value.hint
