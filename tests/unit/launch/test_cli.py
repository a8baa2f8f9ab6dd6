"""The `baton` command as a whole: dispatch, errors, and how little it imports."""

import subprocess
import sys

import pytest

from baton import __version__
from baton.launch import cli


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"baton {__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("serve", "chat", "pull", "version", "router", "worker"))


@pytest.mark.parametrize("command", ["serve", "chat", "pull", "version"])
def test_every_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: baton {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serve", "--workers", "3"], "--workers 3 is not of the form NpMd; try 2p1d"),
        (["serve", "--page-size", "17"], "--page-size 17 is not a power of two"),
        (["serve", "no/such/file.gguf", "--port", "0"], "no/such/file.gguf"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"baton {argv[0]}: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bake"])
    assert "invalid choice: 'bake'" in capsys.readouterr().err


def test_nothing_slow_is_imported_for_help() -> None:
    program = (
        "import sys; from baton.launch import cli, serve, chat, pull; "
        "print(sorted({'torch', 'aiohttp', 'tokenizers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
