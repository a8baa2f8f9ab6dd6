"""A process that writes into a region as it is told: the near side of transport tests.

    python -m baton.testing.region_writer BACKEND NUM_BYTES HOST PORT STALL_TIMEOUT_S

fills its region with bytes from a seed, then answers each line of standard input with one line:

    connect DESCRIPTOR      "ok", or why not
    post WINDOW BYTES COUNT "ok"; writes so many of its first bytes to the peer's first, COUNT times
    cancel                  "ok"; asks that all writes stop
    states                  states of all writes in posting order, joined by spaces
    disconnect              "ok"
    id                      what it is called in the owner's live writers

and ends with its standard input. `RemoteWriter` starts one and talks to it.
"""

import random
import sys
from collections.abc import Sequence

import msgspec

from baton.core.errors import TransferError
from baton.messages.regions import RegionDescriptor
from baton.testing.region_process import RegionProcess, region_of_arguments
from baton.transfer.protocol import Copy, KvTransport, Peer, Ticket

_SEED = 11
_CONNECT_TIMEOUT_S = 5.0


class RemoteWriter(RegionProcess):
    """Another process that writes. `source` is what it writes."""

    def __init__(
        self,
        backend: str,
        num_bytes: int,
        *,
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
        stall_timeout_s: float = 10.0,
    ):
        self.source = random.Random(_SEED).randbytes(num_bytes)
        super().__init__(
            __name__,
            backend,
            num_bytes,
            prefix=prefix,
            host=host,
            stall_timeout_s=stall_timeout_s,
        )

    def connect(self, descriptor: RegionDescriptor) -> str:
        return self.ask(f"connect {msgspec.json.encode(descriptor).decode()}")


class Writing:
    """The process's own side: one peer and every ticket posted to any."""

    def __init__(self, transport: KvTransport):
        self._transport = transport
        self._peer: Peer | None = None
        self._tickets: list[Ticket] = []

    def answer(self, command: str) -> str:
        verb, _, rest = command.strip().partition(" ")
        if verb == "connect":
            return self._connect(msgspec.json.decode(rest, type=RegionDescriptor))
        if verb == "id":
            return self._transport.writer_id
        if verb == "states":
            return " ".join(ticket.state.value for ticket in self._tickets)
        assert self._peer is not None, f"{verb} before connect"
        match [verb, *rest.split()]:
            case ["post", window, num_bytes, count]:
                for _ in range(int(count)):
                    copies = [Copy(0, 0, int(num_bytes))]
                    self._tickets.append(self._peer.post_write(window, copies))
            case ["cancel"]:
                for ticket in reversed(self._tickets):
                    self._peer.cancel(ticket)
            case ["disconnect"]:
                self._peer.close()
            case _:
                raise ValueError(f"unknown command {command!r}")
        return "ok"

    def _connect(self, descriptor: RegionDescriptor) -> str:
        try:
            self._peer = self._transport.connect(descriptor, _CONNECT_TIMEOUT_S)
        except TransferError as error:
            return str(error).replace("\n", " ")
        return "ok"


def main() -> None:
    segment, transport = region_of_arguments()
    segment.view()[:] = random.Random(_SEED).randbytes(segment.num_bytes)
    writing = Writing(transport)
    for line in sys.stdin:
        print(writing.answer(line), flush=True)


if __name__ == "__main__":
    main()
