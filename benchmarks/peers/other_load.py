"""How many cores other work took during a measurement, which a load average cannot tell apart.

Linux only. Standard library only (see workload.py).
"""

import os
import resource
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """Watches from its construction on."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._before_s = _busy_s() - _own_s()

    def mean_cores(self) -> float:
        """Cores that processes other than this one and its ended children kept busy, on average.
        Children that still run count as others: stop them first."""
        others_s = _busy_s() - _own_s() - self._before_s
        return max(0.0, others_s / (time.monotonic() - self._started_s))


def _busy_s() -> float:
    """CPU seconds of all cores since boot: user, nice, system, irq, softirq, steal (proc(5))."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def _own_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
