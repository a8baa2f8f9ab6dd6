"""`baton serve` as its users meet it: one command, a whole tree, nothing left behind."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from baton.testing.tiny_models import write_tiny_model

_PATIENCE_S = 90.0
_SHARED_MEMORY = Path("/dev/shm")


class ServeTree:
    """A running `baton serve`, its lines, and every process below it."""

    def __init__(self, model: Path, *options: str):
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "baton.launch.cli", "serve", str(model)),
                *("--port", "0", "--max-total-tokens", "2048", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_ready(self) -> str:
        """The router's URL."""
        return self.wait_for(r"ready in .*: (http://\S+)")

    def wait_for(self, pattern: str) -> str:
        """First group of the first line that matches."""

        def matches() -> str | None:
            found = (re.search(pattern, line) for line in self._lines)
            return next((match[1] for match in found if match), None)

        def is_over() -> bool:
            return matches() is not None or not self._reader.is_alive()

        with self._changed:
            assert self._changed.wait_for(is_over, _PATIENCE_S), self.text
            matched = matches()
        assert matched is not None, self.text
        return matched

    def pid_of(self, name: str) -> int:
        return int(self.wait_for(rf"^ *{name} .*pid (\d+)"))

    def descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(_PATIENCE_S)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def serve(model: Path) -> Iterator[Callable[..., ServeTree]]:
    trees: list[ServeTree] = []

    def start(*options: str) -> ServeTree:
        trees.append(ServeTree(model, *options))
        return trees[-1]

    yield start
    for tree in trees:
        tree.close()


def _complete(url: str, **options: object) -> Any:
    body = {"prompt": "once upon a time", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
    request = urllib.request.Request(
        url + "/v1/completions",
        json.dumps(body | options).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
        return json.load(answer)


def _wait_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert alive == []


@pytest.mark.parametrize("shape", [("--workers", "1p1d"), ("--unified", "1")])
def test_serves_and_leaves_nothing_behind(
    serve: Callable[..., ServeTree], shape: tuple[str, ...]
) -> None:
    shared_before = set(os.listdir(_SHARED_MEMORY))
    tree = serve(*shape)
    answer = _complete(tree.wait_ready())
    assert answer["usage"]["completion_tokens"] == 5
    processes = tree.descendants()
    assert len(processes) >= 3, "a router, and for each worker its engine"
    tree.process.send_signal(signal.SIGINT)
    assert tree.process.wait(15) == 0
    assert [process for process in processes if process.is_running()] == []
    assert set(os.listdir(_SHARED_MEMORY)) <= shared_before
    assert "killing" not in tree.text


def test_a_dead_worker_comes_back(serve: Callable[..., ServeTree]) -> None:
    tree = serve("--workers", "1p1d")
    url = tree.wait_ready()
    before = _complete(url)["choices"][0]["text"]
    for name in ("decode-0", "prefill-0"):
        worker = psutil.Process(tree.pid_of(name))
        lost = [worker, *worker.children(recursive=True)]
        worker.kill()
        tree.wait_for(f"({name} serves again)")
        _wait_gone(lost[1:])
        _wait_until_complete(url)
    assert _complete(url)["choices"][0]["text"] == before


def _wait_until_complete(url: str) -> None:
    """The router sees a returned worker at its next health check; until then it says "later"."""
    for _ in range(100):
        try:
            _complete(url)
            return
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503:
                    raise
                pause_s = float(error.headers.get("retry-after") or 1)
        time.sleep(min(pause_s, 1.0))
    raise AssertionError("the worker came back, but requests are still refused")


def test_the_tree_dies_with_its_supervisor(serve: Callable[..., ServeTree]) -> None:
    tree = serve("--workers", "1p1d")
    tree.wait_ready()
    processes = tree.descendants()
    pidfds = [os.pidfd_open(process.pid) for process in processes]
    try:
        tree.process.kill()
        for process, pidfd in zip(processes, pidfds, strict=True):
            ended, _, _ = select.select([pidfd], [], [], 15)
            assert ended, f"{process} outlived the supervisor"
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_a_model_that_cannot_be_served_is_told_clearly(
    serve: Callable[..., ServeTree], model: Path, tmp_path: Path
) -> None:
    for part in model.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["AbacusForCausalLM"], "model_type": "abacus"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tree = ServeTree(tmp_path)
    try:
        assert tree.process.wait(_PATIENCE_S) == 1
    finally:
        tree.close()
    assert "could not start" in tree.text
    assert re.search("abacus", tree.text, re.IGNORECASE)
    assert "Traceback" not in tree.text


def test_a_tree_over_a_simulated_link_answers_no_sooner_than_the_link(
    serve: Callable[..., ServeTree],
) -> None:
    url = serve("--simulate-link", "1Gbps,700ms", "--verify-kv").wait_ready()
    body = {"input_ids": [5] * 100, "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started_s = time.monotonic()
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
        assert len(json.load(answer)["output_ids"]) == 2
    assert time.monotonic() - started_s >= 0.7
