"""Keeps a tree of one router and its workers running on this machine.

Invariant: when `run` returns, no child is left, on every path. A child that dies is started again
at its old address; one that cannot start at all ends the tree.
Elsewhere: the decisions (child_life.py), one process (process.py), what runs (topology.py), what a
person sees (narrator.py).
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from baton.core.clock import Clock, MonotonicClock
from baton.launch.child_life import Backoff, ChildLife, GiveUp, Phase
from baton.launch.narrator import Narrator
from baton.launch.probe import http_status
from baton.launch.process import ChildProcess
from baton.launch.topology import ChildSpec, Topology

EXIT_OK, EXIT_FAILED, EXIT_FORCED = 0, 1, 130


@dataclass(frozen=True)
class SupervisorConfig:
    """`drain_s`: time for running requests once the router takes no new ones. `stop_s`: time for
    workers to end in order before they are killed."""

    drain_s: float = 2.0
    stop_s: float = 5.0
    probe_interval_s: float = 0.1
    probe_timeout_s: float = 5.0
    last_output_s: float = 0.5
    backoff: Backoff = field(default_factory=Backoff)


class Supervisor:
    """`announce(pids, took_s)` makes the text shown when everything serves for the first time."""

    def __init__(
        self,
        topology: Topology,
        *,
        narrator: Narrator,
        announce: Callable[[Mapping[str, int], float], str],
        config: SupervisorConfig = SupervisorConfig(),
        environ: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ):
        self._topology = topology
        self._narrator = narrator
        self._announce = announce
        self._config = config
        self._environ = dict(os.environ if environ is None else environ)
        self._clock = MonotonicClock() if clock is None else clock
        self._lives = {spec.name: ChildLife(config.backoff) for spec in topology.children}
        self._running: dict[str, ChildProcess] = {}
        self._executor = ThreadPoolExecutor(max_workers=len(topology.children))
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._workers_ready = asyncio.Event()
        self._all_ready = asyncio.Event()
        self._exit_code = EXIT_OK

    async def run(self) -> int:
        """Runs until a signal or a child that cannot start; returns the process's exit code."""
        async with self._signals():
            keepers = [asyncio.create_task(self._keep(spec)) for spec in self._topology.workers]
            keepers.append(asyncio.create_task(self._keep_router()))
            teller = asyncio.create_task(self._tell_progress())
            stop = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait([*keepers, stop], return_when=asyncio.FIRST_COMPLETED)
                teller.cancel()
                await self._end_children()
            finally:
                for child in self._running.values():
                    child.kill()
                self._stop.set()
                results = await asyncio.gather(*keepers, return_exceptions=True)
                await _cancelled(teller)
                await _cancelled(stop)
                self._executor.shutdown()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return self._exit_code

    async def _keep_router(self) -> None:
        """Started last, since it would report every worker that it cannot reach yet."""
        await _wait_any(self._workers_ready, self._stop)
        await self._keep(self._topology.router)

    async def _keep(self, spec: ChildSpec) -> None:
        """Starts one child, and again whenever it ends, until the tree stops."""
        while not self._stop.is_set():
            exit_code = await self._run_once(spec)
            if self._stop.is_set():
                return
            life = self._lives[spec.name]
            decision = life.on_exit(now_s=self._clock.now_s())
            if isinstance(decision, GiveUp):
                self._exit_code = EXIT_FAILED
                self._narrator.failed(
                    spec.name, f"{spec.name} could not start: {_ending(exit_code)}"
                )
                self._stop.set()
                return
            self._narrator.say(
                f"{spec.name} died: {_ending(exit_code)}; "
                f"starting it again in {decision.delay_s:g} s"
            )
            await _wait_for(self._stop, timeout_s=decision.delay_s)

    async def _run_once(self, spec: ChildSpec) -> int:
        """One process from start to end; its exit code."""
        self._lives[spec.name].on_started()
        try:
            child = await ChildProcess.start(
                spec.argv,
                environ=self._environ,
                on_line=lambda line: self._narrator.child_line(spec.name, line),
            )
        except OSError as error:
            self._narrator.child_line(spec.name, f"cannot start a process: {error}")
            return EXIT_FAILED
        self._running[spec.name] = child
        probe = asyncio.create_task(self._await_ready(spec, child))
        try:
            return await child.wait(self._executor)
        finally:
            del self._running[spec.name]
            await _cancelled(probe)
            await child.finish_output(timeout_s=self._config.last_output_s)

    async def _await_ready(self, spec: ChildSpec, child: ChildProcess) -> None:
        life, started_s = self._lives[spec.name], self._clock.now_s()
        url, is_restart = spec.url + spec.probe_path, life.was_ready
        timeout_s = self._config.probe_timeout_s
        while await http_status(url, timeout_s=timeout_s) != 200:  # noqa: ASYNC110 - a process
            await asyncio.sleep(self._config.probe_interval_s)
        if not child.is_running:
            return
        now_s = self._clock.now_s()
        life.on_ready(now_s=now_s)
        if is_restart:
            self._narrator.say(f"{spec.name} serves again after {now_s - started_s:.1f} s")
        if all(self._lives[worker.name].was_ready for worker in self._topology.workers):
            self._workers_ready.set()
        if all(life.was_ready for life in self._lives.values()):
            self._all_ready.set()

    async def _tell_progress(self) -> None:
        started_s = self._clock.now_s()
        while not await _wait_for(self._all_ready, timeout_s=self._config.probe_interval_s):
            missing = [n for n, life in self._lives.items() if life.phase is not Phase.READY]
            took_s = self._clock.now_s() - started_s
            self._narrator.progress(f"loading {took_s:.0f} s (waiting for {', '.join(missing)})")
        pids = {name: child.pid for name, child in self._running.items()}
        self._narrator.ready(self._announce(pids, self._clock.now_s() - started_s))

    async def _end_children(self) -> None:
        """The router first, so that no request meets a stopping worker; then the workers."""
        router, config = self._topology.router.name, self._config
        await self._terminate([router], timeout_s=config.drain_s)
        await self._terminate(
            [spec.name for spec in self._topology.workers], timeout_s=config.stop_s
        )
        stragglers = list(self._running)
        if stragglers and not self._force.is_set():
            self._narrator.say(f"killing what did not end in time: {', '.join(stragglers)}")

    async def _terminate(self, names: list[str], *, timeout_s: float) -> None:
        """Asks the named children to end and waits, at most `timeout_s` or until forced."""
        for name in names:
            if name in self._running:
                self._running[name].terminate()
        deadline_s = self._clock.now_s() + timeout_s
        while any(name in self._running for name in names):
            if self._clock.now_s() >= deadline_s:
                return
            if await _wait_for(self._force, timeout_s=0.02):
                return

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            self._narrator.say("stopping (again to stop at once)")
            self._stop.set()
        else:
            self._exit_code = EXIT_FORCED
            self._force.set()

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        # `nohup` ignores SIGHUP on purpose, and that must stay so.
        hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]
        for number in signals:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


async def _wait_any(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        await _cancelled(task)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Ends `task`; an error that it had met is raised here."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _wait_for(event: asyncio.Event, *, timeout_s: float) -> bool:
    """Whether `event` was set within `timeout_s`."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    return f"ended by {signal.Signals(-exit_code).name}"
