"""A server that is started for one round, and is gone after it with all that it started.

Elsewhere: the scripts that start servers (benchmarks/peers/start).
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import IO, Final

from baton.bench.serve.server import ServerError

_POLL_S: Final = 0.2
_STOP_S: Final = 20.0
_SHOWN_CHARACTERS: Final = 2000


@contextlib.contextmanager
def started(command: Sequence[str], *, timeout_s: float) -> Iterator[tuple[str, int]]:
    """Address and process id of `command`, once it lists its models; a word "PORT" in it stands for
    a free port. Raises ServerError with the end of its output when it ends or does not answer in
    time."""
    port = _free_port()
    argv = [str(port) if word == "PORT" else word for word in command]
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that what it starts can be ended with it
            )
        except OSError as error:
            raise ServerError(f"{argv[0]} cannot be started: {error}") from error
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log, timeout_s)
            yield url, process.pid
        finally:
            _stop(process)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: IO[bytes], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not _answers(url):
        if _has_ended(process):
            raise ServerError(f"it ended before it answered: {_end_of(log)}")
        if time.monotonic() > deadline_s:
            raise ServerError(f"it was not ready after {timeout_s:g} s: {_end_of(log)}")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=2) as answer:
            return bool(answer.status == 200 and answer.read())
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """The leader first and politely, for it may have children to end; then whatever is left of its
    group."""
    if not _has_ended(process):
        process.terminate()
    deadline_s = time.monotonic() + _STOP_S
    while not _has_ended(process) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Without reaping it: while it is not reaped, its group's number cannot be anyone else's."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-_SHOWN_CHARACTERS:] or "it wrote nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
