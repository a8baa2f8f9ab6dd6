"""Who asks for a short slice has it, and nobody that it starts."""

import ctypes
import os
import platform
import struct
import subprocess
import sys

import pytest

from baton.core.prompt_waking import SLICE_NS, ask_for_short_slice

_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def _slice_ns() -> int:
    """Of this thread: sched_runtime of sched_getattr(2)."""
    into = ctypes.create_string_buffer(_ATTRIBUTES.size)
    number = _GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 0, into, _ATTRIBUTES.size, 0) == 0
    return int(_ATTRIBUTES.unpack(into.raw)[5])


def _ask_and_tell() -> None:
    is_set, nice = ask_for_short_slice(), os.getpriority(os.PRIO_PROCESS, 0)
    child = subprocess.run(
        [sys.executable, __file__, "tell"], check=True, capture_output=True, text=True
    )
    print(is_set, _slice_ns(), nice, child.stdout.strip())


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _GETATTR or _release() < (6, 12),
    reason="needs Linux 6.12, which lets ordinary processes choose their slice",
)
def test_only_the_one_that_asks_has_a_short_slice() -> None:
    asked = subprocess.run(
        [sys.executable, __file__, "ask"], check=True, capture_output=True, text=True
    )
    is_set, own_ns, nice, childs_ns = asked.stdout.split()
    assert (is_set, int(own_ns)) == ("True", SLICE_NS)
    assert int(nice) == os.getpriority(os.PRIO_PROCESS, 0)
    assert int(childs_ns) > SLICE_NS


def test_where_it_is_not_to_be_had_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "a machine that nobody knows")
    assert not ask_for_short_slice()


if __name__ == "__main__":
    _ask_and_tell() if sys.argv[1] == "ask" else print(_slice_ns())
