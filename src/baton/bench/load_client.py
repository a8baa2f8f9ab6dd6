"""Many clients of one HTTP server, each asking again as soon as it is answered, in one process.

    python -m baton.bench.load_client

answers each line of standard input, a `Load` in JSON, with one line, a `LoadResult` in JSON.

Invariant: an answer that is not 200, or is not complete, ends the process with an error: a rate
counts whole answers only.
Elsewhere: what is asked (bench_router.py).
"""

import asyncio
import sys
import time
from typing import Final, cast

import httptools
import msgspec
import uvloop

BUSY_SHARE: Final = 0.9
"""Of a core: a client that used more may have been what was measured."""
_MAX_EXTENSIONS: Final = 50


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered in `warm_up_s` does not count, and what was asked then has no latency."""

    port: int
    path: str
    body: str
    num_clients: int
    warm_up_s: float
    seconds: float


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """Times are of whole answers and of the first byte of their bodies. `cpu_share`: what part of
    a core the clients themselves used."""

    requests_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    cpu_share: float


def request_bytes(load: Load) -> bytes:
    body = load.body.encode()
    return (
        f"POST {load.path} HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, times: "_Times"):
        self._request = request
        self._times = times
        self._parser = httptools.HttpResponseParser(self)
        self._sent_s = self._first_s = 0.0
        self._is_over = False
        self.failed = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._first_s = 0.0
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, _: bytes) -> None:
        if not self._first_s:
            self._first_s = time.perf_counter()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._times.fail(f"an answer has status {status}")
            return
        self._times.note(self._sent_s, self._first_s, time.perf_counter())
        if not self._is_over:
            self._ask()

    def stop(self) -> None:
        self._is_over = True
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._is_over:
            self._times.fail(f"a connection was closed ({error})")


class _Times:
    def __init__(self) -> None:
        self.is_counting = False
        self.started_s = 0.0
        self.num_answered = 0
        self.latencies_s: list[float] = []
        self.ttfts_s: list[float] = []
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(self, sent_s: float, first_s: float, end_s: float) -> None:
        if self.is_counting:
            self.num_answered += 1
            if sent_s >= self.started_s:
                self.latencies_s.append(end_s - sent_s)
                self.ttfts_s.append(first_s - sent_s)

    def fail(self, why: str) -> None:
        if not self.failure.done():
            self.failure.set_exception(RuntimeError(why))


async def run_load(load: Load) -> LoadResult:
    loop, times = asyncio.get_running_loop(), _Times()
    request = request_bytes(load)
    clients = []
    for _ in range(load.num_clients):
        _, client = await loop.create_connection(
            lambda: _Client(request, times), "127.0.0.1", load.port
        )
        clients.append(client)
    await asyncio.wait({times.failure}, timeout=load.warm_up_s)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    times.started_s, times.is_counting = started_s, True
    await _until_answered(times, load.seconds)
    times.is_counting = False
    taken_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    for client in clients:
        client.stop()
    if times.failure.done():
        times.failure.result()
    times.failure.cancel()
    if not times.latencies_s:
        raise RuntimeError("no request was answered in time")
    return LoadResult(
        requests_per_s=times.num_answered / taken_s,
        latency_p50_ms=_percentile_ms(times.latencies_s, 0.5),
        latency_p99_ms=_percentile_ms(times.latencies_s, 0.99),
        ttft_p50_ms=_percentile_ms(times.ttfts_s, 0.5),
        ttft_p99_ms=_percentile_ms(times.ttfts_s, 0.99),
        cpu_share=cpu_s / taken_s,
    )


async def _until_answered(times: _Times, seconds: float) -> None:
    """The sample's time, and more if there is no answer yet."""
    for _ in range(_MAX_EXTENSIONS):
        await asyncio.wait({times.failure}, timeout=seconds)
        if times.latencies_s or times.failure.done():
            return


def _percentile_ms(values_s: list[float], share: float) -> float:
    ordered = sorted(values_s)
    return 1e3 * ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def main() -> int:
    for line in sys.stdin.buffer:
        load = msgspec.json.decode(line, type=Load)
        try:
            result = uvloop.run(run_load(load))
        except (OSError, RuntimeError, httptools.HttpParserError) as error:
            print(error, file=sys.stderr)
            return 1
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
