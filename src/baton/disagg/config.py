"""Deadlines of the hand-over. Variables that SGLang has are its own and mean the same; the others
begin with BATON_. Which stage each one limits: stage.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from baton.core.errors import ConfigError

_PREFIX = "SGLANG_DISAGGREGATION_"
_OWN_PREFIX = "BATON_DISAGGREGATION_"


@dataclass(frozen=True)
class DisaggConfig:
    """`bootstrap_timeout_s`: prefill waits for decode's blocks. `waiting_timeout_s`: decode waits,
    first for room in its pool, then for the KV. A silent peer is given up after
    `heartbeat_interval_s * heartbeat_max_failure` seconds; the defaults are Baton's own, so that a
    hung peer is noticed in 3 s rather than SGLang's 10. `connect_timeout_s`: prefill connects to
    decode's KV pool. `stall_timeout_s`: how long a peer may take no byte of its writes.
    `release_warning_s`: blocks of a failed hand-over that wait longer for their release are said
    and counted; only the peer's word or end frees them."""

    bootstrap_timeout_s: float = 300.0
    waiting_timeout_s: float = 300.0
    heartbeat_interval_s: float = 1.0
    heartbeat_max_failure: int = 3
    connect_timeout_s: float = 5.0
    stall_timeout_s: float = 10.0
    release_warning_s: float = 30.0

    @staticmethod
    def from_environ(environ: Mapping[str, str]) -> "DisaggConfig":
        """Raises ConfigError naming the variable that is not a positive (whole) number."""
        defaults = DisaggConfig()
        return DisaggConfig(
            bootstrap_timeout_s=_seconds(
                environ, "BOOTSTRAP_TIMEOUT", defaults.bootstrap_timeout_s
            ),
            waiting_timeout_s=_seconds(environ, "WAITING_TIMEOUT", defaults.waiting_timeout_s),
            heartbeat_interval_s=_seconds(
                environ, "HEARTBEAT_INTERVAL", defaults.heartbeat_interval_s
            ),
            heartbeat_max_failure=_count(
                environ, "HEARTBEAT_MAX_FAILURE", defaults.heartbeat_max_failure
            ),
            connect_timeout_s=_seconds(
                environ, "CONNECT_TIMEOUT", defaults.connect_timeout_s, _OWN_PREFIX
            ),
            stall_timeout_s=_seconds(
                environ, "STALL_TIMEOUT", defaults.stall_timeout_s, _OWN_PREFIX
            ),
            release_warning_s=_seconds(
                environ, "RELEASE_WARNING", defaults.release_warning_s, _OWN_PREFIX
            ),
        )


def _seconds(environ: Mapping[str, str], name: str, default: float, prefix: str = _PREFIX) -> float:
    text = environ.get(prefix + name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ConfigError(f"{prefix}{name}={text!r} is not a positive number; try {default:g}")
    return value


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(_PREFIX + name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"{_PREFIX}{name}={text!r} is not a positive whole number; try {default}")
    return int(text)
