"""How KV moves: threads, the queues that the writes of one peer are dealt into, and what only
Mooncake takes.

Elsewhere: who works off the queues (tcp_peer.py, shm_peer.py), reading the environment (launch/).
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.core.errors import ConfigError

_PREFIX = "SGLANG_DISAGGREGATION_"
_SHARE_OF_CORES = 0.75
_MOST_THREADS = 256
_MOST_QUEUES = 64


@dataclass(frozen=True)
class MooncakeConfig:
    """`protocol` and `device` are the library's words: "tcp", "rdma" with the names of network
    cards, and so on. `memory_pool` and `force_mnnvl` are for NVLink; it takes them from the
    environment of the process (launch/transfer_flags.py)."""

    protocol: str = "tcp"
    device: str = ""
    memory_pool: str = ""
    force_mnnvl: bool = False


@dataclass(frozen=True)
class TransferConfig:
    """`num_threads`: the threads of one transport that copy or speak to peers. `num_queues`: per
    peer; a window's writes are all in one queue and move in posting order, while queues move side
    by side, so that neither a slow peer nor a huge transfer holds up another queue."""

    num_threads: int = 1
    num_queues: int = 4
    mooncake: MooncakeConfig = field(default_factory=MooncakeConfig)

    def __post_init__(self) -> None:
        for name, most in (("num_threads", _MOST_THREADS), ("num_queues", _MOST_QUEUES)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}; it must be from 1 to {most}")

    @staticmethod
    def from_environ(environ: Mapping[str, str], num_cores: int) -> "TransferConfig":
        """SGLang's variables: SGLANG_DISAGGREGATION_THREAD_POOL_SIZE (default: 75 % of the cores)
        and SGLANG_DISAGGREGATION_QUEUE_SIZE. Raises ConfigError naming the one that is wrong."""
        num_threads = min(_MOST_THREADS, max(1, int(num_cores * _SHARE_OF_CORES)))
        return TransferConfig(
            num_threads=_count(environ, "THREAD_POOL_SIZE", num_threads, _MOST_THREADS),
            num_queues=_count(environ, "QUEUE_SIZE", TransferConfig.num_queues, _MOST_QUEUES),
        )


def queue_of(window: str, num_queues: int) -> int:
    """The queue that all writes of this window are in."""
    return zlib.crc32(window.encode()) % num_queues


def _count(environ: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = environ.get(_PREFIX + name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ConfigError(
            f"{_PREFIX}{name}={text!r} is not a whole number from 1 to {most}; try {default}"
        )
    return int(text)
