"""A worker that speaks SGLang's wire and does as it is told: for tests of routers.

What it answers follows from its role and from a `Script` alone: no model, no clock, no chance.
Everything it was asked is kept, and tests wait for events (`until`), never for time.
Elsewhere: real workers (api/, engine/).
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

GENERATION_ROUTES = ("/generate", "/v1/chat/completions", "/v1/completions")
HEAD = 0
"""The point of a script before anything is sent; point k is before the k-th token."""


@dataclass(frozen=True)
class Script:
    """How requests for tokens are answered.

    `gates`: events to wait for at a point. `die_at`: the point at which the connection breaks.
    `error_event`: sent inside the stream in place of the first token. `says_done`: whether a
    stream ends with `[DONE]`.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Any = None
    num_tokens: int = 8
    gates: Mapping[int, asyncio.Event] = field(default_factory=dict)
    die_at: int | None = None
    error_event: Any = None
    says_done: bool = True


@dataclass(frozen=True)
class Recorded:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    raw: bytes


class FakeWorker:
    """`async with FakeWorker("decode") as worker: ...`; `url` is known while it runs, and stays
    the same when it is started again after `stop` or `kill`."""

    def __init__(
        self,
        role: str,
        *,
        script: Script | None = None,
        info: Any = None,
        tls: ssl.SSLContext | None = None,
    ):
        self.role = role
        self._tls = tls
        self.script = script or Script()
        self.health_status = 200
        self.health_gate: asyncio.Event | None = None
        self.is_draining = False
        self.info: dict[str, Any] = {"served_model_name": "fake-model", **(info or {})}
        self.loads: Any = {"loads": [{"dp_rank": 0, "num_running_reqs": 0, "num_total_tokens": 0}]}
        self.requests: list[Recorded] = []
        self.other_requests: list[Recorded] = []
        self.tokens_per_request: int | None = None
        """Set, and it reports what runs here as its load, each request as so many tokens."""
        self.num_running = 0
        self.num_hung_up = 0
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "FakeWorker":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._runner = web.AppRunner(
            self._app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def kill(self) -> None:
        """As after SIGKILL: nobody listens, and every connection is reset."""
        assert self._runner is not None
        for site in list(self._runner.sites):
            await site.stop()
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self.stop()

    async def until(self, is_so: Callable[["FakeWorker"], bool]) -> None:
        """Wait until what this worker has seen `is_so`."""
        while not is_so(self):
            self._changed.clear()
            await self._changed.wait()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        for route in GENERATION_ROUTES:
            app.router.add_post(route, self._generate)
        for path in ("/health", "/health_generate"):
            app.router.add_get(path, self._health)
        for path, answer in self._reports().items():
            app.router.add_get(path, self._reporter(answer))
        for path in ("/flush_cache", "/abort_request"):
            app.router.add_post(path, self._note)
        app.router.add_get("/flush_cache", self._note)
        return app

    def _reports(self) -> dict[str, Callable[[], Any]]:
        return {
            "/server_info": lambda: {**self.info, "disaggregation_mode": self.role, "tp_size": 1},
            "/model_info": lambda: {"model_path": "/models/fake", "model_type": "qwen3"},
            "/v1/models": lambda: {"object": "list", "data": [{"id": "fake-model"}]},
            "/v1/models/fake-model": lambda: {"id": "fake-model"},
            "/v1/loads": lambda: self._load() or self.loads,
        }

    def _load(self) -> Any:
        if self.tokens_per_request is None:
            return None
        num_tokens = self.num_running * self.tokens_per_request
        rank = {"num_running_reqs": self.num_running, "num_total_tokens": num_tokens}
        return {"loads": [{"dp_rank": 0, **rank}]}

    def _reporter(self, answer: Callable[[], Any]) -> Callable[[web.Request], Any]:
        async def report(request: web.Request) -> web.Response:
            self.other_requests.append(await _recorded(request))
            self._changed.set()
            return web.json_response(answer())

        return report

    async def _health(self, _request: web.Request) -> web.Response:
        if self.health_gate is not None:
            await self.health_gate.wait()
        if self.is_draining:
            return web.json_response({"error": {"code": "draining"}}, status=503)
        return web.Response(status=self.health_status)

    async def _note(self, request: web.Request) -> web.Response:
        self.other_requests.append(await _recorded(request))
        self._changed.set()
        return web.Response(text="ok")

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        recorded, script = await _recorded(request), self.script
        self.requests.append(recorded)
        self.num_running += 1
        self._changed.set()
        try:
            return await self._answer(request, recorded, script)
        except (asyncio.CancelledError, ConnectionResetError):
            self.num_hung_up += 1
            self._changed.set()
            raise
        finally:
            self.num_running -= 1

    async def _answer(
        self, request: web.Request, recorded: Recorded, script: Script
    ) -> web.StreamResponse:
        if not await _pass(HEAD, request, script):
            return web.Response()
        if script.status >= 400:
            error = script.error or {"error": {"message": f"fake {script.status} from {self.role}"}}
            return web.json_response(error, status=script.status, headers=script.headers)
        if recorded.body.get("stream"):
            return await self._stream(request, recorded, script)
        for point in range(1, self._num_tokens(script) + 1):
            if not await _pass(point, request, script):
                return web.Response()
        answer = whole_answer(recorded.path, recorded.body, self.role, self._num_tokens(script))
        return web.json_response(answer, headers=script.headers)

    async def _stream(
        self, request: web.Request, recorded: Recorded, script: Script
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers={**headers, **script.headers})
        await response.prepare(request)
        async for point, event in self._events(recorded, script):
            if not await _pass(point, request, script):
                return response
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if script.says_done:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _events(self, recorded: Recorded, script: Script) -> AsyncIterator[tuple[int, Any]]:
        if script.error_event is not None:
            yield 1, script.error_event
            return
        num_tokens = self._num_tokens(script)
        for point in range(1, num_tokens + 1):
            yield point, stream_event(recorded.path, recorded.body, self.role, point, num_tokens)

    def _num_tokens(self, script: Script) -> int:
        return 1 if self.role == "prefill" else script.num_tokens


async def _recorded(request: web.Request) -> Recorded:
    raw = await request.read()
    body = json.loads(raw) if raw else None
    return Recorded(request.method, request.path, dict(request.headers), body, raw)


async def _pass(point: int, request: web.Request, script: Script) -> bool:
    """Wait at a point; False if the connection was broken there."""
    gate = script.gates.get(point)
    if gate is not None:
        await gate.wait()
    if script.die_at != point:
        return True
    assert request.transport is not None
    request.transport.close()
    return False


def whole_answer(path: str, body: Any, role: str, num_tokens: int) -> Any:
    """What a worker of this role answers without a stream."""
    if path == "/generate":
        answer = _generated(body, role, num_tokens, num_tokens)
        batch = _batch_size(body)
        return answer if batch is None else [answer] * batch
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if path == "/v1/completions":
        choice["text"] = "x" * num_tokens
        if body.get("logprobs") is not None:
            choice["logprobs"] = _completion_logprobs(role, num_tokens)
    else:
        choice["message"] = {"role": "assistant", "content": "x" * num_tokens}
    usage = {"prompt_tokens": 4, "completion_tokens": num_tokens, "total_tokens": 4 + num_tokens}
    return {"id": "fake", "created": 1, "choices": [choice], "usage": usage}


def stream_event(path: str, body: Any, role: str, point: int, num_tokens: int) -> Any:
    """The `point`-th event of a stream: /generate repeats all tokens, OpenAI's sends new ones."""
    if path == "/generate":
        return _generated(body, role, point, num_tokens)
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    if path == "/v1/completions":
        choice["text"] = "x"
        if body.get("logprobs") is not None:
            choice["logprobs"] = _completion_logprobs(role if point == 1 else "decode", 1)
    else:
        choice["delta"] = {"content": "x"}
    return {"id": "fake", "created": 1, "choices": [choice]}


def _generated(body: Any, role: str, num_so_far: int, num_tokens: int) -> Any:
    finish = {"type": "length", "length": num_tokens} if num_so_far == num_tokens else None
    meta: dict[str, Any] = {
        "id": body.get("rid") or "fake",
        "finish_reason": finish,
        "prompt_tokens": 4,
        "completion_tokens": num_so_far,
    }
    if body.get("return_logprob"):
        from_prompt = [[None, 1, None], [-0.5, 2, None]]
        meta["input_token_logprobs"] = [] if role == "decode" else from_prompt
        meta["output_token_logprobs"] = [[-(i + 1) / 10, 100 + i, None] for i in range(num_so_far)]
    return {"text": "x" * num_so_far, "output_ids": list(range(num_so_far)), "meta_info": meta}


def _completion_logprobs(role: str, num_tokens: int) -> Any:
    prompt = [] if role == "decode" else [("h", None), ("i", -0.5)]
    listed = [*prompt, *[("x", -0.1)] * num_tokens]
    return {
        "tokens": [token for token, _ in listed],
        "token_logprobs": [logprob for _, logprob in listed],
        "top_logprobs": [None for _ in listed],
        "text_offset": list(range(len(listed))),
    }


def _batch_size(body: Any) -> int | None:
    for key in ("text", "input_ids"):
        prompts = body.get(key)
        if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
            return len(prompts)
    return None
