"""The router's options from a YAML file, under the long names of its flags; argv goes before it.

    policy: cache_aware
    pd-disaggregation: true
    workers:
      - {url: "http://10.0.0.1:30000", role: prefill, bootstrap-port: 8998}
      - {url: "http://10.0.0.2:30000", role: decode}

Each entry becomes the flag it is named after and passes the same parser, so file and command line
know the same options, checks and words.
Elsewhere: the flags (router.py), what may change while serving (router/reload.py).
"""

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from baton.core.errors import ConfigError

MakeParser = Callable[[type[argparse.ArgumentParser]], argparse.ArgumentParser]

_WORKER_DESTS: Final = ("prefill", "decode", "worker_urls")
_ROLES: Final = {"prefill": "--prefill", "decode": "--decode", "unified": "--worker-urls"}
_WORKER_KEYS: Final = ("url", "role", "bootstrap-port")


def read_args(make_parser: MakeParser, argv: Sequence[str]) -> argparse.Namespace:
    """What argv asks for, then the file that it names with --config, then the defaults. Raises
    ConfigError naming the file; what is wrong in argv ends the process, as argparse does."""
    args = make_parser(argparse.ArgumentParser).parse_args(argv)
    if args.config is None:
        return args
    parser = make_parser(_FileParser)
    try:
        file_argv = argv_of(_load(args.config), vars(parser.parse_args([])))
        from_file = parser.parse_args(file_argv)
    except ConfigError as error:
        raise ConfigError(f"--config {args.config}: {error}") from error
    given = _given(make_parser(argparse.ArgumentParser), argv, from_file)
    if any(hasattr(given, dest) for dest in _WORKER_DESTS):
        # Workers on the command line are all workers, not some more of them.
        vars(from_file).update({dest: [] for dest in _WORKER_DESTS})
    return argparse.Namespace(**{**vars(from_file), **vars(given)})


def argv_of(entries: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The flags that say the same. `defaults` are the parser's, by the flags' names. Raises
    ConfigError."""
    known = [name.replace("_", "-") for name in defaults if name not in ("config", *_WORKER_DESTS)]
    argv: list[str] = []
    for name, value in entries.items():
        if name == "workers":
            argv += _workers_argv(value)
        elif name not in known:
            raise ConfigError(f"{name!r} is unknown; {_mend(name, known)}")
        else:
            argv += _flag_argv(name, value, isinstance(defaults[name.replace("-", "_")], bool))
    return argv


class _FileParser(argparse.ArgumentParser):
    """Tells what is wrong to its caller: while serving, nothing may end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library brings no types
    """Plain values only, and no key twice: the later one would count, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line}: {key.value!r} is there twice; leave one out")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _load(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"it cannot be read ({error}); name a YAML file") from error
    try:
        entries = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"it is no YAML: {' '.join(str(error).split())}") from error
    if entries is None:
        return {}
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise ConfigError("it is no list of options; write one as in 'policy: random'")
    return entries


def _given(
    parser: argparse.ArgumentParser, argv: Sequence[str], names: argparse.Namespace
) -> argparse.Namespace:
    """Only what argv says, without defaults."""
    parser.set_defaults(**dict.fromkeys(vars(names)))
    values = vars(parser.parse_args(argv))
    return argparse.Namespace(**{dest: said for dest, said in values.items() if said is not None})


def _flag_argv(name: str, value: Any, is_switch: bool) -> list[str]:
    flag = f"--{name}"
    if is_switch:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; it must be true or false")
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *(_text(name, each) for each in value)]
    return [f"{flag}={_text(name, value)}"]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{name} is {value!r}; it must be a number or text")
    return str(value)


def _workers_argv(entries: Any) -> list[str]:
    if not isinstance(entries, list):
        raise ConfigError("workers is no list; write each as in '- {url: ..., role: decode}'")
    argv: list[str] = []
    unified: list[str] = []
    for number, entry in enumerate(entries, start=1):
        flag, values = _worker(f"workers, number {number}", entry)
        if flag == "--worker-urls":
            unified += values
        else:
            argv += [flag, *values]
    return [*argv, "--worker-urls", *unified] if unified else argv


def _worker(where: str, entry: Any) -> tuple[str, list[str]]:
    if not isinstance(entry, dict) or "url" not in entry:
        raise ConfigError(f"{where}: it has no url; write it as in '- {{url: ..., role: decode}}'")
    for key in entry:
        if key not in _WORKER_KEYS:
            raise ConfigError(f"{where}: {key!r} is unknown; {_mend(str(key), _WORKER_KEYS)}")
    role = entry.get("role", "unified")
    if role not in _ROLES:
        raise ConfigError(f"{where}: role is {role!r}; it must be one of {', '.join(_ROLES)}")
    values = [_text(f"{where}: url", entry["url"])]
    if "bootstrap-port" in entry:
        if role != "prefill":
            raise ConfigError(f"{where}: only a prefill worker has a bootstrap-port; leave it out")
        values.append(_text(f"{where}: bootstrap-port", entry["bootstrap-port"]))
    return _ROLES[role], values


def _mend(name: str, known: Sequence[str]) -> str:
    if name.replace("_", "-") in (*(dest.replace("_", "-") for dest in _WORKER_DESTS),):
        return "list workers under 'workers'"
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "see 'baton router --help'"
