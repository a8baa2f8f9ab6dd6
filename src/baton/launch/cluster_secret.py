"""The cluster's secret: read once, by the process that reads flags, and handed on out of sight.

Invariant: it stands on no command line and in no log, and errors do not show it.
Elsewhere: what it proves (ipc/peer_auth.py, disagg/bootstrap.py).
"""

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from baton.core.errors import ConfigError
from baton.ipc.framing import frame

CLUSTER_SECRET_VARIABLE: Final = "BATON_CLUSTER_SECRET"
CLUSTER_SECRET_FILE: Final[dict[str, Any]] = {
    "help": "file with the secret that all workers of a cluster share; without it the environment "
    f"variable {CLUSTER_SECRET_VARIABLE} is read",
    "metavar": "PATH",
}
_LEAST_LENGTH = 16
_MEND = "make one with: openssl rand -hex 32"


def read_cluster_secret(path: str | None, environ: Mapping[str, str]) -> str:
    """From the file if one is named, else from the environment; empty if there is none. Raises
    ConfigError naming where it came from."""
    if path is None:
        source, secret = CLUSTER_SECRET_VARIABLE, environ.get(CLUSTER_SECRET_VARIABLE, "").strip()
        if not secret:
            return ""
    else:
        source = f"--cluster-secret-file {path}"
        try:
            secret = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{source} cannot be read ({error}); {_MEND}") from error
    if len(secret) < _LEAST_LENGTH:
        raise ConfigError(
            f"the secret of {source} has {len(secret)} characters, fewer than {_LEAST_LENGTH}; "
            f"{_MEND}"
        )
    return secret


def without_secret(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name != CLUSTER_SECRET_VARIABLE}


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def send_secret(connection: socket.socket, secret: str) -> None:
    """First thing on the socket that the engine process inherits."""
    connection.sendall(frame(secret.encode()))


def receive_secret(connection: socket.socket) -> str:
    """Raises EOFError if the other end has gone."""
    num_bytes = int.from_bytes(_receive(connection, 4), "big")
    return _receive(connection, num_bytes).decode()


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        piece = connection.recv(num_bytes - len(received))
        if not piece:
            raise EOFError("the api process has ended")
        received += piece
    return received
