"""A worker's options about its routers, and the announcer they ask for.

Elsewhere: announcing (cluster/announcer.py), the secret (cluster_secret.py).
"""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from baton.cluster.announcer import Announcer, WorkerAddress
from baton.core.errors import ConfigError
from baton.core.request import Role
from baton.launch.cluster_secret import CLUSTER_SECRET_VARIABLE
from baton.launch.reachable import reachable_address

ROUTER_URL: Final[dict[str, Any]] = {
    "help": "router at which this worker announces itself, with the cluster's secret as proof; may "
    "be given several times",
    "metavar": "URL",
}
ANNOUNCE_URL: Final[dict[str, Any]] = {
    "help": "URL under which routers reach this worker (default: http:// with --host and --port; "
    "where --host is a wildcard, this host's address)",
    "metavar": "URL",
}


def check_announcing(router_urls: Sequence[str], announce_url: str | None, secret: str) -> None:
    """Raises ConfigError, before anything is loaded."""
    for url in router_urls:
        _check_url("--router-url", url)
    if announce_url is not None:
        _check_url("--announce-url", announce_url)
        if not router_urls:
            raise ConfigError("--announce-url is told to nobody; name a router with --router-url")
    if router_urls and not secret:
        raise ConfigError(
            "--router-url needs the cluster's secret, without which no router believes this "
            f"worker; set the router's {CLUSTER_SECRET_VARIABLE} here, too"
        )


def make_announcer(
    router_urls: Sequence[str],
    secret: str,
    *,
    announce_url: str | None,
    host: str,
    port: int,
    role: Role,
    bootstrap_port: int | None,
) -> Announcer:
    """`host` and `port` are what this worker listens on."""
    address = WorkerAddress(
        url=(announce_url or _own_url(host, port)).rstrip("/"),
        role=role,
        bootstrap_port=bootstrap_port,
    )
    return Announcer([url.rstrip("/") for url in router_urls], secret, address)


def _own_url(host: str, port: int) -> str:
    reachable = reachable_address(host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _check_url(flag: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.path not in ("", "/") or parts.query or parts.username:
        raise ConfigError(f"{flag} {url!r} is not http://HOST:PORT; try http://127.0.0.1:30000")
