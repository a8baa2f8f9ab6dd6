"""Processor time: of this client, of the server's processes, of the machine.

Elsewhere: what the machine is (baton/bench/machine.py).
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import psutil

from baton.bench.serve.metrics import rounded
from baton.core.errors import ConfigError


class CpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """Mean numbers of cores that were busy. `server_cores` and `other_cores`, which are neither the
    client's nor the server's, are None without --server-pid. `num_server_processes_ended` went
    away meanwhile: what they did after the start is not in it."""

    cores: int
    client_cores: float
    server_cores: float | None
    machine_cores: float
    other_cores: float | None
    num_server_processes: int
    num_server_processes_ended: int

    @property
    def server_share(self) -> float | None:
        """Of the machine's cores, how much the server kept busy."""
        return None if self.server_cores is None else rounded(self.server_cores / self.cores)


def require_processes(pids: Sequence[int]) -> None:
    """Raises ConfigError for a process that is not there."""
    for pid in pids:
        if not psutil.pid_exists(pid):
            raise ConfigError(f"--server-pid {pid}: there is no such process; see `pgrep -a`")


@dataclass(frozen=True)
class _Snapshot:
    at_s: float
    client_s: float
    machine_s: float
    server_s: dict[tuple[int, float], float]


class CpuMeter:
    """Reads all counters at its construction and at `use`, never between: looking for processes
    takes milliseconds, which a stream's next token would wait for."""

    def __init__(self, server_pids: Sequence[int]):
        self._pids = server_pids
        self._begin = self._look()

    def use(self) -> CpuUse:
        begin, end = self._begin, self._look()
        lasted_s = max(end.at_s - begin.at_s, 1e-9)
        server_s = sum(
            seconds - begin.server_s.get(process, 0.0) for process, seconds in end.server_s.items()
        )
        client_s, machine_s = end.client_s - begin.client_s, end.machine_s - begin.machine_s
        other_s = max(0.0, machine_s - client_s - server_s)
        return CpuUse(
            cores=psutil.cpu_count() or 1,
            client_cores=rounded(client_s / lasted_s),
            server_cores=rounded(server_s / lasted_s) if self._pids else None,
            machine_cores=rounded(machine_s / lasted_s),
            other_cores=rounded(other_s / lasted_s) if self._pids else None,
            num_server_processes=len(end.server_s),
            num_server_processes_ended=len(begin.server_s.keys() - end.server_s.keys()),
        )

    def _look(self) -> _Snapshot:
        own = os.times()
        return _Snapshot(
            time.perf_counter(), own.user + own.system, _machine_s(), _tree_s(self._pids)
        )


def _tree_s(pids: Sequence[int]) -> dict[tuple[int, float], float]:
    """Processor seconds of every process of the trees, by id and start: ids are used again."""
    found: dict[tuple[int, float], float] = {}
    for pid in pids:
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                times = process.cpu_times()
                found[process.pid, process.create_time()] = times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return found


def _machine_s() -> float:
    """Core seconds since the machine started that were not idle."""
    times = psutil.cpu_times()
    guests_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user, too
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - guests_s)
