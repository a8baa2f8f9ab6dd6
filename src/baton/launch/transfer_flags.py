"""Flags and environment on KV transfer that a worker and `baton serve` share.

Elsewhere: what the Mooncake library does with them (transfer/mooncake.py).
"""

from collections.abc import Mapping
from typing import Any, Final

from baton.core.errors import ConfigError
from baton.transfer.config import MooncakeConfig
from baton.transfer.link import LinkConfig, parse_link

TRANSFER_BACKEND: Final[dict[str, Any]] = {
    "help": "how KV blocks travel; auto: shared memory on one host, else tcp; mooncake and nixl "
    "need their libraries, on both sides"
}
MOONCAKE_PROTOCOL: Final[dict[str, Any]] = {
    "help": "mooncake only: tcp, rdma and so on",
    "env": "MOONCAKE_PROTOCOL",
}
IB_DEVICE: Final[dict[str, Any]] = {
    "help": "mooncake only: network cards for RDMA, by name, joined by commas"
}
SIMULATE_LINK: Final[dict[str, Any]] = {
    "help": "slow KV writes down to a link such as 10Gbps,1ms (bps, kbps, Mbps or Gbps; us, ms or "
    "s one way); loss=SHARE,seed=N fails some of them",
    "metavar": "LINK",
}
VERIFY_KV: Final[dict[str, Any]] = {
    "help": "compare KV blocks that arrive with checksums of those that were sent (decode asks)"
}

MEMORY_POOL_VARIABLE: Final = "SGLANG_MOONCAKE_CUSTOM_MEM_POOL"
FORCE_MNNVL_VARIABLE: Final = "MC_FORCE_MNNVL"
_POOLS: Final = ("NVLINK", "BAREX", "INTRA_NODE_NVLINK")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off", "none"})


def link_of(text: str | None) -> LinkConfig | None:
    """Raises ConfigError naming --simulate-link."""
    return None if text is None else parse_link(text, "--simulate-link")


def mooncake_of(
    protocol: str, ib_device: str, backend: str, environ: Mapping[str, str]
) -> tuple[MooncakeConfig, list[str]]:
    """The library's options, and the names of those given that a worker with `backend` ignores.

    Raises ConfigError naming the variable whose value means nothing."""
    config = MooncakeConfig(
        protocol=protocol,
        device=ib_device,
        memory_pool=_memory_pool(environ.get(MEMORY_POOL_VARIABLE, "")),
        force_mnnvl=_is_true(FORCE_MNNVL_VARIABLE, environ.get(FORCE_MNNVL_VARIABLE, "")),
    )
    given = {
        "--disaggregation-ib-device": config.device,
        MEMORY_POOL_VARIABLE: config.memory_pool,
        FORCE_MNNVL_VARIABLE: config.force_mnnvl,
    }
    ignored = [name for name, value in given.items() if value and backend != "mooncake"]
    return config, ignored


def mooncake_environ(config: MooncakeConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` as the engine process gets it. A variable that is off is left out: the library asks
    whether MC_FORCE_MNNVL is there, and not what it says."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in (MEMORY_POOL_VARIABLE, FORCE_MNNVL_VARIABLE)
    }
    if config.memory_pool:
        kept[MEMORY_POOL_VARIABLE] = config.memory_pool
    if config.force_mnnvl:
        kept[FORCE_MNNVL_VARIABLE] = "1"
    return kept


def _memory_pool(text: str) -> str:
    """As SGLang reads it: a name, or true for NVLINK; "" for none."""
    word = text.strip()
    if word.lower() in _FALSE:
        return ""
    if word.lower() in _TRUE:
        return "NVLINK"
    if word.upper() not in _POOLS:
        raise ConfigError(
            f"{MEMORY_POOL_VARIABLE}={text!r} is not a memory pool; "
            f"give one of {', '.join(_POOLS)}, or unset it"
        )
    return word.upper()


def _is_true(name: str, text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ConfigError(f"{name}={text!r} is neither true nor false; give 1 or unset it")
    return word in _TRUE
