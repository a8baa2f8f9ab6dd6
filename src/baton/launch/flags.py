"""Command-line flags derived from frozen config dataclasses, and the way back.

A field becomes a flag by its name (underscores to dashes) and type: str, int, float, bool, Path,
Literal, `X | None`, and `tuple[X, ...]` (several values after one flag). What a type cannot say
stands in the field's metadata, plain keys so that a config needs to import nothing:

    port: int = field(default=8000, metadata={
        "help": "where to listen",       # shown by --help, together with the default
        "flags": ("--port", "-p"),       # names; () keeps the field off the command line
        "metavar": "PORT",
        "choices": (8000, 8001),         # otherwise taken from a Literal
        "minimum": 0, "maximum": 65535,
        "env": "BATON_PORT",             # read when the flag is absent
    })

Invariant: a flag that the user did not give is absent from the namespace, so the dataclass alone
holds the defaults and `given_argv` repeats exactly what was asked for.
Elsewhere: checks that span several fields (each dataclass's `__post_init__`, as ConfigError).
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from baton.core.errors import ConfigError

ConfigT = TypeVar("ConfigT")

API_KEY_VARIABLE = "BATON_API_KEY"
"""Every command that takes --api-key reads it, so that no key need stand in the process list."""

_METADATA_KEYS = frozenset({"help", "flags", "metavar", "choices", "minimum", "maximum", "env"})
_KIND_NAMES = {int: "a whole number", float: "a number"}
_TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
_FALSE_WORDS = frozenset({"0", "false", "no", "off", ""})


@dataclasses.dataclass(frozen=True)
class _Flag:
    """One field of a config, as the command line sees it."""

    field: dataclasses.Field[Any]
    names: tuple[str, ...]
    value_type: type
    is_many: bool
    choices: tuple[Any, ...] | None

    @property
    def dest(self) -> str:
        return self.field.name

    @property
    def default(self) -> Any:
        """The dataclass's default, or `dataclasses.MISSING` for a required field."""
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return self.field.default

    @property
    def env(self) -> str | None:
        name: str | None = self.field.metadata.get("env")
        return name

    def parse(self, text: str) -> Any:
        """One value from its text. Raises ValueError with a message that names the mend."""
        value = _convert(self.value_type, text)
        minimum, maximum = self.field.metadata.get("minimum"), self.field.metadata.get("maximum")
        if minimum is not None and value < minimum:
            raise ValueError(f"{text} is too small; the least allowed is {minimum}")
        if maximum is not None and value > maximum:
            raise ValueError(f"{text} is too large; the most allowed is {maximum}")
        if self.choices is not None and value not in self.choices:
            allowed = ", ".join(str(choice) for choice in self.choices)
            raise ValueError(f"{text!r} is not one of {allowed}")
        return value

    def help_text(self) -> str:
        notes = []
        if self.default is dataclasses.MISSING:
            notes.append("required")
        elif self.default not in (None, (), "") and self.value_type is not bool:
            shown = self.default if self.is_many else (self.default,)
            notes.append("default: " + " ".join(str(value) for value in shown))
        if self.env is not None:
            notes.append(f"environment: {self.env}")
        told: str = self.field.metadata.get("help", "")
        text = f"{told} ({'; '.join(notes)})" if notes else told
        return text.strip().replace("%", "%%")


def add_flags(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *config_types: type
) -> None:
    """Declares the flags of all `config_types`; a field of the same name in several of them is
    one flag, described by the first."""
    seen: set[str] = set()
    for config_type in config_types:
        for flag in _flags_of(config_type):
            if flag.dest not in seen:
                seen.add(flag.dest)
                _declare(parser, flag)


def from_args(
    config_type: type[ConfigT],
    namespace: argparse.Namespace,
    *,
    environ: Mapping[str, str] | None = None,
    **overrides: Any,
) -> ConfigT:
    """Builds the config: `overrides`, then flags given, then `environ` (pass `os.environ` to
    honour it), then the dataclass's defaults. Raises ConfigError naming the flag or variable."""
    values: dict[str, Any] = {}
    for flag in _flags_of(config_type):
        if flag.dest in overrides:
            continue
        if hasattr(namespace, flag.dest):
            given = getattr(namespace, flag.dest)
            values[flag.dest] = tuple(given) if flag.is_many else given
        elif environ is not None and flag.env is not None and flag.env in environ:
            values[flag.dest] = _from_env(flag, environ[flag.env])
        elif flag.default is dataclasses.MISSING:
            raise ConfigError(f"{flag.names[0]} is required; add {_example(flag)}")
    return config_type(**values, **overrides)


