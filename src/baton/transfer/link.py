"""A slow network on paper: when a write would arrive over a link of given bandwidth and delay.

All writes of one engine share the link, one after the other; a write arrives as a whole when its
last byte would. Control messages are not slowed down: a ticket is DONE when its bytes are there,
and what tells of it would have travelled right behind them.

Elsewhere: holding writes back until then (routed.py).
"""

import math
import random
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from baton.core.errors import ConfigError
from baton.transfer.protocol import Copy
from baton.transfer.routed_peer import Ending, Passage

_BITS_PER_S = {"bps": 1.0, "kbps": 1e3, "Mbps": 1e6, "Gbps": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([A-Za-z]+)")
_EXAMPLE = '"10Gbps,1ms"'


@dataclass(frozen=True)
class LinkConfig:
    """`bits_per_s`: payload per second, infinite for no limit. `delay_s`: one way. `loss`: the
    share of writes that fail, drawn from a generator seeded with `seed`."""

    bits_per_s: float = math.inf
    delay_s: float = 0.0
    loss: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.bits_per_s > 0:
            raise ConfigError(f"bandwidth {self.bits_per_s:g} bps is not above 0; try 10Gbps")
        if not 0 <= self.delay_s < math.inf:
            raise ConfigError(f"delay {self.delay_s:g} s is not a time from 0 on; try 1ms")
        if not 0 <= self.loss <= 1:
            raise ConfigError(f"loss {self.loss:g} is not between 0 and 1; try loss=0.01")


def parse_link(text: str, field: str = "--simulate-link") -> LinkConfig:
    """A link from words such as "10Gbps,1ms,loss=0.01,seed=7", in any order; what is not said is
    as good as it gets, but bandwidth or delay must be. Raises ConfigError naming `field`."""
    found: dict[str, float] = {}
    for word in (part.strip() for part in text.split(",")):
        try:
            name, value = _parse_word(word)
        except ValueError as error:
            raise ConfigError(f"{field} {text!r}: {error}") from error
        if name in found:
            raise ConfigError(f"{field} {text!r}: {word!r} gives the {name} again; try without it")
        found[name] = value
    if not found.keys() & {"bandwidth", "delay"}:
        raise ConfigError(f"{field} {text!r} gives no bandwidth and no delay; try {_EXAMPLE}")
    try:
        return LinkConfig(
            bits_per_s=found.get("bandwidth", math.inf),
            delay_s=found.get("delay", 0.0),
            loss=found.get("loss", 0.0),
            seed=int(found.get("seed", 0)),
        )
    except ConfigError as error:
        raise ConfigError(f"{field} {text!r}: {error}") from error


def _parse_word(word: str) -> tuple[str, float]:
    """What a word is about, and its value in bits per second, seconds, or as it stands."""
    key, is_named, value = word.partition("=")
    if is_named and key == "loss":
        try:
            return key, float(value)
        except ValueError:
            raise ValueError(f"loss {value!r} is not a number; try loss=0.01") from None
    if is_named and key == "seed":
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"seed {value!r} is not a whole number from 0 on; try seed=1")
        return key, int(value)
    quantity = _QUANTITY.fullmatch(word)
    if quantity is not None and quantity[2] in _BITS_PER_S:
        return "bandwidth", float(quantity[1]) * _BITS_PER_S[quantity[2]]
    if quantity is not None and quantity[2] in _SECONDS:
        return "delay", float(quantity[1]) * _SECONDS[quantity[2]]
    raise ValueError(
        f"{word!r} is neither a bandwidth ({', '.join(_BITS_PER_S)}), nor a delay "
        f"({', '.join(_SECONDS)}), loss= or seed=; try {_EXAMPLE}"
    )


class SimulatedLink:
    """A `Route` over one link. Thread-safe; the same order of writes has the same losses."""

    def __init__(self, config: LinkConfig):
        self._config = config
        self._lock = threading.Lock()
        self._rng = random.Random(config.seed)
        self._free_s = -math.inf

    def plan(self, window: str, copies: Sequence[Copy], now_s: float) -> Passage:
        num_bits = 8 * sum(max(0, copy.num_bytes) for copy in copies)
        with self._lock:
            start_s = max(now_s, self._free_s)
            self._free_s = start_s + num_bits / self._config.bits_per_s
            due_s = self._free_s + self._config.delay_s
            is_lost = self._rng.random() < self._config.loss
        if is_lost:
            return Passage(start_s, due_s, (), Ending.FAILS, "lost on the simulated link")
        return Passage(start_s, due_s, (tuple(copies),))
