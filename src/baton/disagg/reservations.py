"""Reservations that have no leg: they wait for their request, or come after its end, or too late.

Each reservation is a lease: a decode engine numbers them, and says them in the order of their
numbers (generations). A prefill engine remembers the newest generation that each decode engine has
reserved or cancelled, and takes none that is not newer: a copy of an old reservation, or one that
is read after its cancel (they may come over two connections), can never start a write.
Elsewhere: reservations with a leg (prefill.py).
"""

from collections import OrderedDict
from dataclasses import dataclass

from baton.core.request import Finish
from baton.disagg.prefill_leg import Pair, Reservation

_MAX_PARKED = 8192
"""Reservations that may wait for their request; more than decode workers ever have under way."""
_REMEMBER_S = 10.0
"""How much later than its request's end a reservation may come and still be told why."""
_MAX_ENGINES = 4096
"""Lives of decode engines whose newest generation is remembered; those heard last stay."""


@dataclass(frozen=True)
class _GivenUp:
    """Why a leg ended before decode reserved, so that a late reservation hears of it at once."""

    finish: Finish
    forget_at_s: float


class WaitingReservations:
    """At most one per pair; bounded."""

    def __init__(self) -> None:
        self._parked: dict[Pair, Reservation] = {}
        self._given_up: OrderedDict[Pair, _GivenUp] = OrderedDict()
        self._newest: OrderedDict[str, int] = OrderedDict()  # by engine id

    @property
    def is_full(self) -> bool:
        return len(self._parked) >= _MAX_PARKED

    @property
    def max_parked(self) -> int:
        return _MAX_PARKED

    def is_stale(self, engine_id: str, generation: int) -> bool:
        """Is this lease not newer than all others of its engine? From now on it is not."""
        newest = self._newest.get(engine_id, 0)
        self.see(engine_id, generation)
        return 0 < generation <= newest

    def see(self, engine_id: str, generation: int) -> None:
        self._newest[engine_id] = max(self._newest.pop(engine_id, 0), generation)
        if len(self._newest) > _MAX_ENGINES:
            self._newest.popitem(last=False)

    def get(self, pair: Pair) -> Reservation | None:
        return self._parked.get(pair)

    def park(self, pair: Pair, reservation: Reservation) -> None:
        self._parked[pair] = reservation

    def take(self, pair: Pair) -> Reservation | None:
        """Its request is here: what came before it, if anything did."""
        self._given_up.pop(pair, None)
        return self._parked.pop(pair, None)

    def drop_transfer(self, transfer_id: str) -> None:
        self._parked = {
            pair: parked
            for pair, parked in self._parked.items()
            if parked.message.transfer_id != transfer_id
        }

    def drop_peer(self, key: str) -> None:
        self._parked = {p: parked for p, parked in self._parked.items() if parked.peer_key != key}

    def give_up(self, pair: Pair, finish: Finish, now_s: float) -> Reservation | None:
        """There will be no leg for this pair: the reservation that is to be told so, which else
        hears of it when it comes."""
        parked = self._parked.pop(pair, None)
        if parked is None:
            self._given_up[pair] = _GivenUp(finish, now_s + _REMEMBER_S)
        return parked

    def take_end(self, pair: Pair) -> Finish | None:
        """Why this pair's request ended before its reservation came."""
        given_up = self._given_up.pop(pair, None)
        return given_up.finish if given_up is not None else None

    def take_late(self, now_s: float) -> list[tuple[Pair, Reservation]]:
        """Those that no request came for in time. Also forgets what is too old to be asked for."""
        while self._given_up and now_s >= next(iter(self._given_up.values())).forget_at_s:
            self._given_up.popitem(last=False)
        late = [(p, parked) for p, parked in self._parked.items() if now_s >= parked.deadline_s]
        for pair, _ in late:
            del self._parked[pair]
        return late
