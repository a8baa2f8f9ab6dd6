"""Processor time of trees of processes."""

import os
import subprocess
import sys

import pytest

from baton.bench.serve.cpu_use import CpuMeter, require_processes
from baton.core.errors import ConfigError

# Burns a fixed amount of processor time, however slow the machine is, in a child of its own.
BURN = """
import subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.3: pass\\nprint('done', flush=True)\\ninput()"
pipe = subprocess.PIPE
child = subprocess.Popen([sys.executable, "-c", burn], stdin=pipe, stdout=pipe)
print(child.stdout.readline().decode(), end="", flush=True)
input()
child.communicate(b"\\n")
"""


def test_children_belong_to_the_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            meter = CpuMeter([parent.pid])
            assert parent.stdout.readline() == b"done\n"
            use = meter.use()
        finally:
            parent.communicate(b"\n")
    assert use.num_server_processes == 2
    assert use.server_cores is not None
    assert use.server_cores > 0
    assert use.other_cores is not None
    parts = use.client_cores + use.server_cores + use.other_cores
    assert parts >= use.machine_cores - 0.01
    assert use.num_server_processes_ended == 0
    assert use.cores == os.cpu_count()


def test_processes_that_end_are_told() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        meter = CpuMeter([server.pid])
        server.communicate(b"\n")
    use = meter.use()
    assert (use.num_server_processes, use.num_server_processes_ended) == (0, 1)
    assert use.server_cores == 0.0


def test_without_processes_nothing_is_said_of_the_server() -> None:
    use = CpuMeter([]).use()
    assert use.server_cores is None
    assert use.other_cores is None
    assert use.client_cores >= 0
    assert use.machine_cores >= 0


def test_a_process_that_is_not_there_is_named() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    with pytest.raises(ConfigError, match=f"--server-pid {gone.pid}: there is no such process"):
        require_processes([gone.pid])
