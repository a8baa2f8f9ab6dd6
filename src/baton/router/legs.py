"""One leg of a request: one POST to one worker, its answer, and the ways it fails.

Invariant: every failure leaves this module as a LegFailure and was reported to `on_failure`
exactly once; cancelling a leg, or closing its answer, closes the connection to the worker.
Elsewhere: joining two legs (pair.py), writing the answer to the client (exchange.py).
"""

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

from baton.router import sse
from baton.router.errors import (
    CLIENT_GONE_STATUS,
    LegBroken,
    LegFailure,
    LegRefused,
    LegRejected,
)
from baton.router.workers import Worker

BIG_BODY_BYTES = 2**20
"""aiohttp wants bodies above this as a file, to write them in pieces."""

_PER_HOP_HEADERS = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade",
     "proxy-authenticate", "content-length", "date", "server", "x-request-id")
)  # fmt: skip


def end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    """A worker's headers that are meant for the client."""
    return {name: value for name, value in headers.items() if name.lower() not in _PER_HOP_HEADERS}


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer that has arrived completely."""

    worker: Worker
    status: int
    headers: Mapping[str, str]
    body: bytes

    def close(self) -> None:
        """Nothing is held: the connection is back in the pool."""


class StreamAnswer:
    """An answer whose first bytes have arrived, `first`; the others follow by `next_chunk`."""

    def __init__(
        self, wire: "Wire", worker: Worker, response: aiohttp.ClientResponse, first: bytes
    ):
        self._wire = wire
        self._response = response
        self.worker = worker
        self.status = response.status
        self.headers = end_to_end(response.headers)
        self.first = first

    async def next_chunk(self) -> bytes:
        """What has arrived since; empty at the end."""
        return await self._wire.read_chunk(self.worker, self._response)

    def close(self) -> None:
        """Hang up, unless all was read: then the connection is already back in the pool."""
        self._response.close()


Answer = WholeAnswer | StreamAnswer


@dataclass(frozen=True, slots=True)
class PrefillAnswer:
    """`body` is kept only if the leg was asked to."""

    body: bytes
    is_stream: bool


class Wire:
    """The router's side of all connections to workers."""

    def __init__(self, on_failure: Callable[[LegFailure], None]):
        self._on_failure = on_failure
        self._session: aiohttp.ClientSession

    def attach(self, session: aiohttp.ClientSession) -> None:
        """A session belongs to a running event loop, so it comes later."""
        self._session = session

    async def open_answer(
        self, worker: Worker, route: str, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        """Send a request and wait for its answer: all of it, or a stream's first bytes."""
        response = await self._post(worker, route, body, headers)
        try:
            if response.status < 400 and _is_event_stream(response):
                first = await self.read_chunk(worker, response)
                if not first:
                    raise self.failed(LegBroken(worker, "its stream ended before it began"))
                return StreamAnswer(self, worker, response, first)
            return await self._read_whole(worker, response)
        except BaseException:
            response.close()
            raise

    async def run_prefill(
        self, worker: Worker, route: str, body: bytes, headers: Mapping[str, str], keep_body: bool
    ) -> PrefillAnswer:
        """Send a request and read its answer to the end, watching for errors inside a stream."""
        response = await self._post(worker, route, body, headers)
        try:
            if response.status >= 400 or not _is_event_stream(response):
                whole = await self._read_whole(worker, response)
                return PrefillAnswer(whole.body, is_stream=False)
            return await self._drain_stream(worker, response, keep_body)
        except BaseException:
            response.close()
            raise

    async def fetch(
        self,
        worker: Worker,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> WholeAnswer:
        """A short exchange beside the requests for tokens; error statuses are answers, too."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, worker.url + path, data=body or None, headers=headers, timeout=timeout
            ) as response:
                content = await response.read()
                return WholeAnswer(worker, response.status, end_to_end(response.headers), content)
        except (aiohttp.ClientError, OSError) as error:
            raise self.failed(_translated(worker, error)) from error

    async def read_chunk(self, worker: Worker, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise self.failed(LegBroken(worker, reason_of(error))) from error

    def failed(self, failure: LegFailure) -> LegFailure:
        """Report a failure; returns it to be raised."""
        self._on_failure(failure)
        return failure

    async def _post(
        self, worker: Worker, route: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        data = io.BytesIO(body) if len(body) >= BIG_BODY_BYTES else body
        try:
            return await self._session.post(
                worker.url + route, data=data, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self.failed(_translated(worker, error)) from error

    async def _read_whole(self, worker: Worker, response: aiohttp.ClientResponse) -> WholeAnswer:
        try:
            body = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self.failed(LegBroken(worker, reason_of(error))) from error
        headers = end_to_end(response.headers)
        if response.status >= 400:
            raise self.failed(LegRejected(worker, response.status, headers, body))
        return WholeAnswer(worker, response.status, headers, body)

    async def _drain_stream(
        self, worker: Worker, response: aiohttp.ClientResponse, keep_body: bool
    ) -> PrefillAnswer:
        cutter, kept = sse.EventCutter(), bytearray()
        while chunk := await self.read_chunk(worker, response):
            events = cutter.feed(chunk)
            rejection = rejection_in(worker, events)
            if rejection is not None:
                raise self.failed(rejection)
            if keep_body:
                kept += events
        if not cutter.is_done:
            raise self.failed(LegBroken(worker, "its stream ended without [DONE]"))
        return PrefillAnswer(bytes(kept), is_stream=True)


def _is_event_stream(response: aiohttp.ClientResponse) -> bool:
    return response.content_type == "text/event-stream"


def _translated(worker: Worker, error: aiohttp.ClientError | OSError) -> LegFailure:
    """Before the connection stands nothing was sent; afterwards nobody knows what was done."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return LegRefused(worker, reason_of(error))
    return LegBroken(worker, reason_of(error))


def reason_of(error: BaseException) -> str:
    """One line for people; asyncio's own texts repeat the address, which we name already."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return os.strerror(number) if number is not None and number > 0 else str(error.os_error)
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "it closed the connection before the answer was complete"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__


class _StreamedError(msgspec.Struct):
    """What SGLang's workers put into a stream whose status has already been sent."""

    error: dict[str, object] | str | None = None
    meta_info: "_MetaInfo | None" = None


class _MetaInfo(msgspec.Struct):
    finish_reason: "_FinishReason | None" = None


class _FinishReason(msgspec.Struct):
    type: str = ""
    message: str | None = None
    status_code: int | None = None


_decode_streamed = msgspec.json.Decoder(_StreamedError).decode


def rejection_in(worker: Worker, events: bytes) -> LegRejected | None:
    """The error that a worker tells inside a stream, whose status has already been sent."""
    if b'"error"' not in events and b'"abort"' not in events:
        return None
    for payload in sse.payloads(events):
        try:
            said = _decode_streamed(payload)
        except msgspec.DecodeError:
            continue  # not one of the two shapes that tell of an error
        finish = said.meta_info.finish_reason if said.meta_info else None
        if said.error is not None:
            return _rejected(worker, _status_of(said.error), payload)
        if finish is not None and finish.type == "abort":
            message = finish.message or "the prefill worker aborted the request"
            body = msgspec.json.encode({"error": {"message": message, "type": "abort"}})
            return _rejected(worker, finish.status_code, body)
    return None


def _status_of(error: dict[str, object] | str) -> object:
    """SGLang's workers write the status as the code, Baton's write words for both."""
    if isinstance(error, str):
        return None
    return CLIENT_GONE_STATUS if error.get("code") == "aborted" else error.get("code")


def _rejected(worker: Worker, code: object, body: bytes) -> LegRejected:
    status = code if isinstance(code, int) and 400 <= code <= 599 else 500
    return LegRejected(worker, status, {"Content-Type": "application/json"}, body)
