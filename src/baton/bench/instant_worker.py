"""A prefill and two decode workers that answer at once: what is left to measure is the router.

    python -m baton.bench.instant_worker

prints the ports of the three as one line, and ends with its standard input. They speak as much of
SGLang's wire as routers ask for. An answer is one write of ready-made bytes; a stream has
`NUM_EVENTS` events, each a chunk of its own. The second decode worker marks its streams as Baton's
workers do when they are asked to: a chunk is an event and the mark behind it.

Elsewhere: who asks (load_client.py), the routers between them (bench_router.py).
"""

import asyncio
import functools
import sys
from collections.abc import Mapping
from typing import Final, cast

import httptools
import msgspec
import uvloop

from baton.bench.end_with_input import ends_with_input
from baton.router.marks import MARKS_HEADER

NUM_EVENTS: Final = 32
_STREAMS: Final = b'"stream":true'


_MARKS_LINE: Final = f"{MARKS_HEADER}: 7 1 instant\r\n"


def _head(content_type: str, framing: str, more: str = "") -> bytes:
    lines = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{more}{framing}\r\n\r\n"
    return lines.encode()


def _whole(answer: object) -> bytes:
    body = msgspec.json.encode(answer)
    return _head("application/json", f"Content-Length: {len(body)}") + body


def _stream(events: list[object], marks: bool) -> bytes:
    """The last step's mark is [DONE] itself."""
    chunks = [b"data: %b\n\n" % msgspec.json.encode(event) for event in events]
    if marks:
        chunks[:-1] = [b"%b: t %d\n\n" % (chunk, 1000 + n) for n, chunk in enumerate(chunks[:-1])]
    chunks.append(b"data: [DONE]\n\n")
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    more = _MARKS_LINE if marks else ""
    return _head("text/event-stream", "Transfer-Encoding: chunked", more) + framed + b"0\r\n\r\n"


def _generated(num_so_far: int, num_tokens: int) -> object:
    finish = {"type": "length", "length": num_tokens} if num_so_far == num_tokens else None
    meta = {"id": "instant", "finish_reason": finish, "prompt_tokens": 8}
    return {
        "text": "word " * num_so_far,
        "output_ids": list(range(num_so_far)),
        "meta_info": {**meta, "completion_tokens": num_so_far},
    }


def _chat(choice: object) -> object:
    return {"id": "instant", "created": 1, "model": "instant", "choices": [choice]}


def _chat_event(number: int, num_events: int) -> object:
    finish = "length" if number == num_events else None
    return _chat({"index": 0, "delta": {"content": "word "}, "finish_reason": finish})


def answers_of(role: str, marks: bool = False) -> Mapping[tuple[bytes, bool], bytes]:
    """Ready-made answers by path and whether a stream was asked for."""
    num = 1 if role == "prefill" else NUM_EVENTS
    counts = range(1, num + 1)
    message = {"role": "assistant", "content": "word " * num}
    reports: dict[str, object] = {
        "/health": {},
        "/server_info": {"served_model_name": "instant", "disaggregation_mode": role},
        "/model_info": {"model_path": "instant"},
        "/v1/loads": {"loads": [{"dp_rank": 0, "num_running_reqs": 0, "num_total_tokens": 0}]},
    }
    return {
        **{(path.encode(), False): _whole(report) for path, report in reports.items()},
        (b"/generate", False): _whole(_generated(num, num)),
        (b"/generate", True): _stream([_generated(n, num) for n in counts], marks),
        (b"/v1/chat/completions", False): _whole(
            _chat({"index": 0, "message": message, "finish_reason": "length"})
        ),
        (b"/v1/chat/completions", True): _stream([_chat_event(n, num) for n in counts], marks),
    }


_UNKNOWN: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self, answers: Mapping[tuple[bytes, bool], bytes]):
        self._answers = answers
        self._parser = httptools.HttpRequestParser(self)
        self._path, self._body = b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()  # SGLang's router tries gRPC first

    def on_url(self, path: bytes) -> None:
        self._path, self._body = path, b""

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        key = (self._path, _STREAMS in self._body)
        self._transport.write(self._answers.get(key, _UNKNOWN))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    ports = []
    for role, marks in (("prefill", False), ("decode", False), ("decode", True)):
        server = await loop.create_server(
            functools.partial(_Connection, answers_of(role, marks)), "127.0.0.1", 0, backlog=1024
        )
        ports.append(server.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await ends_with_input()


def main() -> int:
    uvloop.run(_serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
