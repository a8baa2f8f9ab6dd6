"""The supervisor over real processes that stand in for router and workers."""

import asyncio
import functools
import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

import pytest

from baton.launch.child_life import Backoff
from baton.launch.narrator import Narrator
from baton.launch.ports import FreePorts
from baton.launch.probe import http_status
from baton.launch.supervisor import Supervisor, SupervisorConfig
from baton.launch.topology import ChildSpec, Topology

_FAKE = str(Path(__file__).with_name("fake_child.py"))
_CONFIG = SupervisorConfig(
    drain_s=0.3, stop_s=0.3, probe_interval_s=0.02, backoff=Backoff(first_s=0.02)
)


def on_a_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Tree:
    """A supervisor of fakes, what it printed, and the pids it announced."""

    def __init__(self, *worker_modes: str, config: SupervisorConfig = _CONFIG):
        ports = FreePorts()
        router = _spec("router", ports.take(), "")
        workers = [_spec(f"w{i}", ports.take(), mode) for i, mode in enumerate(worker_modes)]
        self.topology = Topology(router, tuple(workers))
        self.out, self.err = io.StringIO(), _Watched()
        self.pids: dict[str, int] = {}
        self.is_ready = asyncio.Event()
        self.supervisor = Supervisor(
            self.topology,
            narrator=Narrator(is_verbose=False, out=self.out, err=self.err),
            announce=self._announce,
            config=config,
        )

    def _announce(self, pids: Mapping[str, int], took_s: float) -> str:
        self.pids = dict(pids)
        self.is_ready.set()
        return "all serve"

    async def run_until(self, act: Callable[[], None]) -> int:
        """Runs the tree, calls `act` once all serve; the exit code."""
        task = asyncio.create_task(self.supervisor.run())
        await asyncio.wait_for(self.is_ready.wait(), 20)
        act()
        return await asyncio.wait_for(task, 20)


class _Watched(io.StringIO):
    """Standard error whose lines can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def write(self, text: str) -> int:
        self._changed.set()
        return super().write(text)

    async def wait_for(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.getvalue():
                self._changed.clear()
                await self._changed.wait()


def _spec(name: str, port: int, mode: str) -> ChildSpec:
    argv = (sys.executable, _FAKE, str(port), *([mode] if mode else []))
    return ChildSpec(name, "127.0.0.1", port, "/health", argv)


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _is_gone(pid: int) -> bool:
    """Ended and reaped."""
    return not Path(f"/proc/{pid}").exists()


@on_a_loop
async def test_starts_everything_and_ends_it_on_ctrl_c() -> None:
    tree = Tree("", "log")
    assert await tree.run_until(_interrupt) == 0
    assert set(tree.pids) == {"router", "w0", "w1"}
    assert all(_is_gone(pid) for pid in tree.pids.values())
    assert tree.out.getvalue() == "all serve\n"
    assert "[w1] warning: the oven is cold\n" in tree.err.getvalue()
    assert "killing" not in tree.err.getvalue()


@on_a_loop
async def test_a_worker_that_cannot_start_ends_the_tree_with_its_own_words() -> None:
    tree = Tree("", "fail")
    assert await asyncio.wait_for(tree.supervisor.run(), 20) == 1
    lines = tree.err.getvalue().splitlines()
    assert lines[-2:] == ["[w1] error: no such model", "w1 could not start: exit code 3"]
    assert tree.out.getvalue() == ""


@on_a_loop
async def test_a_killed_worker_is_started_again_at_its_address() -> None:
    tree = Tree("")
    task = asyncio.create_task(tree.supervisor.run())
    await asyncio.wait_for(tree.is_ready.wait(), 20)
    os.kill(tree.pids["w0"], signal.SIGKILL)
    await tree.err.wait_for("w0 serves again")
    assert "w0 died: ended by SIGKILL; starting it again in 0.02 s" in tree.err.getvalue()
    (worker,) = tree.topology.workers
    assert await http_status(worker.url + "/health", timeout_s=5) == 200
    _interrupt()
    assert await asyncio.wait_for(task, 20) == 0


@on_a_loop
async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    tree = Tree("stubborn")
    assert await tree.run_until(_interrupt) == 0
    assert "killing what did not end in time: w0" in tree.err.getvalue()
    assert _is_gone(tree.pids["w0"])


@on_a_loop
async def test_a_second_ctrl_c_does_not_wait() -> None:
    tree = Tree("stubborn", config=SupervisorConfig(stop_s=60.0, probe_interval_s=0.02))

    async def again() -> None:
        await tree.err.wait_for("stopping")
        _interrupt()

    second = asyncio.create_task(again())
    assert await tree.run_until(_interrupt) == 130
    await second
    assert _is_gone(tree.pids["w0"])


@on_a_loop
async def test_ctrl_c_while_loading_ends_everything() -> None:
    tree = Tree("")
    task = asyncio.create_task(tree.supervisor.run())
    await asyncio.sleep(0)  # the children are being started; none serves yet
    _interrupt()
    assert await asyncio.wait_for(task, 20) == 0


_PARENT = """
import subprocess, sys
from baton.launch.child import child_argv
import os
argv = child_argv([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"],
                  parent_pid=os.getpid() if sys.argv[1] == "own" else 1)
child = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
print(child.pid, child.stdout.readline().decode().strip(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("parent", ["own", "gone"])
def test_children_die_with_their_parent(parent: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid, *up = process.stdout.readline().split()
        if parent == "gone":
            assert up == [], "a child whose parent has gone must not begin"
        else:
            pidfd = os.pidfd_open(int(pid))
            process.kill()
            _wait_until_ended(pidfd)
        process.kill()


def _wait_until_ended(pidfd: int) -> None:
    """A pidfd is readable once its process has ended."""
    try:
        assert select.select([pidfd], [], [], 10)[0], "the child outlived its parent"
    finally:
        os.close(pidfd)
