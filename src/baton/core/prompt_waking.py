"""Run soon after waking, on cores that somebody else keeps busy.

Linux lets whoever computes go on to the end of its slice of some milliseconds, seen at the next
tick, before it runs one that wakes. Where engines have all cores, a token may wait for that in each
process on its way out. A process with a shorter slice is run at once (Linux 6.12 on: `sched(7)`,
`sched_setattr(2)`, whose sched_runtime is the slice of an ordinary process); its share of the time
stays what it was. Elsewhere nothing changes.
"""

import ctypes
import os
import platform
import struct
import sys
from typing import Final

SLICE_NS: Final = 100_000
"""The shortest that the kernel takes: kernel/sched/fair.c, __setparam_fair."""

_SYSCALL_NUMBERS: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_RESET_ON_FORK: Final = 1
"""SCHED_FLAG_RESET_ON_FORK: whoever is started by this thread has the usual slice."""
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period."""


def ask_for_short_slice() -> bool:
    """For the calling thread and none that it starts. False: the system does not have it, or does
    not let us."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _SCHED_ATTR.pack(
        _SCHED_ATTR.size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, SLICE_NS, 0, 0
    )
    status: int = ctypes.CDLL(None).syscall(number, 0, attributes, 0)
    return status == 0
