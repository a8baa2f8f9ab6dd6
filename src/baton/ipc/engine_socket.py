"""The engine's end of the pipe to its api process: a blocking loop's view of one socket.

The two are joined by an inherited socket pair: it has no name that anybody else could connect to,
and each side sees the other's death as end of file, at once.
Elsewhere: the api process's end (ipc/engine_process_client.py).
"""

import os
import selectors
import socket
from collections import deque

from baton.ipc.framing import FrameReader, frame
from baton.messages.codec import Codec
from baton.messages.engine import FromEngine, ToEngine

_READ_BYTES = 1 << 18


class ApiGone(Exception):
    """The api process closed its end: this engine serves nobody any more."""


class EngineSocket:
    """Receives `ToEngine`, sends `FromEngine`; `wake` ends a `wait` from any thread."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self._socket = connection
        self._reader = FrameReader()
        self._inbox: deque[ToEngine] = deque()
        self._from_api: Codec[ToEngine] = Codec(ToEngine)
        self._to_api: Codec[FromEngine] = Codec(FromEngine)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)

    def wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def wait(self, timeout_s: float) -> None:
        """Until a message comes, somebody calls `wake`, or the time is up. Raises ApiGone."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._socket:
                self._receive()
            else:
                os.eventfd_read(self._wake_fd)

    def take(self) -> list[ToEngine]:
        """Messages received so far, in order."""
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def send(self, message: FromEngine) -> None:
        """Blocks while the api process is behind. Raises ApiGone."""
        self._socket.setblocking(True)
        try:
            self._socket.sendall(frame(self._to_api.encode(message)))
        except OSError as error:
            raise ApiGone(str(error)) from error
        finally:
            self._socket.setblocking(False)

    def close(self) -> None:
        self._selector.close()
        self._socket.close()
        os.close(self._wake_fd)

    def _receive(self) -> None:
        try:
            piece = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ApiGone(str(error)) from error
        if not piece:
            raise ApiGone("end of file")
        for payload in self._reader.feed(piece):
            self._inbox.append(self._from_api.decode(payload))
