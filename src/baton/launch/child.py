"""Ties a child's life to its parent's: when the parent ends, however it ends, so does the child.

Two ways in. A process we write calls `arm_parent_death_signal` early. Any other program is started
through this file, which arms the signal and becomes that program (the setting survives `exec`):

    python child.py PARENT_PID PROGRAM [ARGUMENT ...]

Invariant: nothing but the standard library is imported, so that the detour costs milliseconds.
The kernel sends the signal when the *thread* that started the child ends: start children from a
thread that lives as long as the process.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def arm_parent_death_signal(
    parent_pid: int, *, death_signal: signal.Signals = signal.SIGTERM
) -> None:
    """Asks the kernel to send `death_signal` to this process when its parent ends.

    `parent_pid` is the parent's own `os.getpid()`, handed down: if the parent was gone before the
    request reached the kernel, no signal would ever come, so this process ends itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(number)}")
    if os.getppid() != parent_pid:
        signal.signal(death_signal, signal.SIG_DFL)
        os.kill(os.getpid(), death_signal)


def child_argv(program: list[str], *, parent_pid: int) -> list[str]:
    """The command that runs `program` (absolute path first) with the death signal armed."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(parent_pid), *program]


def main() -> None:
    parent_pid, program = int(sys.argv[1]), sys.argv[2:]
    arm_parent_death_signal(parent_pid)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