def given_argv(namespace: argparse.Namespace, *config_types: type) -> list[str]:
    """The flags of `config_types` that the user gave, as arguments for another process."""
    argv: list[str] = []
    seen: set[str] = set()
    for config_type in config_types:
        for flag in _flags_of(config_type):
            if flag.dest not in seen and hasattr(namespace, flag.dest):
                seen.add(flag.dest)
                argv += _as_argv(flag, getattr(namespace, flag.dest))
    return argv


def _flags_of(config_type: type) -> list[_Flag]:
    hints = typing.get_type_hints(config_type)
    found = []
    for field in dataclasses.fields(config_type):
        unknown = set(field.metadata) - _METADATA_KEYS
        assert not unknown, f"{config_type.__name__}.{field.name}: unknown metadata {unknown}"
        names = field.metadata.get("flags", ("--" + field.name.replace("_", "-"),))
        if names and field.init:
            value_type, is_many, literal = _shape_of(hints[field.name])
            choices = field.metadata.get("choices", literal)
            found.append(_Flag(field, tuple(names), value_type, is_many, choices))
    return found


def _shape_of(annotation: Any) -> tuple[type, bool, tuple[Any, ...] | None]:
    """(type of one value, several values?, choices) of a field's annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _shape_of(inner)
    if origin is Literal:
        return type(arguments[0]), False, arguments
    if origin is tuple:
        assert arguments[1:] == (Ellipsis,), f"only tuple[X, ...] is a flag, not {annotation}"
        value_type, _, choices = _shape_of(arguments[0])
        return value_type, True, choices
    assert annotation in (str, int, float, bool, Path), f"no flag for the type {annotation}"
    return annotation, False, None


def _declare(parser: argparse.ArgumentParser | argparse._ArgumentGroup, flag: _Flag) -> None:
    common: dict[str, Any] = {
        "dest": flag.dest,
        "default": argparse.SUPPRESS,
        "help": flag.help_text(),
    }
    if flag.value_type is bool and not flag.is_many:
        on_by_default = flag.default is True
        action: Any = argparse.BooleanOptionalAction if on_by_default else "store_true"
        parser.add_argument(*flag.names, action=action, **common)
        return
    metavar = flag.field.metadata.get("metavar")
    if metavar is None and flag.choices is not None:
        metavar = "{" + ",".join(str(choice) for choice in flag.choices) + "}"
    parser.add_argument(
        *flag.names,
        type=_argument_type(flag.parse),
        action="extend" if flag.is_many else "store",
        nargs="+" if flag.is_many else None,
        metavar=metavar or _metavar(flag.value_type),
        **common,
    )


def _argument_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` for argparse, which shows a message only when it is an ArgumentTypeError."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _convert(value_type: type, text: str) -> Any:
    if value_type is bool:
        if text.lower() in _TRUE_WORDS | _FALSE_WORDS:
            return text.lower() in _TRUE_WORDS
        raise ValueError(f"{text!r} is neither true nor false; give 1 or 0")
    try:
        return value_type(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {_KIND_NAMES[value_type]}") from None


def _from_env(flag: _Flag, text: str) -> Any:
    try:
        if flag.is_many:
            return tuple(flag.parse(part) for part in text.split(",") if part)
        return flag.parse(text)
    except ValueError as error:
        raise ConfigError(f"environment variable {flag.env}: {error}") from error


def _as_argv(flag: _Flag, value: Any) -> list[str]:
    name = flag.names[0]
    if flag.value_type is bool and not flag.is_many:
        return [name if value else f"--no-{name.removeprefix('--')}"]
    if flag.is_many:
        return [name, *_texts(value)]
    # One word, so that a value that begins with a dash is not taken for a flag.
    return [f"{name}={value}"]


def _texts(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


def _example(flag: _Flag) -> str:
    values: Sequence[Any] = flag.choices or (_metavar(flag.value_type),)
    return f"{flag.names[0]} {values[0]}"


def _metavar(value_type: type) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(value_type, "TEXT")
