"""The `baton` command: picks the subcommand and leaves the rest to it.

Invariant: nothing slow is imported before a subcommand is chosen, so `baton --help` is instant.
Elsewhere: one module for each subcommand, named as it is (serve.py, chat.py, pull.py, ...).
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton import __version__
from baton.core.errors import BatonError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


@dataclass(frozen=True)
class _Command:
    """`entry` is "module:function"; the function takes argv and returns an exit code or None."""

    entry: str
    summary: str


_COMMANDS = {
    "serve": _Command("baton.launch.serve:main", "run a router and its workers on this machine"),
    "chat": _Command("baton.launch.chat:main", "talk to a running server in the terminal"),
    "pull": _Command("baton.launch.pull:main", "fetch a model and print where it is"),
    "bench": _Command("baton.launch.bench:main", "measure kernels, engine, transfer, or a server"),
    "explain": _Command("baton.launch.explain:main", "where one request spent its time"),
    "profile": _Command("baton.launch.profile:main", "record a trace, or sum one up"),
    "version": _Command("baton.launch.cli:version", "print the version"),
    "router": _Command("baton.launch.router:main", "the router alone (baton.launch_router)"),
    "worker": _Command("baton.launch.server:main", "one worker alone (baton.launch_server)"),
}

_EXAMPLES = """\
examples:
  baton serve                        the default model, on http://127.0.0.1:8000
  baton serve model.gguf --workers 2p1d
  baton chat                         talk to it
  baton COMMAND --help               every option, with examples
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = _parser().parse_args(arguments[:1] or ["--help"])
    try:
        return _entry(_COMMANDS[chosen.command])(arguments[1:]) or 0
    except BatonError as error:
        print(f"baton {chosen.command}: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _entry(command: _Command) -> Callable[[Sequence[str]], int | None]:
    module, function = command.entry.split(":")
    entry: Callable[[Sequence[str]], int | None] = getattr(
        importlib.import_module(module), function
    )
    return entry


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:8} {command.summary}" for name, command in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="baton",
        usage="baton COMMAND [OPTION ...]",
        description="Serve large language models with prefill and decode on separate workers.\n\n"
        f"commands:\n{lines}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"baton {__version__}")
    return parser


def version(argv: Sequence[str]) -> None:
    argparse.ArgumentParser(
        prog="baton version", description=_COMMANDS["version"].summary
    ).parse_args(argv)
    print(f"baton {__version__}")


if __name__ == "__main__":
    sys.exit(main())
