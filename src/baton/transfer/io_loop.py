"""One thread that owns a transport's sockets: readiness, timers, and calls from other threads.

Invariant: sockets are read, written and closed on the loop's thread only, so that no descriptor
number is ever reused under somebody who still polls it.
Elsewhere: what the sockets speak (shm.py, tcp_receiver.py, tcp_peer.py).
"""

import functools
import heapq
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger(__name__)

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
_ACCEPT_PAUSE_S = 1.0


class IoHandler(Protocol):
    """What is behind one registered descriptor."""

    def on_ready(self, mask: int) -> None:
        """Readable, writable, hung up or in error: try, and never block."""
        ...

    def on_bug(self, error: Exception) -> None:
        """`on_ready` raised what it should have handled: close, failing what depends on it."""
        ...


class IoLoop:
    """An epoll loop on its own daemon thread."""

    def __init__(self, name: str):
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, READABLE)
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_stopping = False
        self._handlers: dict[int, IoHandler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def submit(self, call: Callable[[], None]) -> bool:
        """Run `call` on the loop's thread soon; False if the loop has been stopped."""
        with self._lock:
            if self._is_stopping:
                return False
            self._calls.append(call)
            if len(self._calls) == 1:
                os.eventfd_write(self._wake_fd, 1)
        return True

    def run(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread and wait for it; nothing if the loop has been stopped."""
        if self.is_current_thread:
            call()
            return
        finished = threading.Event()

        def run_and_tell() -> None:
            try:
                call()
            finally:
                finished.set()

        if self.submit(run_and_tell):
            finished.wait()

    def register(self, fd: int, mask: int, handler: IoHandler) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_ids), call))

    def stop(self) -> None:
        """Finish the calls already submitted, then end the thread. Idempotent."""
        with self._lock:
            if not self._is_stopping:
                self._is_stopping = True
                os.eventfd_write(self._wake_fd, 1)
        if not self.is_current_thread:
            self._thread.join()

    def _run(self) -> None:
        while self._calls or not self._is_stopping:
            for fd, mask in self._epoll.poll(self._poll_timeout_s()):
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                elif (handler := self._handlers.get(fd)) is not None:
                    self._dispatch(handler, mask)
            self._run_calls()
            self._run_timers()
        self._epoll.close()
        os.close(self._wake_fd)

    def _poll_timeout_s(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _dispatch(self, handler: IoHandler, mask: int) -> None:
        try:
            handler.on_ready(mask)
        except Exception as error:
            _log.exception("a connection met a bug and is closed")
            _run_guarded(functools.partial(handler.on_bug, error))

    def _run_calls(self) -> None:
        while True:
            with self._lock:
                calls, self._calls = self._calls, deque()
            if not calls:
                return
            for call in calls:
                _run_guarded(call)

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            _run_guarded(heapq.heappop(self._timers)[2])


def _run_guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        _log.exception("a call on a transport's thread met a bug")


class Acceptor:
    """Accepts connections on a listening socket and passes them on."""

    def __init__(
        self, loop: IoLoop, listener: socket.socket, on_accept: Callable[[socket.socket], None]
    ):
        self._loop = loop
        self._listener = listener
        self._on_accept = on_accept
        self._is_open = True
        self._is_registered = False
        listener.setblocking(False)
        loop.submit(self._resume)

    def on_ready(self, mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            # Out of descriptors, most likely: readiness would repeat at once and burn a core.
            _log.warning("cannot accept connections for %g s: %s", _ACCEPT_PAUSE_S, error)
            self._pause()
            self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
            return
        connection.setblocking(False)
        self._on_accept(connection)

    def on_bug(self, error: Exception) -> None:
        """Keep listening: one connection's bug is not the others' fault."""

    def close(self) -> None:
        """Stop listening; on the loop's thread."""
        if self._is_open:
            self._is_open = False
            self._pause()
            self._listener.close()

    def _resume(self) -> None:
        if self._is_open and not self._is_registered:
            self._is_registered = True
            self._loop.register(self._listener.fileno(), READABLE, self)

    def _pause(self) -> None:
        if self._is_registered:
            self._is_registered = False
            self._loop.unregister(self._listener.fileno())
