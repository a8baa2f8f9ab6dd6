"""A transport whose writes take a route of their own before the real transport has them.

With a `SimulatedLink` a developer's machine feels like a slow network (`--simulate-link`); tests
put faults on the route (testing/faulty.py). Regions, windows and fences are the real transport's.

Elsewhere: one peer (routed_peer.py), the link (link.py).
"""

from collections.abc import Sequence
from dataclasses import replace

from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import TransferError
from baton.messages.regions import RegionDescriptor
from baton.transfer.io_loop import IoLoop
from baton.transfer.open_peers import OpenPeers
from baton.transfer.protocol import CompletionCallback, KvTransport, TransportStats
from baton.transfer.routed_peer import CallLoop, Route, RoutedPeer
from baton.transfer.ticket import WriteAccount


class RoutedTransport:
    """`KvTransport` around `inner`, which it owns and closes. `route` may be shared by several.

    `clock` counts the seconds of the route; `loop` waits for them, by default on a thread of its
    own. It is stopped with the transport."""

    def __init__(
        self,
        inner: KvTransport,
        route: Route,
        *,
        clock: Clock | None = None,
        loop: CallLoop | None = None,
    ):
        self.name = inner.name
        self.can_fence = inner.can_fence
        self.can_recall = inner.can_recall
        self.same_host_only = inner.same_host_only
        self._inner = inner
        self._route = route
        self._clock = clock or MonotonicClock()
        self._loop: CallLoop = loop or IoLoop(f"baton-{inner.name}-route")
        self._account = WriteAccount()
        self._peers: OpenPeers[RoutedPeer] = OpenPeers()
        inner.set_on_completion(self._on_inner_completion)

    @property
    def descriptor(self) -> RegionDescriptor:
        return self._inner.descriptor

    @property
    def writer_id(self) -> str:
        return self._inner.writer_id

    def live_writers(self) -> frozenset[str]:
        return self._inner.live_writers()

    def connect(self, remote: RegionDescriptor, timeout_s: float) -> RoutedPeer:
        inner = self._inner.connect(remote, timeout_s)
        peer = RoutedPeer(
            inner, self._route, self._account, self._clock, self._loop, self._peers.forget
        )
        try:
            self._peers.add(peer)
        except ValueError as error:
            inner.close()
            raise TransferError(str(error), stage="connect", peer=remote.place) from error
        return peer

    def open_window(self, window: str, ranges: Sequence[tuple[int, int]]) -> None:
        self._inner.open_window(window, ranges)

    def close_window(self, window: str) -> None:
        self._inner.close_window(window)

    def set_on_completion(self, callback: CompletionCallback) -> None:
        self._account.set_callback(callback)

    def stats(self) -> TransportStats:
        """Of the writes as they were posted; their seconds are those of the route."""
        inner = self._inner.stats()
        return replace(
            self._account.stats(),
            num_bad_connections=inner.num_bad_connections,
            num_strangers=inner.num_strangers,
        )

    def close(self) -> None:
        if self._peers.end() is None:
            return
        self._inner.close()
        self._loop.stop()

    def _on_inner_completion(self) -> None:
        self._loop.submit(self._pump_all)

    def _pump_all(self) -> None:
        for peer in self._peers.snapshot():
            peer.pump()
