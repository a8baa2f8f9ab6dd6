"""One request, from its body to its record.

Invariant: a record ends as a success or with an error, whatever the server does. A success is an
answer that came to its end: a stream to its last event, with at least one token in it.
Elsewhere: the socket (http_client.py), dialects (backends.py), when to send (load.py).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec

from baton.bench.serve.backends import Backend, History, Part, error_text
from baton.bench.serve.http_client import HttpClient
from baton.bench.serve.http_response import BadResponse
from baton.bench.serve.records import STOPPED, CountedBy, Record
from baton.bench.serve.sse import DONE, SseParser
from baton.tokenizer.tokenizer import Tokenizer

OnArrival = Callable[[int], None]
"""Told the number of new tokens, for live progress."""

_ERROR_CHARACTERS = 300


class AnswerError(Exception):
    """The server answered with an error, or not to the end."""


class Answer:
    """Collects one answer into its record as pieces of the body come."""

    def __init__(
        self, backend: Backend, record: Record, zero_s: float, on_arrival: OnArrival | None = None
    ):
        self._backend = backend
        self._record = record
        self._zero_s = zero_s
        self._on_arrival = on_arrival
        self._events = SseParser()
        self._decoder = msgspec.json.Decoder(dict[str, Any])
        self._whole = bytearray()
        self._is_stream = False
        self._is_done = False

    def expect_stream(self) -> None:
        self._is_stream = True

    def on_body(self, status: int, piece: bytes, now_s: float) -> None:
        """Raises AnswerError for an event that is an error or no JSON."""
        if status != 200 or not self._is_stream:
            self._whole += piece
            return
        before = self._record.num_output
        has_tokens = False
        for event in self._events.feed(piece):
            if event.strip() == DONE:
                self._is_done = True
            else:
                has_tokens |= self._note(self._backend.read(self._decode(event)))
        if has_tokens:
            self._record.arrivals_s.append(now_s - self._zero_s)
            if self._on_arrival is not None:
                self._on_arrival(self._record.num_output - before)

    def finish(self, status: int, tokenizer: Tokenizer | None) -> None:
        """The answer has ended with `status`. Raises AnswerError."""
        self._record.status = status
        if status != 200:
            raise AnswerError(f"HTTP {status}: {self._reason()}")
        if self._is_stream:
            self._check_end()
        else:
            self._note(self._backend.read(self._decode(bytes(self._whole))))
        if self._record.counted_by is not CountedBy.SERVER and tokenizer is not None:
            self._record.num_output = len(
                tokenizer.encode(self._record.text, add_special_tokens=False)
            )
            self._record.counted_by = CountedBy.TOKENIZER
        if self._record.num_output == 0:
            raise AnswerError("the answer has no tokens")

    def _check_end(self) -> None:
        record = self._record
        if self._is_done or record.finish_reason is not None:
            return
        if not record.arrivals_s:
            raise AnswerError("the answer is no stream of events")
        raise AnswerError("the stream ended before its last event")

    def _decode(self, payload: bytes) -> dict[str, Any]:
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            shown = payload[:_ERROR_CHARACTERS].decode(errors="replace")
            raise AnswerError(f"no JSON object ({error}): {shown!r}") from error

    def _note(self, part: Part) -> bool:
        """Whether `part` brought tokens. A server may count in every event, in the last alone, or
        never; a last event with nothing but the count brings none."""
        if part.error is not None:
            raise AnswerError(part.error[:_ERROR_CHARACTERS])
        record = self._record
        record.text = part.text if part.is_cumulative and part.text else record.text + part.text
        record.finish_reason = part.finish_reason or record.finish_reason
        if part.num_input is not None:
            record.num_input = part.num_input
        if part.num_cached is not None:
            record.num_cached = part.num_cached
        if part.num_output is None:
            if part.text and record.counted_by is CountedBy.EVENTS:
                record.num_output += 1
            return bool(part.text)
        is_late_count = record.counted_by is CountedBy.EVENTS and record.num_output > 0
        has_grown = part.num_output > record.num_output
        record.num_output, record.counted_by = part.num_output, CountedBy.SERVER
        return bool(part.text) if is_late_count else has_grown

    def _reason(self) -> str:
        text = bytes(self._whole).decode(errors="replace").strip()
        with contextlib.suppress(msgspec.DecodeError):
            text = error_text(msgspec.json.decode(self._whole, type=dict[str, Any])) or text
        return text[:_ERROR_CHARACTERS] or "no reason given"


class Sender:
    """Sends requests to one server. `zero_s` is when the load started, by time.perf_counter()."""

    def __init__(
        self,
        client: HttpClient,
        backend: Backend,
        *,
        timeout_s: float,
        tokenizer: Tokenizer | None,
        on_arrival: OnArrival | None = None,
    ):
        self._client = client
        self._backend = backend
        self._timeout_s = timeout_s
        self._tokenizer = tokenizer
        self._on_arrival = on_arrival

    async def send(self, history: History, num_output: int, record: Record, zero_s: float) -> None:
        """Fills in `record`. Only cancelling it raises, and leaves the record as STOPPED."""
        body = self._backend.body(history, num_output)
        answer = Answer(self._backend, record, zero_s, self._on_arrival)
        if body.get("stream"):
            answer.expect_stream()
        payload = msgspec.json.encode(body)
        record.sent_s = time.perf_counter() - zero_s
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                status = await self._client.request(
                    "POST", self._backend.path, payload, answer.on_body
                )
            record.ended_s = time.perf_counter() - zero_s
            answer.finish(status, self._tokenizer)
        except asyncio.CancelledError:
            record.error = STOPPED
            raise
        except (AnswerError, BadResponse) as error:
            record.error = str(error)
        except OSError as error:  # TimeoutError is one, ours and the system's
            record.error = f"connection: {error.strerror or repr(error)}"
            if limit.expired():
                record.error = f"no end of the answer within {self._timeout_s:g} s"
        finally:
            record.ended_s = record.ended_s or time.perf_counter() - zero_s
