"""Real workers and routers as child processes, for integration tests: start, ask, break, end.

Every process is ended by its own id, with the engine it started. Logs go to a file and are shown
when something does not come up.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

START_TIMEOUT_S = 90.0
_POLL_S = 0.05
_BUSY: Final = (
    "baton:quarantined_blocks",
    "baton:num_handover_reqs",
    "baton:draining_handovers",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
)


class Ports:
    """Ports that the system says are free; never the same one twice."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def take(self) -> int:
        while True:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port: int = server.getsockname()[1]
            if port not in self._given:
                self._given.add(port)
                return port


PORTS = Ports()


@dataclass
class Server:
    """One `python -m MODULE ARGS` that answers HTTP on `port`."""

    name: str
    argv: list[str]
    port: int
    log_path: Path
    probe: str = "/health"
    bootstrap_port: int | None = None
    environ: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def launch(self) -> None:
        """Start without waiting."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environ},
                start_new_session=True,
            )

    def start(self) -> "Server":
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until the probe answers 200. Raises RuntimeError with the log if it does not come."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, urllib.error.URLError):
                if self.get(self.probe)[0] == 200:
                    return
            time.sleep(_POLL_S)
        raise RuntimeError(f"{self.name} did not come up:\n{self.log()}")

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path), timeout_s)

    def post(self, path: str, body: Any, timeout_s: float = 120.0) -> tuple[int, Any]:
        """Status and decoded answer; `body` is encoded unless it is bytes."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, payload, headers), timeout_s)

    def num_blocks_in_use(self) -> int:
        info = self.get("/server_info")[1]
        return int(info["kv_blocks"]["num_in_use"])

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = str(self.get("/metrics")[1]).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))

    def is_at_rest(self) -> bool:
        """Nothing runs or waits, and no block is held."""
        return self.num_blocks_in_use() == 0 and not any(self.metric(name) for name in _BUSY)

    def engine_pid(self) -> int:
        children = psutil.Process(self.pid).children()
        (engine,) = [child for child in children if "engine_process" in " ".join(child.cmdline())]
        return int(engine.pid)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-6000:]

    def kill(self) -> None:
        """SIGKILL to the api process and its engine, as the kernel's OOM killer would."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
        self.process.wait()
        self.process = None

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.name} did not end on SIGTERM:\n{self.log()}") from None
        self.process = None
        return code

    @staticmethod
    def _ask(request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, _decoded(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error.read())


def worker(
    role: str, model: str | Path | None, folder: Path, *options: str, host: str = "127.0.0.1"
) -> Server:
    """A worker that is not started yet."""
    port = PORTS.take()
    argv = [sys.executable, "-m", "baton.launch_server", f"--port={port}", f"--host={host}"]
    argv += [f"--disaggregation-mode={role}", "--verify-kv"]
    if model is not None:
        argv.append(f"--model-path={model}")
    bootstrap_port = None
    if role == "prefill":
        bootstrap_port = PORTS.take()
        argv.append(f"--disaggregation-bootstrap-port={bootstrap_port}")
    name = f"{role}-{port}"
    return Server(
        name,
        [*argv, *options],
        port,
        folder / f"{name}.log",
        bootstrap_port=bootstrap_port,
        host=host,
    )


def router(workers: Sequence[Server], folder: Path, *options: str) -> Server:
    """Baton's router over these workers, not started yet."""
    port = PORTS.take()
    argv = [sys.executable, "-m", "baton.launch_router", f"--port={port}"]
    if any(server.bootstrap_port is not None for server in workers):
        argv.append("--pd-disaggregation")
        for server in workers:
            if server.bootstrap_port is not None:
                argv += ["--prefill", server.url, str(server.bootstrap_port)]
            else:
                argv += ["--decode", server.url]
    else:
        argv += ["--worker-urls", *(server.url for server in workers)]
    return Server(
        f"router-{port}", [*argv, *options], port, folder / f"router-{port}.log", "/readiness"
    )


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[tuple[Server, ...]]:
    """Start all at the same time; end all, whatever happens."""
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in reversed(servers):
            server.kill()


def wait_until(condition: Any, what: str, timeout_s: float = 20.0) -> None:
    """Poll until `condition()` holds. Raises AssertionError naming `what` did not come about."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if condition():
                return
        time.sleep(_POLL_S)
    raise AssertionError(f"waited {timeout_s:g} s in vain: {what}")


def _decoded(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return payload.decode(errors="replace")


class EventStream:
    """A streaming request, read event by event. `close` leaves, as a client that goes away does."""

    def __init__(self, server: Server, path: str, body: dict[str, Any], timeout_s: float = 60.0):
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout_s)
        payload = json.dumps({**body, "stream": True})
        self._connection.request("POST", path, payload, {"Content-Type": "application/json"})
        self._answer: http.client.HTTPResponse | None = None

    @property
    def status(self) -> int:
        """Blocks until the head of the answer is there."""
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer.status

    def body(self) -> bytes:
        """Of an answer that is no stream."""
        assert self.status != 200
        assert self._answer is not None
        return self._answer.read()

    def events(self) -> Iterator[Any]:
        """Decoded events until `[DONE]`; AssertionError if the stream ends without it."""
        assert self.status == 200
        assert self._answer is not None
        while line := self._answer.readline():
            if line.startswith(b"data: "):
                if line.strip() == b"data: [DONE]":
                    return
                yield json.loads(line[6:])
        raise AssertionError("the stream ended without [DONE]")

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._connection.close()
