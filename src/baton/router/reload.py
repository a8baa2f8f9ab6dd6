"""What SIGHUP does: the configuration is read anew, and what can be changed while serving is.

    reloading.add(fields, prepare)     who can change what: `prepare` checks, and returns what to do
    reloading.reload(read)             all of it, or nothing

Whatever is read from files at start and may change (workers, limits, keys) hangs in here, so that
one signal re-reads everything.
Invariant: an error anywhere, in a file or in a part's `prepare`, leaves all as it was.
Elsewhere: reading flags and file (launch/router_file.py), the signal (server.py), which parts there
are (app.py).
"""

from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

from baton.core.errors import ConfigError
from baton.obs.logs import EventLog
from baton.router.config import RouterConfig

_log = EventLog("baton.router")

Prepare = Callable[[RouterConfig], Callable[[], None]]
"""Gets the configuration to come; raises ConfigError; what it returns must not fail."""

_FLAGS: Final = {
    "max_payload_bytes": "--max-payload-size",
    "request_timeout_s": "--request-timeout-secs",
    "worker_startup_timeout_s": "--worker-startup-timeout-secs",
    "shutdown_grace_s": "--shutdown-grace-period-secs",
    "resume_stall_s": "--resume-stall-secs",
    "worker_wait_s": "--worker-wait-secs",
    "cluster_secret": "--cluster-secret-file",
    "event_id_key": "--event-ids",
    "callers": "--api-keys",
    "worker_key": "--worker-api-key",
    "tls.certificate": "--ssl-certfile",
    "tls.key": "--ssl-keyfile",
    "tls.worker_cas": "--ca-cert-paths",
    "tls.client_certificate": "--client-cert-path",
    "tls.client_key": "--client-key-path",
    "cache.max_hashes": "--max-prefix-hashes",
    "waiting.low_values_first": "--schedule-low-priority-values-first",
}
"""Of fields whose names are not their flags'."""


class Reloading:
    def __init__(self, config: RouterConfig):
        self._config = config
        self._live: set[str] = set()
        self._parts: list[Prepare] = []

    def add(self, live: Collection[str], prepare: Prepare) -> None:
        """`live`: fields of RouterConfig, or "field.field", that this part can change; empty for
        one that only reads files of its own anew."""
        self._live |= set(live)
        self._parts.append(prepare)

    def reload(self, read: Callable[[], RouterConfig]) -> None:
        try:
            wanted = read()
            config, changed, ignored = combined(self._config, wanted, self._live)
            changes = [prepare(config) for prepare in self._parts]
        except ConfigError as error:
            _log.error("configuration is wrong; nothing was changed", reason=str(error))
            return
        for change in changes:
            change()
        self._config = config
        if ignored:
            names = " ".join(flag_of(name) for name in ignored)
            _log.warning("ignored until the router is restarted", changed=names)
        _log.info("configuration read anew", changed=" ".join(changed) or "nothing")


def combined(
    old: RouterConfig, new: RouterConfig, live: Collection[str]
) -> tuple[RouterConfig, list[str], list[str]]:
    """The old configuration with the new one's live fields; which fields are changed by that, and
    which changes are left out. Pure. Raises ConfigError if the mixture contradicts itself."""
    config, changed, ignored = _combined(old, new, live, "")
    return config, changed, ignored


def _combined(
    old: Any, new: Any, live: Collection[str], prefix: str
) -> tuple[Any, list[str], list[str]]:
    values: dict[str, Any] = {}
    changed: list[str] = []
    ignored: list[str] = []
    for field in fields(old):
        name = prefix + field.name
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if name in live:
            values[field.name] = after
            changed.append(name)
        elif is_dataclass(before) and not prefix:
            inner, inner_changed, inner_ignored = _combined(before, after, live, name + ".")
            values[field.name] = inner
            changed += inner_changed
            ignored += inner_ignored
        else:
            ignored.append(name)
    return replace(old, **values), changed, ignored


def flag_of(name: str) -> str:
    return _FLAGS.get(name) or "--" + name.rpartition(".")[2].replace("_", "-")
