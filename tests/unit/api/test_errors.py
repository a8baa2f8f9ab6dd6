"""Every way to fail, in OpenAI's shape: status, field, code, and no 5xx for a client's mistake."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from baton.api.state import ApiConfig
from baton.core.errors import TransferError
from baton.core.request import Finish, FinishReason
from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import FakeWorker, serve_fake_worker

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def refusal(
    path: str, body: Any, engine: FakeEngine | None = None, config: ApiConfig | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and error of a request; checks the shape."""

    async def scenario() -> tuple[int, dict[str, Any]]:
        async with serve_fake_worker(engine, config=config) as worker:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with worker.session.post(worker.url + path, data=data) as response:
                answer = await response.json()
                assert response.content_type == "application/json"
                assert answer.keys() == {"error"}, answer
                assert answer["error"].keys() == {"message", "type", "param", "code"}
                assert "X-Request-ID" in response.headers
                assert worker.service.running.num_requests == 0
                return response.status, answer["error"]

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        (CHAT, {"messages": HI, "max_tokens": "8"}, "max_tokens"),
        (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": HI, "max_completion_tokens": -1}, "max_completion_tokens"),
        (CHAT, {"messages": HI, "temperature": -1}, "temperature"),
        (CHAT, {"messages": HI, "top_p": 0}, "top_p"),
        (CHAT, {"messages": HI, "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        (CHAT, {"messages": HI, "n": 0}, "n"),
        (CHAT, {"messages": HI, "n": 1000}, "n"),
        (CHAT, {"messages": HI, "stop": [""]}, "stop"),
        (CHAT, {"messages": HI, "stop": ["a"] * 65}, "stop"),
        (CHAT, {"messages": HI, "seed": -2}, "seed"),
        (CHAT, {"messages": HI, "seed": 2**63}, "seed"),
        (CHAT, {"messages": HI, "logit_bias": {"999": 1}}, "logit_bias"),
        (CHAT, {"messages": HI, "logit_bias": {"1": 101}}, "logit_bias.1"),
        (CHAT, {"messages": HI, "logit_bias": {"a": 1}}, "logit_bias"),
        (CHAT, {"messages": HI, "stop_token_ids": [999]}, "stop_token_ids"),
        (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": HI, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": HI, "tool_choice": {"type": "function"}}, "tool_choice"),
        (CHAT, {"messages": HI, "regex": "a+"}, "regex"),
        (CHAT, {"messages": HI, "lora_path": "x"}, "lora_path"),
        (CHAT, {"messages": HI, "continue_final_message": True}, "continue_final_message"),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"tools": 1}},
         "chat_template_kwargs.tools"),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
        (CHAT, {"messages": HI, "rid": ["a", "b"]}, "rid"),
        (CHAT, {"messages": HI, "rid": "x" * 300}, "rid"),
        (CHAT, {"messages": HI, "rid": "a\nb"}, "rid"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", ""]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, 999]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], [-1]]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": [[1], []]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        (COMPLETIONS, {"prompt": "a", "logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 1000}, "logprobs"),
        (COMPLETIONS, {"prompt": ["a"] * 1025}, "n"),
        ("/generate", {}, "text"),
        ("/generate", {"text": "a", "input_ids": [1]}, "input_ids"),
        ("/generate", {"text": []}, "text"),
        ("/generate", {"input_ids": []}, "input_ids"),
        ("/generate", {"input_ids": [1, [2]]}, "input_ids"),
        ("/generate", {"input_ids": [260]}, "input_ids"),
        ("/generate", {"text": "a", "sampling_params": {"top_k": -2}}, "sampling_params.top_k"),
        ("/generate", {"text": "a", "sampling_params": {"n": 0}}, "sampling_params.n"),
        ("/generate", {"text": "a", "sampling_params": {"regex": "a"}}, "sampling_params.regex"),
        ("/generate", {"text": "a", "sampling_params": [{}, {}]}, "sampling_params"),
        ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": "x"}},
         "sampling_params.max_new_tokens"),
        ("/generate", {"text": "a", "token_ids_logprob": [1]}, "token_ids_logprob"),
        ("/generate", {"text": "a", "image_data": "x"}, "image_data"),
        ("/generate", {"text": "a", "return_logprob": True, "logprob_start_len": 5},
         "logprob_start_len"),
        ("/generate", {"text": "a", "return_logprob": True, "top_logprobs_num": 999},
         "top_logprobs_num"),
        ("/generate", {"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ("/generate", {"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ("/abort_request", {}, "rid"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(path: str, body: Any, param: str) -> None:
    status, error = refusal(path, body)
    assert (status, error["param"]) == (400, param), error
    assert param.split(".")[-1].split("[")[0] in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nope", b"[]", b"null", b"\xff\xfe", b'{"messages": "\xff"}',
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
     b'{"messages": ' + b"[" * 100_000, b'{"a": NaN, "messages": []}',
     b'{"messages": [], "tools": [{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}]}"],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate", "/abort_request"])
def test_malformed_bodies(path: str, body: bytes) -> None:
    status, error = refusal(path, body)
    assert status == 400
    assert "body" in error["message"] or error["param"], error


def test_bodies_beyond_the_limit() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async def scenario() -> None:
        async with serve_fake_worker(config=ApiConfig(max_body_bytes=1000)) as worker:
            for data in (b" " * 1001, chunks()):
                async with worker.session.post(worker.url + CHAT, data=data) as response:
                    error = (await response.json())["error"]
                    assert (response.status, error["code"]) == (413, "body_too_large")
                    assert "1000 bytes" in error["message"]

    asyncio.run(scenario())


def test_too_long_for_the_context() -> None:
    def engine() -> FakeEngine:
        return FakeEngine(context_length=16)

    status, error = refusal("/generate", {"text": "a" * 16}, engine())
    assert (status, error["param"], error["code"]) == (400, "text", "context_length_exceeded")
    assert "16 tokens; the context length is 16" in error["message"]
    body = {"prompt": "a" * 10, "max_tokens": 7}
    status, error = refusal(COMPLETIONS, body, engine())
    assert (status, error["param"]) == (400, "max_tokens")
    assert all(number in error["message"] for number in ("10", "7", "17", "16", "at most 6"))


def test_too_long_for_the_pool() -> None:
    def engine(role: Any = "null") -> FakeEngine:
        return FakeEngine(role=role, num_blocks=2, block_size=16)

    status, error = refusal("/generate", {"text": "a" * 32}, engine())
    assert (status, error["code"]) == (400, "kv_pool_exceeded")
    body = {"text": "a" * 20, "sampling_params": {"max_new_tokens": 20}}
    status, error = refusal("/generate", body, engine())
    assert (status, error["param"]) == (400, "sampling_params.max_new_tokens")
    assert "at most 12" in error["message"]

    async def prefill_needs_only_the_prompt() -> None:
        async with serve_fake_worker(engine("prefill")) as worker:
            status, _ = await worker.post("/generate", {**body, "bootstrap_room": 1})
            assert status == 200

    asyncio.run(prefill_needs_only_the_prompt())


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "bootstrap_room"),
        ({"bootstrap_host": "h", "bootstrap_port": 1}, "bootstrap_room"),
        ({"bootstrap_host": "h", "bootstrap_room": -1}, "bootstrap_room"),
        ({"bootstrap_host": "h", "bootstrap_room": 2**63}, "bootstrap_room"),
        ({"bootstrap_host": "h", "bootstrap_room": "1"}, "bootstrap_room"),
        ({"bootstrap_host": "h", "bootstrap_room": [1, 2]}, "bootstrap_room"),
        ({"bootstrap_host": "h", "bootstrap_room": 1, "bootstrap_port": 0}, "bootstrap_port"),
        ({"bootstrap_host": "a/b?", "bootstrap_room": 1}, "bootstrap_host"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", {"text": "a"}), (CHAT, {"messages": HI}), (COMPLETIONS, {"prompt": "a"})],
)
def test_pairs_need_their_bootstrap_fields(
    role: Any, fields: dict[str, Any], param: str, path: str, body: dict[str, Any]
) -> None:
    status, error = refusal(path, body | fields, FakeEngine(role=role))
    assert (status, error["param"]) == (400, param), error


def test_decode_needs_a_host() -> None:
    body = {"text": "a", "bootstrap_room": 1}
    status, error = refusal("/generate", body, FakeEngine(role="decode"))
    assert (status, error["param"]) == (400, "bootstrap_host")


def test_bootstrap_failure_names_the_server() -> None:
    async def refuse(host: str, port: int, room: int) -> str:
        raise TransferError("connection refused", stage="bootstrap", peer=f"{host}:{port}")

    async def scenario() -> None:
        engine = FakeEngine(role="decode")
        async with serve_fake_worker(engine, resolve_prefill=refuse) as worker:
            for rooms in (1, [1, 2]):
                body = {"text": ["a", "b"], "bootstrap_host": "pre", "bootstrap_room": rooms}
                status, answer = await worker.post("/generate", body)
                assert status == 503
                assert "pre:8998" in answer["error"]["message"]
                assert "connection refused" in answer["error"]["message"]
                assert answer["error"]["code"] == "transfer_bootstrap_failed"
            assert engine.requests == []

    asyncio.run(scenario())


def test_an_empty_body_is_called_empty() -> None:
    for body in (b"", b" \n"):
        status, error = refusal(CHAT, body)
        assert (status, error["code"]) == (400, "invalid_json")
        assert "the body is empty" in error["message"]


def test_no_chat_template() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(chat_template=None) as worker:
            status, answer = await worker.post(CHAT, {"messages": HI})
            assert (status, answer["error"]["param"]) == (400, "messages")

    asyncio.run(scenario())


def test_unknown_model_path_and_method() -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            status, answer = await worker.post(CHAT, {"messages": HI, "model": "other"})
            assert (status, answer["error"]["code"]) == (404, "model_not_found")
            status, answer = await worker.post("/v1/nothing", {})
            assert (status, answer["error"]["code"]) == (404, "unknown_path")
            status, answer = await worker.get(CHAT)
            assert (status, answer["error"]["code"]) == (405, "method_not_allowed")
            assert "POST" in answer["error"]["message"]

    asyncio.run(scenario())


def test_duplicate_rid() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1)
        async with serve_fake_worker(engine) as worker:
            first = asyncio.create_task(worker.post("/generate", {"text": "a", "rid": "r"}))
            await engine.until_running()
            status, answer = await worker.post("/generate", {"text": "b", "rid": "r"})
            assert (status, answer["error"]["param"]) == (400, "rid")
            engine.resume()
            assert (await first)[0] == 200
            assert (await worker.post("/generate", {"text": "b", "rid": "r"}))[0] == 200

    asyncio.run(scenario())


def test_api_key() -> None:
    async def scenario() -> None:
        async with serve_fake_worker(config=ApiConfig(api_key="sesame")) as worker:
            body = {"text": "a"}
            for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer "}):
                status, answer = await worker.post("/generate", body, headers)
                assert (status, answer["error"]["type"]) == (401, "authentication_error")
            headers = {"Authorization": "Bearer sesame"}
            assert (await worker.post("/generate", body, headers))[0] == 200
            async with worker.session.get(worker.url + "/health") as response:
                assert response.status == 200

    asyncio.run(scenario())


def test_dead_engine() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1)
        async with serve_fake_worker(engine) as worker:
            asked = asyncio.create_task(worker.post("/generate", {"text": "a"}))
            await engine.until_running()
            engine.kill()
            status, answer = await asked
            assert (status, answer["error"]["type"]) == (503, "server_error")
            assert "died" in answer["error"]["message"]
            for path in ("/health", "/liveness", "/health_generate", "/flush_cache"):
                status, answer = await worker.get(path)
                assert (status, answer["error"]["code"]) == (503, "engine_dead")
            assert (await worker.post(CHAT, {"messages": HI}))[0] == 503
            assert (await worker.get("/server_info"))[1]["status"] == "dead"

    asyncio.run(scenario())


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize(
    ("finish", "status"),
    [
        (Finish(reason=FinishReason.ERROR, message="kv lost", status=503), 503),
        (Finish(reason=FinishReason.ERROR, message="kv lost"), 500),
        (Finish(reason=FinishReason.ABORT, message="kv lost", status=429), 429),
        (Finish(reason=FinishReason.ABORT, message="kv lost"), 499),
    ],
)
def test_failures_before_the_first_event_keep_their_status(
    is_streaming: bool, finish: Finish, status: int
) -> None:
    body = {"messages": HI, "n": 2, "stream": is_streaming}
    answered, error = refusal(CHAT, body, FakeEngine(finish_with=finish))
    assert (answered, error["message"]) == (status, "kv lost")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", {"text": "a"}), (CHAT, {"messages": HI}), (COMPLETIONS, {"prompt": "a"})],
)
def test_failures_in_mid_stream_end_it_with_an_error_event(
    path: str, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        finish = Finish(reason=FinishReason.ERROR, message="peer 'x' died\n", status=503)
        engine = FakeEngine(finish_with=finish, finish_after=2)
        async with serve_fake_worker(engine) as worker:
            payloads = await worker.post_for_events(path, {**body, "stream": True})
            assert payloads[-1] == "[DONE]"
            error = json.loads(payloads[-2])["error"]
            assert error["message"] == "peer 'x' died\n"
            assert len(payloads) >= 3

    caplog.set_level(logging.INFO, "baton.api")
    asyncio.run(scenario())
    (line,) = [record for record in caplog.records if record.getMessage() == "stream failed"]
    assert line.__dict__["baton_fields"]["request_id"]


def test_one_failed_sample_ends_the_others() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=1)
        async with serve_fake_worker(engine) as worker:
            body = {"text": "a", "rid": "r", "sampling_params": {"n": 3}}
            asked = asyncio.create_task(worker.post("/generate", body))
            await engine.until_running(3)
            engine.abort("r-0")
            assert (await asked)[0] == 499
            await engine.until_idle()
            assert set(engine.aborted) == {"r-0", "r-1", "r-2"}

    asyncio.run(scenario())


def test_bugs_are_logged_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        async def flush_cache(self) -> int:
            raise KeyError("secret detail")

    async def scenario() -> None:
        async with serve_fake_worker(Broken()) as worker:
            status, answer = await worker.get("/flush_cache")
            assert (status, answer["error"]["code"]) == (500, "internal")
            assert "secret" not in json.dumps(answer)

    asyncio.run(scenario())
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad\x00name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http_close_quietly(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
            writer.write(sent)
            await writer.drain()
            await asyncio.wait_for(reader.read(), 5)  # until the server closes
            writer.close()
            await writer.wait_closed()
            assert await still_serves(worker)

    caplog.set_level(logging.DEBUG, "baton")
    asyncio.run(scenario())
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING or r.exc_info]
    assert [r for r in caplog.records if "not HTTP/1.1" in r.getMessage()]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /generate HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 5", 400),
        (b"POST /generate HTTP/1.1\r\nExpect: nonsense\r\nContent-Length: 5", 417),
        (b"POST /generate HTTP/1.1\r\nContent-Length: 99999999999", 413),
        (b"GET /v1/models/%ed%a0%80 HTTP/1.1\r\nX-Request-ID: \xff\xfe\r\nContent-Length: 5", 404),
        (b"OPTIONS /generate HTTP/1.1\r\nContent-Length: 5", 405),
    ],
)
def test_odd_requests_are_refused_quietly(
    head: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
            writer.write(head + b"\r\nHost: x\r\nConnection: close\r\n\r\nabcde")
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"X-Request-ID: " in answer
            writer.close()
            await writer.wait_closed()
            assert await still_serves(worker)

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_body_that_stops_half_way(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serve_fake_worker() as worker:
            _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
            writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            assert await still_serves(worker)

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def still_serves(worker: FakeWorker) -> bool:
    status, _ = await worker.post("/generate", {"text": "a"})
    return status == 200
