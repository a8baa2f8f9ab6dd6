"""One running child process: started, listened to, signalled, waited for.

Invariant: a child is the leader of a session of its own, so the terminal's Ctrl-C reaches only the
supervisor, and `kill` ends whatever the child itself has started.
Elsewhere: what its ending means (child_life.py).
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from baton.launch.child import child_argv

_READ_BYTES = 65536


class ChildProcess:
    """A child and the task that listens to it. `on_line` gets each line of its standard error;
    standard output is not listened to, since children tell there only what we told them."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: Callable[[str], None]):
        self._process = process
        self._on_line = on_line
        self._output: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        argv: tuple[str, ...],
        *,
        environ: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> "ChildProcess":
        """Must be called on the main thread: the child's life is tied to the calling thread's.
        Raises OSError when the process cannot be created."""
        process = subprocess.Popen(  # noqa: ASYNC220 - starting must not leave this thread
            child_argv(list(argv), parent_pid=os.getpid()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )
        child = cls(process, on_line)
        child._output = asyncio.create_task(child._read_output())
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def wait(self, executor: Executor) -> int:
        """Exit code once the process has ended; negative for the signal that ended it."""
        return await asyncio.get_running_loop().run_in_executor(executor, self._process.wait)

    def terminate(self) -> None:
        """Asks the child to end in order."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends the child and every process of its session that it left in its group."""
        if self.is_running:
            # Not yet reaped, so the group's number cannot belong to anyone else.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def finish_output(self, *, timeout_s: float) -> None:
        """Waits for the last lines. A grandchild may still hold the pipe, hence the limit."""
        assert self._output is not None
        await asyncio.wait([self._output], timeout=timeout_s)
        self._output.cancel()
        await asyncio.gather(self._output, return_exceptions=True)

    async def _read_output(self) -> None:
        assert self._process.stderr is not None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stderr
        )
        rest = b""
        try:
            while chunk := await reader.read(_READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._on_line(line.decode(errors="replace").rstrip("\r"))
            if rest:
                self._on_line(rest.decode(errors="replace"))
        finally:
            transport.close()
