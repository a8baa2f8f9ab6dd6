"""Faults on the way of a write, drawn from a seed: `faulty(transport, faults)` wraps any transport.

The same order of writes meets the same faults. All of them stay within the contract of transports
(transfer/protocol.py) but these, which are what a network may do to who relies on more: writes of
different windows overtake each other, and the bytes that arrive are not those that were sent.

Elsewhere: holding writes back (transfer/routed_peer.py), bandwidth and delay (transfer/link.py).
"""

import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from baton.core.clock import Clock
from baton.core.errors import ConfigError
from baton.transfer.protocol import Copy, KvTransport
from baton.transfer.routed import RoutedTransport
from baton.transfer.routed_peer import CallLoop, Ending, Passage

_SHARES = ("lose", "stall", "refuse", "duplicate", "corrupt", "overtake")
_NUM_TRIES = 4096


@dataclass(frozen=True)
class FaultConfig:
    """How often what goes wrong; at most one thing with each write.

    Shares of all writes: `lose`, half of it is written and then it fails; `stall`, it never
    completes, unless it is cancelled; `refuse`, it fails and nothing is written; `duplicate`, it
    is written twice; `corrupt`, one byte of it arrives wrong; `overtake`, it is held back for
    `hold_s`, while those of other windows pass by. The `die_at`-th write (from 1) kills its peer,
    and from the `hang_at`-th on no write ends before its peer is closed.
    """

    seed: int = 0
    lose: float = 0.0
    stall: float = 0.0
    refuse: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    overtake: float = 0.0
    hold_s: float = 0.01
    die_at: int | None = None
    hang_at: int | None = None

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name):g} is not a share; try 0.1")
        total = sum(getattr(self, name) for name in _SHARES)
        if total > 1 + 1e-9:
            raise ConfigError(f"the shares of {', '.join(_SHARES)} add up to {total:g}, above 1")
        if not 0 <= self.hold_s < math.inf:
            raise ConfigError(f"hold_s {self.hold_s:g} is not a time from 0 on; try 0.01")
        for name in ("die_at", "hang_at"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value} is no write's number; the first one is 1")


def faulty(
    transport: KvTransport,
    faults: FaultConfig,
    region: memoryview | None = None,
    *,
    clock: Clock | None = None,
    loop: CallLoop | None = None,
) -> RoutedTransport:
    """`region`: the bytes that `transport` writes from, needed to corrupt."""
    if faults.corrupt and region is None:
        raise ConfigError(f"corrupt {faults.corrupt:g} needs the region's bytes; give region")
    return RoutedTransport(transport, FaultyRoute(faults, region), clock=clock, loop=loop)


class FaultyRoute:
    """A `Route`; `num_writes` counts what has been posted. Thread-safe."""

    def __init__(self, faults: FaultConfig, region: memoryview | None = None):
        self._faults = faults
        self._region = region
        self._rng = random.Random(faults.seed)
        self._lock = threading.Lock()
        self.num_writes = 0

    def plan(self, window: str, copies: Sequence[Copy], now_s: float) -> Passage:
        faults, whole = self._faults, tuple(copies)
        with self._lock:
            self.num_writes += 1
            number, fault = self.num_writes, self._draw()
            if faults.hang_at is not None and number >= faults.hang_at:
                return Passage(now_s, math.inf, (), Ending.PEER_HANGS)
            if number == faults.die_at:
                return Passage(now_s, now_s, (), Ending.PEER_DIES, f"write {number} killed it")
            match fault:
                case "lose":
                    half = _first_half(copies)
                    return Passage(now_s, now_s, (half,), Ending.FAILS, f"write {number} was lost")
                case "stall":
                    return Passage(now_s, math.inf, ())
                case "refuse":
                    error = f"write {number} was refused"
                    return Passage(now_s, now_s, (), Ending.FAILS, error)
                case "duplicate":
                    return Passage(now_s, now_s, (whole, whole))
                case "corrupt":
                    return Passage(now_s, now_s, (whole, self._wrong_byte(copies)))
                case "overtake":
                    return Passage(now_s, now_s + faults.hold_s, (whole,))
        return Passage(now_s, now_s, (whole,))

    def _draw(self) -> str:
        """The fault of the next write, "" for none."""
        left = self._rng.random()
        for name in _SHARES:
            left -= getattr(self._faults, name)
            if left < 0:
                return name
        return ""

    def _wrong_byte(self, copies: Sequence[Copy]) -> tuple[Copy, ...]:
        """One byte out of the ticket's own source, so that it stays what it is until the write has
        ended, for a place where another is right."""
        assert self._region is not None
        ranges = [copy for copy in copies if copy.num_bytes > 0]
        if not ranges:
            return ()
        for _ in range(_NUM_TRIES):
            right, wrong = self._rng.choice(ranges), self._rng.choice(ranges)
            target = self._rng.randrange(right.num_bytes)
            source = wrong.src_offset + self._rng.randrange(wrong.num_bytes)
            if self._region[source] != self._region[right.src_offset + target]:
                return (Copy(source, right.dst_offset + target, 1),)
        raise AssertionError("all bytes of the write are equal: there is no wrong one among them")


def _first_half(copies: Sequence[Copy]) -> tuple[Copy, ...]:
    left = sum(copy.num_bytes for copy in copies) // 2
    half = []
    for copy in copies:
        half.append(Copy(copy.src_offset, copy.dst_offset, min(left, copy.num_bytes)))
        left -= half[-1].num_bytes
    return tuple(half)
