"""A prefill engine's connections to the KV pools of decode engines, made without blocking it.

Connecting may take a network's time, so it happens in a thread while the prompt is already being
computed; the role asks on every tick and posts when the pool is there.
Elsewhere: what is written and when (prefill.py), the connections themselves (transfer/).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from baton.core.errors import TransferError
from baton.messages.regions import RegionDescriptor
from baton.obs.logs import event_log
from baton.transfer.protocol import KvTransport, Peer
from baton.transfer.select import choose_backend

log = event_log("disagg")


class Writers(Protocol):
    """What the prefill role needs: a connection by the key of a decode engine's control link."""

    def connect(self, key: str, regions: Sequence[RegionDescriptor]) -> None: ...

    def get(self, key: str) -> Peer | None: ...

    def take_failures(self) -> list[tuple[str, str]]: ...

    def drop(self, key: str) -> None: ...


class DecodePeers:
    """The real ones: one connection per decode engine. `wake` is called from another thread when an
    attempt to connect has ended."""

    def __init__(
        self,
        transports: Sequence[KvTransport],
        wake: Callable[[], None],
        connect_timeout_s: float = 5.0,
    ):
        self._connect_timeout_s = connect_timeout_s
        self._transports = transports
        self._wake = wake
        self._pending: dict[str, Future[Peer]] = {}
        self._ready: dict[str, Peer] = {}
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="baton-connect")

    def connect(self, key: str, regions: Sequence[RegionDescriptor]) -> None:
        """Start to connect unless that is done or under way."""
        if key in self._pending or (key in self._ready and self._ready[key].is_alive):
            return
        _close(self._ready.pop(key, None))
        future = self._executor.submit(self._connect, regions)
        future.add_done_callback(lambda _: self._wake())
        self._pending[key] = future

    def get(self, key: str) -> Peer | None:
        """The connection, None while it is not there."""
        future = self._pending.get(key)
        if future is not None and future.done() and future.exception() is None:
            del self._pending[key]
            self._ready[key] = future.result()
        return self._ready.get(key)

    def take_failures(self) -> list[tuple[str, str]]:
        """Attempts that failed since the last call, each with why."""
        failures = [
            (key, str(future.exception()))
            for key, future in self._pending.items()
            if future.done() and future.exception() is not None
        ]
        for key, _ in failures:
            del self._pending[key]
        return failures

    def drop(self, key: str) -> None:
        """The decode engine is gone: close, which ends what is still pending."""
        _close(self._ready.pop(key, None))
        future = self._pending.pop(key, None)
        if future is not None:
            future.add_done_callback(_close_result)

    def close(self) -> None:
        for key in [*self._ready, *self._pending]:
            self.drop(key)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _connect(self, regions: Sequence[RegionDescriptor]) -> Peer:
        transport, descriptor = choose_backend(self._transports, regions)
        log.info("kv transport chosen", backend=transport.name, region=descriptor.place)
        try:
            return transport.connect(descriptor, self._connect_timeout_s)
        except OSError as error:
            raise TransferError(str(error), stage="connect", peer=descriptor.place) from error


def _close(peer: Peer | None) -> None:
    if peer is not None:
        peer.close()


def _close_result(future: Future[Peer]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
