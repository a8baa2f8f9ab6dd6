"""The processes of a router benchmark: workers, routers and clients, each on its own.

Invariant: what is started here is ended by `close`, also when starting fails half-way.
Elsewhere: what is measured (bench_router.py).
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from baton.bench.load_client import Load, LoadResult
from baton.core.errors import ConfigError

_START_LIMIT_S: Final = 60.0
_END_LIMIT_S: Final = 10.0
_POLL_S: Final = 0.05


class Process:
    """A child process; what it says on standard error is kept for when it fails."""

    def __init__(self, argv: Sequence[str], name: str):
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()
        return self.read_line()

    def read_line(self) -> bytes:
        """Raises ConfigError if the process ends instead."""
        assert self._process.stdout is not None
        line: bytes = self._process.stdout.readline()
        if not line:
            raise ConfigError(f"{self.name} failed: {self.last_error()}")
        return line

    def last_error(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.terminate()
        try:
            self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Workers(Process):
    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "baton.bench.instant_worker"], "instant workers")
        ports = self.read_line().decode().split()
        self.prefill_url, self.decode_url, self.marking_decode_url = (
            f"http://127.0.0.1:{port}" for port in ports
        )


class Clients(Process):
    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "baton.bench.load_client"], "load client")

    def run(self, load: Load) -> LoadResult:
        return msgspec.json.decode(self.ask(msgspec.json.encode(load)), type=LoadResult)


class Router(Process):
    """A router of either kind, ready to be asked."""

    def __init__(self, argv: Sequence[str], name: str, port: int):
        super().__init__(argv, name)
        self.port = port
        deadline_s = time.monotonic() + _START_LIMIT_S
        while not self._is_ready():
            if self.has_ended or time.monotonic() > deadline_s:
                why = self.last_error()
                self.close()
                raise ConfigError(f"{name} does not become ready: {why}")
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readiness", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False


def pair_argv(prefill_url: str, decode_url: str, port: int) -> list[str]:
    """The options that both routers share."""
    return [
        *("--pd-disaggregation", "--prefill", prefill_url, "8998"),
        *("--decode", decode_url, "--host", "127.0.0.1", "--port", str(port)),
    ]


def baton_router(workers: Workers) -> Router:
    return _baton_router(workers.prefill_url, workers.decode_url)


def baton_router_of_marks(workers: Workers) -> Router:
    """Between workers that mark their streams as Baton's do."""
    return _baton_router(workers.prefill_url, workers.marking_decode_url)


def _baton_router(prefill_url: str, decode_url: str) -> Router:
    port = _free_port()
    argv = [sys.executable, "-m", "baton.launch_router", *pair_argv(prefill_url, decode_url, port)]
    return Router(argv, "Baton's router", port)


def sglang_router(workers: Workers) -> Router:
    port = _free_port()
    argv = [sys.executable, "-m", "sglang_router.launch_router"]
    argv += pair_argv(workers.prefill_url, workers.decode_url, port)
    argv += ["--prometheus-port", str(_free_port()), "--log-level", "error"]
    return Router(argv, "sglang-router", port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def body_of(**fields: Any) -> str:
    return msgspec.json.encode(fields).decode()
