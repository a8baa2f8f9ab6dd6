"""The machine and the versions that figures belong to: without them a figure means nothing.

Elsewhere: none of this is needed to serve.
"""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
import psutil

from baton.core.clock import Clock
from baton.kernels import _native

_PACKAGES: Final = ("baton", "torch", "numpy")
_CPU_INFO: Final = Path("/proc/cpuinfo")
_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_FALLBACK_CACHE_BYTES: Final = 32 << 20


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`cores` are those this process may use. What else was running: `load_average_before`, of the
    minute before, and `other_cores`, how many cores others kept busy meanwhile."""

    cpu: str
    cores: int
    memory_bytes: int
    last_level_cache_bytes: int
    isa: str
    available_isas: list[str]
    system: str
    python: str
    versions: dict[str, str]
    load_average_before: float
    other_cores: float


class OtherLoad:
    """What others do on this machine, from its construction on."""

    def __init__(self, clock: Clock) -> None:
        self.load_average_before = round(os.getloadavg()[0], 2)
        self._clock = clock
        self._started_s, self._before_s = clock.now_s(), _others_busy_s()

    def mean_cores(self) -> float:
        """Cores that processes other than this one and its ended children kept busy. Includes what
        a hypervisor gave to its other guests."""
        busy_s = _others_busy_s() - self._before_s
        return round(max(0.0, busy_s / (self._clock.now_s() - self._started_s)), 2)


def describe_machine(isa: str, others: OtherLoad, more_packages: Sequence[str] = ()) -> Machine:
    """Call at the end of a run. `isa`: the instruction set of the kernels that ran, or would."""
    return Machine(
        cpu=cpu_name(_read(_CPU_INFO)) or platform.processor() or platform.machine(),
        cores=num_cores(),
        memory_bytes=psutil.virtual_memory().total,
        last_level_cache_bytes=last_level_cache_bytes(),
        isa=isa,
        available_isas=_native.available_isas(),
        system=platform.platform(),
        python=platform.python_version(),
        versions={name: _version(name) for name in (*_PACKAGES, *more_packages)},
        load_average_before=others.load_average_before,
        other_cores=others.mean_cores(),
    )


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def last_level_cache_bytes(folder: Path = _CACHES) -> int:
    """The largest cache that the first core sees; a common size where the system does not tell."""
    sizes = [cache_bytes(_read(path)) for path in folder.glob("index*/size")]
    return max(sizes, default=0) or _FALLBACK_CACHE_BYTES


def cache_bytes(text: str) -> int:
    """Bytes of a size as sysfs writes it ("32768K"); 0 for what is not one."""
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * unit if digits.isdigit() else 0


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def _others_busy_s() -> float:
    """Core seconds since the machine started, without this process and its ended children."""
    machine, own = psutil.cpu_times(), os.times()
    idle_s = machine.idle + getattr(machine, "iowait", 0.0)
    guests_s = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # in user, too
    own_s = own.user + own.system + own.children_user + own.children_system
    return float(sum(machine) - idle_s - guests_s - own_s)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
