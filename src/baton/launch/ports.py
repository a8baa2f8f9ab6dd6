"""Ports for processes that have yet to start.

Invariant: one `FreePorts` never gives the same port twice. Between the asking and the child's own
bind another program may take it; the child then fails to start and says so.
"""

import errno
import os
import socket

from baton.core.errors import ConfigError


class FreePorts:
    """Asks the system for ports on one address."""

    def __init__(self, host: str = "127.0.0.1"):
        self._host = host
        self._given: set[int] = set()

    def take(self) -> int:
        while True:
            with socket.create_server((self._host, 0)) as server:
                port: int = server.getsockname()[1]
            if port not in self._given:
                self._given.add(port)
                return port


def check_port_is_free(host: str, port: int) -> int:
    """Returns `port`, or a free one for 0. Raises ConfigError when it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as server:
            chosen: int = server.getsockname()[1]
            return chosen
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({_reason(error)}); "
            + _mend(error, port)
        ) from error


def _reason(error: OSError) -> str:
    """The system's own words; `create_server` adds the address, which the flags have told."""
    if _is_unknown_name(error):
        return "there is no host of that name"
    return os.strerror(error.errno) if error.errno else str(error)


def _mend(error: OSError, port: int) -> str:
    if _is_unknown_name(error) or error.errno == errno.EADDRNOTAVAIL:
        return "give --host an address of this machine, such as 127.0.0.1 or 0.0.0.0"
    if error.errno == errno.EACCES:
        return "ports below 1024 need rights that this user lacks; try --port 8000"
    return f"try --port {port + 1 if 0 < port < 65535 else 8000}, or 0 for any free port"


def _is_unknown_name(error: OSError) -> bool:
    """Resolving fails with negative numbers (<netdb.h>), which `create_server` passes on."""
    return error.errno is not None and error.errno < 0
