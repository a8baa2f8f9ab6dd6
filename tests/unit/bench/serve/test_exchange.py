"""One request over a real socket: what counts as tokens, as an error, as an end.

Times are never compared with a clock: what has to be apart is kept apart by events.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from baton.bench.serve.backends import History, make_backend
from baton.bench.serve.config import TargetConfig
from baton.bench.serve.exchange import Sender
from baton.bench.serve.http_client import Address, HttpClient
from baton.bench.serve.records import CountedBy, Record
from baton.core.errors import ConfigError
from baton.testing.byte_tokenizer import make_byte_tokenizer
from baton.testing.scripted_server import (
    DONE,
    END,
    STREAM_HEAD,
    Break,
    ScriptedServer,
    Step,
    chunk,
    event,
    generated,
    whole,
)
from baton.tokenizer.tokenizer import Tokenizer

LIMIT_S = 20.0


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await coroutine

    asyncio.run(limited())


def exchange(
    steps: Sequence[Step],
    *,
    backend: str = "sglang",
    tokenizer: Tokenizer | None = None,
    on_arrival: Callable[[int], None] | None = None,
    **options: Any,
) -> Record:
    """The record of one request to a server that answers with `steps`."""
    record = Record(0, 0, 0.0, num_input=3)

    async def ask() -> None:
        async with ScriptedServer(lambda _request: steps).running() as server:
            config = TargetConfig(backend=backend, base_url=server.url, **options)
            sender = Sender(
                HttpClient(server.url, {}),
                make_backend(config, "scripted"),
                timeout_s=config.request_timeout_s,
                tokenizer=tokenizer,
                on_arrival=on_arrival,
            )
            await sender.send(History([(1, 2, 3)]), 9, record, 0.0)

    run(ask())
    return record


def completion(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": None}], **more}


def usage(num_output: int, num_input: int = 5) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": num_input, "completion_tokens": num_output}}


def test_a_stream_with_the_servers_own_count() -> None:
    seen, steps = list[int](), list[Step]()
    gates = [asyncio.Event() for _ in range(3)]

    def on_arrival(num_tokens: int) -> None:
        gates[len(seen)].set()
        seen.append(num_tokens)

    steps = [STREAM_HEAD, event(generated(1)), gates[0], event(generated(4)), gates[1]]
    steps += [event(generated(5)), gates[2], event(generated(5, is_end=True)), DONE]
    record = exchange(steps, on_arrival=on_arrival)
    assert record.error is None
    assert seen == [1, 3, 1]
    assert len(record.arrivals_s) == 3
    assert record.arrivals_s == sorted(record.arrivals_s)
    assert record.sent_s < record.arrivals_s[0]
    assert record.arrivals_s[-1] <= record.ended_s
    assert (record.num_input, record.num_output, record.num_cached) == (7, 5, 0)
    assert record.counted_by is CountedBy.SERVER
    assert (record.finish_reason, record.text, record.status) == ("length", "xxxxx", 200)


def test_events_that_come_in_one_read_are_one_arrival() -> None:
    together = b"".join([event(generated(1)), event(generated(2)), event(generated(3)), DONE])
    record = exchange([STREAM_HEAD + together])
    assert (record.error, record.num_output, len(record.arrivals_s)) == (None, 3, 1)


def test_events_cut_anywhere() -> None:
    stream = STREAM_HEAD + event(generated(2)) + event(generated(3, is_end=True)) + DONE
    record = exchange([stream[place : place + 1] for place in range(len(stream))])
    assert (record.error, record.num_output) == (None, 3)


def test_a_count_that_comes_last_is_no_token() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    seen: list[int] = []

    def on_arrival(num_tokens: int) -> None:
        gates[len(seen)].set()
        seen.append(num_tokens)

    steps: list[Step] = [STREAM_HEAD, event(completion("Hel")), gates[0]]
    steps += [event(completion("lo")), gates[1], event({"choices": [], **usage(4)}), DONE]
    record = exchange(steps, backend="openai", on_arrival=on_arrival)
    assert record.error is None
    assert (len(record.arrivals_s), record.num_output, record.num_input) == (2, 4, 5)
    assert (record.counted_by, record.text) == (CountedBy.SERVER, "Hello")


def test_usage_in_every_event() -> None:
    steps = [STREAM_HEAD, event(completion("", **usage(0))), event(completion("a", **usage(1)))]
    steps += [event(completion("", **usage(2))), event({"choices": [], **usage(2)}), DONE]
    record = exchange(steps, backend="vllm")
    assert (record.error, record.num_output, record.text) == (None, 2, "a")


def test_llama_cpps_timings_count() -> None:
    first = completion("a", timings={"predicted_n": 1, "cache_n": 3})
    steps = [STREAM_HEAD, event(first), event(completion("b", timings={"predicted_n": 2})), DONE]
    record = exchange(steps, backend="llama.cpp")
    assert (record.error, record.num_output, record.num_cached) == (None, 2, 3)
    assert record.counted_by is CountedBy.SERVER


def test_without_a_count_each_event_is_a_token() -> None:
    steps = [STREAM_HEAD, event(completion("Hel")), event(completion("lo")), DONE]
    record = exchange(steps, backend="openai")
    assert (record.num_output, record.counted_by) == (2, CountedBy.EVENTS)
    assert record.num_input == 3


def test_without_a_count_a_named_tokenizer_counts() -> None:
    steps = [STREAM_HEAD, event(completion("Hel")), event(completion("lo")), DONE]
    record = exchange(steps, backend="openai", tokenizer=make_byte_tokenizer())
    assert (record.num_output, record.counted_by) == (5, CountedBy.TOKENIZER)


def test_a_chat_stream_begins_with_a_role() -> None:
    def delta(**content: Any) -> bytes:
        return event({"choices": [{"index": 0, "delta": content, "finish_reason": None}]})

    steps = [STREAM_HEAD, delta(role="assistant", content=""), delta(content="Hi"), DONE]
    record = exchange(steps, backend="openai-chat")
    assert (record.error, record.text, record.num_output) == (None, "Hi", 1)


def test_a_whole_answer() -> None:
    record = exchange([whole(generated(6, is_end=True))], disable_stream=True)
    assert (record.error, record.num_output, record.arrivals_s) == (None, 6, [])
    assert record.ttft_s == record.e2e_s


def test_a_whole_chat_answer() -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": "Hello"}}], **usage(2)}
    record = exchange([whole(answer)], backend="vllm-chat", disable_stream=True)
    assert (record.error, record.text, record.num_output) == (None, "Hello", 2)


CUT: dict[str, tuple[list[Step], str]] = {
    "status": (
        [whole({"error": {"message": "too long"}}, "400 Bad Request")],
        "HTTP 400: too long",
    ),
    "status without a reason": ([whole("", "503 x")[:-2] + b'""'], 'HTTP 503: ""'),
    "error event": (
        [STREAM_HEAD, event(generated(1)), event({"error": {"message": "engine died"}}), DONE],
        "engine died",
    ),
    "abort": (
        [
            STREAM_HEAD,
            event({"text": "", "meta_info": {"finish_reason": {"type": "abort", "message": "no"}}}),
            DONE,
        ],
        "no",
    ),
    "hang-up before the head": (
        [Break.HANG_UP],
        "the server closed the connection before it answered",
    ),
    "hang-up in the stream": (
        [STREAM_HEAD, event(generated(1)), Break.HANG_UP],
        "the server closed the connection in the middle of its answer",
    ),
    "end without the last event": (
        [STREAM_HEAD, event(generated(1)), END],
        "the stream ended before its last event",
    ),
    "no events": ([whole(generated(3))], "the answer is no stream of events"),
    "no tokens": (
        [STREAM_HEAD, event(generated(0, is_end=True)), DONE],
        "the answer has no tokens",
    ),
    "no JSON": ([STREAM_HEAD, chunk(b"data: {oops\n\n"), DONE], "no JSON object"),
    "no HTTP": ([b"220 mail.example ready\r\n\r\n"], "not the first line of an HTTP/1.1 answer"),
}


@pytest.mark.parametrize("name", CUT)
def test_what_is_not_a_whole_answer_is_an_error(name: str) -> None:
    steps, reason = CUT[name]
    record = exchange(steps)
    assert record.error is not None
    assert reason in record.error
    assert record.ended_s >= record.sent_s


def test_an_abort_of_a_completion_is_an_error() -> None:
    aborted = {"choices": [{"text": "", "finish_reason": "abort"}]}
    record = exchange([STREAM_HEAD, event(aborted), DONE], backend="vllm")
    assert record.error == "the server aborted the answer"


def test_a_reset_in_the_stream_is_an_error() -> None:
    seen = asyncio.Event()
    steps = [STREAM_HEAD, event(generated(1)), seen, Break.RESET]
    record = exchange(steps, on_arrival=lambda _number: seen.set())
    assert record.error is not None
    assert record.error.startswith("connection: ")
    assert record.num_output == 1


def test_a_server_that_never_answers_is_left() -> None:
    record = exchange([asyncio.Event()], request_timeout_s=0.05)
    assert record.error == "no end of the answer within 0.05 s"


def test_nobody_listens() -> None:
    record = Record(0, 0, 0.0)

    async def ask() -> None:
        async with ScriptedServer(lambda _request: []).running() as server:
            url = server.url
        config = TargetConfig(base_url=url)
        sender = Sender(HttpClient(url, {}), make_backend(config, "x"), timeout_s=5, tokenizer=None)
        await sender.send(History([(1,)]), 1, record, 0.0)

    run(ask())
    assert record.error is not None
    assert record.error.startswith("connection: ")


def test_leaving_closes_the_connection() -> None:
    async def leave() -> None:
        has_begun, never = asyncio.Event(), asyncio.Event()
        server = ScriptedServer(lambda _request: [STREAM_HEAD, event(generated(1)), never])
        async with server.running():
            closed = asyncio.Event()
            client = HttpClient(server.url, {})
            task = asyncio.create_task(
                client.request("POST", "/generate", b"{}", lambda *_: has_begun.set())
            )
            await has_begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            server.on_left = closed.set
            await closed.wait()

    run(leave())


def test_what_is_sent() -> None:
    async def ask() -> None:
        server = ScriptedServer(lambda _request: [whole({})])
        async with server.running():
            client = HttpClient(f"{server.url}/base/", {"Authorization": "Bearer k"})
            status, body = await client.fetch("POST", "/x", b'{"a": 1}')
        assert (status, body) == (200, b"{}")
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("POST", "/base/x", {"a": 1})
        assert request.headers["authorization"] == "Bearer k"
        assert request.headers["host"] == server.url.removeprefix("http://")

    run(ask())


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:99999"])
def test_a_wrong_address_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="--base-url"):
        Address.of(url)


def test_addresses() -> None:
    assert Address.of("http://[::1]:5/v").authority == "[::1]:5"
    assert (Address.of("https://x").port, Address.of("http://x").port) == (443, 80)
    assert Address.of("https://x").tls is not None
