"""Flags on KV transfer that a worker and `baton serve` share."""

from typing import Any, Final

from baton.transfer.link import LinkConfig, parse_link

SIMULATE_LINK: Final[dict[str, Any]] = {
    "help": "slow KV writes down to a link such as 10Gbps,1ms (bps, kbps, Mbps or Gbps; us, ms or "
    "s one way); loss=SHARE,seed=N fails some of them",
    "metavar": "LINK",
}
VERIFY_KV: Final[dict[str, Any]] = {
    "help": "compare KV blocks that arrive with checksums of those that were sent (decode asks)"
}


def link_of(text: str | None) -> LinkConfig | None:
    """Raises ConfigError naming --simulate-link."""
    return None if text is None else parse_link(text, "--simulate-link")
