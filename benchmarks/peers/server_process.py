"""A peer's server as a child process: started, waited for, and always stopped."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.5
_STOP_S: Final = 20.0
_PR_SET_CHILD_SUBREAPER: Final = 36


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    url: str,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    start_timeout_s: float = 300.0,
) -> Iterator[None]:
    """Run `command` until the block ends; the block starts once `url`/health answers 200.

    The server inherits this process's cores. Raises RuntimeError, naming `log`, when the server
    ends or does not answer in time."""
    _adopt_orphans()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # so that its children can be stopped with it
        )
        try:
            _wait_until_healthy(process, url, log, start_timeout_s)
            yield
        finally:
            _stop(process)


def _wait_until_healthy(
    process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not _is_healthy(url):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}; see {log}")
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the server was not ready after {timeout_s:.0f} s; see {log}")
        time.sleep(_POLL_S)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group, politely first, and reap every member, so that nothing runs
    on and the CPU time of all counts as ours (other_load.py)."""
    for number, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-process.pid, 0)


def _adopt_orphans() -> None:
    """Make the server's children ours when it ends before them (prctl(2), Linux)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
