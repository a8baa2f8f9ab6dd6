"""One POST or GET over a socket of its own, telling when each piece of the body arrived.

A connection serves one request: servers differ in how long they keep idle ones, and a request that
meets a closing connection would be an error that no user would see. What connecting costs is part
of what is measured.

Elsewhere: reading the response (http_response.py), what is in a body (exchange.py).
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from baton.bench.serve.http_response import BadResponse, ResponseParser
from baton.core.errors import ConfigError

OnBody = Callable[[int, bytes, float], None]
"""Status, piece of the body, and when it was read from the socket (`time.perf_counter()`)."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> "Address":
        """Raises ConfigError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(f"--base-url {url}: the port is not a number up to 65535") from None
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ConfigError(f"--base-url {url} is no web address; try http://127.0.0.1:8000")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return cls(
            parts.hostname, port or _DEFAULT_PORTS[parts.scheme], parts.path.rstrip("/"), tls
        )

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpClient:
    """Requests to one server. `headers` go with all of them."""

    def __init__(self, url: str, headers: Mapping[str, str]):
        self._address = Address.of(url)
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    async def request(self, method: str, path: str, body: bytes, on_body: OnBody) -> int:
        """The status, once the whole answer is there. Raises OSError or BadResponse. When it is
        cancelled the connection is closed at once, which tells the server."""
        loop = asyncio.get_running_loop()
        address = self._address
        transport, exchange = await loop.create_connection(
            lambda: _Exchange(loop.create_future(), on_body),
            address.host,
            address.port,
            ssl=address.tls,
        )
        try:
            transport.write(self._head(method, path, len(body)) + body)
            return await exchange.done
        finally:
            transport.abort()

    async def fetch(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and whole body, for what is not measured. Raises OSError or BadResponse."""
        parts: list[bytes] = []
        status = await self.request(
            method, path, body, lambda _status, piece, _now_s: parts.append(piece)
        )
        return status, b"".join(parts)

    def _head(self, method: str, path: str, length: int) -> bytes:
        lines = (
            f"{method} {self._address.path}{path} HTTP/1.1\r\nHost: {self._address.authority}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
            f"Connection: close\r\nUser-Agent: baton-bench\r\n{self._headers}\r\n"
        )
        return lines.encode("latin-1")


class _Exchange(asyncio.Protocol):
    """`done` has the status at the end, or the error."""

    def __init__(self, done: "asyncio.Future[int]", on_body: OnBody):
        self.done = done
        self._on_body = on_body
        self._parser = ResponseParser()

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self.done.done():
            return
        try:
            piece = self._parser.feed(data)
            if piece:
                assert self._parser.status is not None
                self._on_body(self._parser.status, piece, now_s)
        except Exception as error:  # whatever it is, the request ends with it
            self.done.set_exception(error)
            return
        self._finish_if_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done.done():
            return
        if exc is not None:
            self.done.set_exception(exc)
            return
        try:
            self._parser.feed_eof()
        except BadResponse as error:
            self.done.set_exception(error)
            return
        self._finish_if_complete()

    def _finish_if_complete(self) -> None:
        if self._parser.is_complete:
            assert self._parser.status is not None
            self.done.set_result(self._parser.status)
