"""Which processes can share memory with this one.

Elsewhere: choosing a backend by it (select.py).
"""

import os
from pathlib import Path


def host_id() -> str:
    """Equal for processes that can reach each other's shared memory, and only for those.

    Same boot of the same kernel, same network namespace (abstract sockets live in one), and same
    user: other users are turned away, so for them this is another host.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    network_namespace = os.stat("/proc/self/ns/net").st_ino
    return f"{boot_id}/{network_namespace}/{os.getuid()}"
