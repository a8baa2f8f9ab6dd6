"""`baton bench`: help, wrong options, other engines that are not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from baton.launch import bench, cli


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: baton bench" in text
    assert "kernels" in text
    assert "engine" in text
    assert "transfer" in text
    assert "serve" in text


@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("kernels", ["--rounds", "--num-threads", "--json"]),
        ("transfer", ["--rounds", "--block-bytes", "--max-mib", "--idle-s", "--json"]),
        ("serve", ["--base-url", "--dataset-name", "--request-rate", "--goodput", "--server-pid"]),
        ("engine", ["--model-path", "--rounds", "--peers", "--peers-dir", "PEERS_DIR", "--json"]),
    ],
)
def test_each_has_its_own_help(
    benchmark: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", benchmark, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in options)


def test_a_peers_file_that_is_missing_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "absent.json"
    assert cli.main(["bench", "engine", "--peers", str(path)]) == 1
    assert f"--peers {path} is not a file" in capsys.readouterr().err


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "kernels", "--rounds", "1"])
    assert "the least allowed is 3" in capsys.readouterr().err


def test_why_no_other_engine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reason = bench.run_peers(tmp_path / "absent", 3)
    assert isinstance(reason, str)
    assert "no other engines are installed" in reason
    reason = bench.run_peers(tmp_path, 3)
    assert isinstance(reason, str)
    assert "run from Baton's repository" in reason


def test_help_needs_no_torch() -> None:
    program = (
        "import sys; from baton.launch import bench; bench._parser(); "
        "print(sorted({'torch', 'rich', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
