"""Flags derived from dataclasses: types, defaults, errors, and the way back to argv."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from baton.core.errors import ConfigError
from baton.launch.flags import add_flags, from_args, given_argv


@dataclass(frozen=True)
class Oven:
    recipe: Path = field(metadata={"help": "what to bake"})
    degrees: int = field(
        default=180,
        metadata={"help": "heat", "flags": ("--degrees", "-d"), "minimum": 20, "maximum": 300},
    )
    mode: Literal["fan", "grill"] = "fan"
    hours: float | None = field(default=None, metadata={"env": "OVEN_HOURS"})
    dry_run: bool = False
    light: bool = True
    racks: tuple[int, ...] = ()
    serial_number: str = field(default="unset", metadata={"flags": ()})

    def __post_init__(self) -> None:
        if self.mode == "grill" and self.degrees < 100:
            raise ConfigError(f"--degrees {self.degrees} is too cool to grill; try 200")


@dataclass(frozen=True)
class Kitchen:
    degrees: int = 20
    name: str = "home"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bake", exit_on_error=False)
    add_flags(parser, Oven, Kitchen)
    return parser


def test_defaults_come_from_the_dataclass() -> None:
    namespace = _parser().parse_args(["--recipe", "bread.txt"])
    assert from_args(Oven, namespace) == Oven(recipe=Path("bread.txt"))
    assert from_args(Kitchen, namespace) == Kitchen()


def test_every_type_is_parsed() -> None:
    argv = [
        "--recipe",
        "r",
        "-d",
        "200",
        "--mode",
        "grill",
        "--hours",
        "1.5",
        "--dry-run",
        "--no-light",
        "--racks",
        "1",
        "2",
    ]
    oven = from_args(Oven, _parser().parse_args(argv))
    assert oven == Oven(Path("r"), 200, "grill", 1.5, True, False, (1, 2))


def test_one_flag_fills_the_same_field_of_two_configs() -> None:
    namespace = _parser().parse_args(["--recipe", "r", "--degrees", "50"])
    assert from_args(Oven, namespace).degrees == from_args(Kitchen, namespace).degrees == 50


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--degrees", "hot"], "argument --degrees/-d: 'hot' is not a whole number"),
        (["--degrees", "5"], "5 is too small; the least allowed is 20"),
        (["--degrees", "500"], "500 is too large; the most allowed is 300"),
        (["--mode", "steam"], "argument --mode: 'steam' is not one of fan, grill"),
        (["--hours", "long"], "argument --hours: 'long' is not a number"),
    ],
)
def test_bad_values_name_the_flag_and_the_mend(argv: list[str], message: str) -> None:
    with pytest.raises(argparse.ArgumentError) as caught:
        _parser().parse_args(argv)
    assert message in str(caught.value)


def test_a_required_flag_that_is_absent_is_named() -> None:
    with pytest.raises(ConfigError, match="--recipe is required; add --recipe PATH"):
        from_args(Oven, _parser().parse_args([]))


def test_checks_across_fields_reach_the_caller() -> None:
    namespace = _parser().parse_args(["--recipe", "r", "--mode", "grill", "--degrees", "50"])
    with pytest.raises(ConfigError, match="too cool to grill"):
        from_args(Oven, namespace)


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"OVEN_HOURS": "3"}
    absent = _parser().parse_args(["--recipe", "r"])
    given = _parser().parse_args(["--recipe", "r", "--hours", "1"])
    assert from_args(Oven, absent).hours is None
    assert from_args(Oven, absent, environ=environ).hours == 3.0
    assert from_args(Oven, given, environ=environ).hours == 1.0
    with pytest.raises(ConfigError, match="environment variable OVEN_HOURS: 'x' is not a number"):
        from_args(Oven, absent, environ={"OVEN_HOURS": "x"})


def test_overrides_fill_fields_that_are_no_flags() -> None:
    namespace = _parser().parse_args(["--recipe", "r"])
    assert from_args(Oven, namespace, serial_number="7").serial_number == "7"
    assert "--serial-number" not in _parser().format_help()


def test_given_argv_repeats_what_was_asked_for_and_no_more() -> None:
    argv = [
        "--recipe",
        "r",
        "-d",
        "200",
        "--dry-run",
        "--no-light",
        "--racks",
        "1",
        "2",
        "--name=-x",
    ]
    namespace = _parser().parse_args(argv)
    again = given_argv(namespace, Oven, Kitchen)
    assert again == [
        "--recipe=r",
        "--degrees=200",
        "--dry-run",
        "--no-light",
        "--racks",
        "1",
        "2",
        "--name=-x",
    ]
    assert _parser().parse_args(again) == namespace


def test_help_shows_defaults_and_variables() -> None:
    text = " ".join(_parser().format_help().split())
    assert "heat (default: 180)" in text
    assert "what to bake (required)" in text
    assert "(environment: OVEN_HOURS)" in text
