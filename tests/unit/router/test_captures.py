"""Every captured exchange of SGLang's router, once more through Baton's: what workers get and what
the client gets is the same, but for `DIFFERENCES`, which are meant. Nothing is run again on other
workers here, which SGLang's router does not do (test_reruns.py).

Workers answer byte for byte what theirs did. Elsewhere: what was left out (captures/README.md).
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baton.router.config import WorkerRole, WorkerSpec
from baton.testing.scripted_server import (
    DONE,
    END,
    STREAM_HEAD,
    Break,
    Request,
    ScriptedServer,
    Step,
    chunk,
    event,
    generated,
    whole,
)

from .conftest import Cluster, ClusterMaker

Run = Callable[[Callable[[], Any]], None]
Capture = dict[str, Any]

FOLDER = Path(__file__).parent / "captures"
EXCHANGES = sorted(path.stem for path in FOLDER.glob("[0-6]*.json"))
ANSWERS = sorted(path.stem for path in FOLDER.glob("[gp]*.json") if path.stem != "get_workers")
"""How the list of workers looks is compared in test_admin.py, and how they join and leave in
test_worker_captures.py."""
SGLANGS_PORT = 8998
"""What workers take `bootstrap_port: null` for."""
HEADERS = {"Authorization": "Bearer k", "X-Request-ID": "rid-1", "x-smg-routing-key": "rk"}
FROM_PROMPT = [[None, 1, None], [-0.5, 2, None]]


@dataclass(frozen=True)
class Difference:
    """`status` and `says`, part of the answer, are Baton's; `why` it is better."""

    why: str
    status: int
    says: bytes = b""
    content_type: str = "application/json"


_KEPT = "the worker's status and body reach the client, and nobody is asked again"
_JSON = "an error before a stream is JSON of its true length, not half an event"
_SSE = "text/event-stream"

DIFFERENCES = {
    "05_generate_batch_text": Difference("a batch of texts is served", 200, b'"xxxxxxxx"'),
    "07_generate_logprob": Difference("JSON is called JSON", 200, b"[-0.5, 2, null]"),
    "08_generate_logprob_stream": Difference(
        "streams get the prompt's logprobs, too", 200, b"[-0.5, 2, null]", _SSE
    ),
    "40_decode_400": Difference(_KEPT, 400, b"fake 400 from decode"),
    "41_decode_422": Difference(_KEPT, 422, b"fake 422 from decode"),
    "42_decode_429": Difference(_KEPT, 429, b"fake 429 from decode"),
    "43_decode_503": Difference(_KEPT, 503, b"fake 503 from decode"),
    "44_prefill_503": Difference(_KEPT, 503, b"fake 503 from prefill"),
    "44b_prefill_429": Difference(_KEPT, 429, b"fake 429 from prefill"),
    "45_stream_decode_500": Difference(_JSON, 500, b"fake 500 from decode"),
    "45b_stream_decode_400": Difference(_JSON, 400, b"fake 400 from decode"),
    "46_chat_stream_decode_400": Difference(_JSON, 400, b"fake 400 from decode"),
    "47_decode_400_sglang_style": Difference(_KEPT, 400, b'"too long"'),
    "48_decode_dies_midstream": Difference(
        "a stream that cannot go on ends with an error event", 200, b'"decode_failed"', _SSE
    ),
    "48b_decode_dies_at_head_stream": Difference(
        "before the first event there is still a status to give", 503, b'"decode_failed"'
    ),
}

RENAMED = {"max_tokens": "max_completion_tokens"}
"""SGLang's router writes chats anew; Baton passes on what the client wrote, and its workers know
both names. Likewise nothing is added that the client left out, and nothing unknown is dropped."""


def read(name: str) -> Capture:
    capture: Capture = json.loads((FOLDER / f"{name}.json").read_text())
    return capture


class Legs:
    """The workers of one exchange, and the moment at which the client had its first bytes."""

    def __init__(self, capture: Capture):
        self.client_has_begun = asyncio.Event()
        self._capture = capture
        self._told = {role: capture.get("ctl", {}).get(f"{role}1", {}) for role in "pd"}
        self.prefill = ScriptedServer(lambda request: self._answer("p", request))
        self.decode = ScriptedServer(lambda request: self._answer("d", request))

    def _answer(self, role: str, request: Request) -> Iterator[Step]:
        return iter(list(self._steps(role, request)))

    def _steps(self, role: str, request: Request) -> Iterator[Step]:
        told = self._told[role]
        if role == "p" and ("delay_head" in told or "die_after" in told):
            yield self.client_has_begun
        if role == "d" and "status" in self._told["p"]:
            yield asyncio.Event()  # no KV comes
        if "status" in told:
            yield self._refusal(role, told)
        elif request.body.get("stream"):
            yield STREAM_HEAD
            yield from self._stream(role, told.get("die_after"))
        else:
            yield whole(self._whole(role, request))

    def _refusal(self, role: str, told: dict[str, Any]) -> bytes:
        status, leg = told["status"], {"p": "prefill", "d": "decode"}[role]
        said = {"message": f"fake {status} from {leg}", "type": "x", "code": status}
        return whole(told.get("err_body", {"error": said}), status=f"{status} Odd")

    def _stream(self, role: str, die_after: int | None) -> Iterator[Step]:
        if role == "d" and "body" in self._capture["router_response"]:
            yield chunk(self._capture["router_response"]["body"].encode()) + END
            return
        first = generated(1)
        first["meta_info"]["input_token_logprobs"] = FROM_PROMPT
        yield from (event(first) for _ in range(1 if die_after is None else die_after))
        yield DONE if die_after is None else Break.RESET

    def _whole(self, role: str, request: Request) -> Any:
        if isinstance(request.body.get("text"), list):
            return [generated(8)] * len(request.body["text"])
        answer = json.loads(self._capture["router_response"]["body"])
        if isinstance(answer, dict) and request.body.get("return_logprob"):
            answer["meta_info"]["input_token_logprobs"] = FROM_PROMPT if role == "p" else []
        return answer


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_captured_exchange(run: Run, cluster: ClusterMaker, name: str) -> None:
    capture, difference = read(name), DIFFERENCES.get(name)
    asked = capture["client_request"]

    async def scenario() -> None:
        legs = Legs(capture)
        async with legs.prefill.running(), legs.decode.running(), cluster(0, 0, max_resumes=0) as c:
            await join(c, legs, capture)
            async with c.session.post(
                c.url + asked["path"], json=asked["body"], headers=HEADERS
            ) as response:
                first = await response.content.readany()
                legs.client_has_begun.set()
                body = first + await response.read()
            assert response.headers["X-Request-ID"] == "rid-1"
            for leg in (legs.prefill, legs.decode):
                (sent,) = leg.requests
                check_sent(sent, capture)
            check_answer(response.status, response.content_type, body, capture, difference)

    run(scenario)


async def join(c: Cluster, legs: Legs, capture: Capture) -> None:
    for leg, role in ((legs.prefill, WorkerRole.PREFILL), (legs.decode, WorkerRole.DECODE)):
        port = SGLANGS_PORT if role is WorkerRole.PREFILL else None
        c.fleet.join(WorkerSpec(leg.url, role, port))
    await c.until_healthy(2)


def check_sent(sent: Request, capture: Capture) -> None:
    """What a worker got: the client's body, and what SGLang's router adds and passes."""
    asked, theirs = capture["client_request"], first_sent(capture)
    bootstrap = {key: value for key, value in sent.body.items() if key.startswith("bootstrap_")}
    own = {key: value for key, value in sent.body.items() if key not in bootstrap}
    assert own == {k: v for k, v in asked["body"].items() if not k.startswith("bootstrap_")}
    assert sent.path == asked["path"]
    for name, value in HEADERS.items():
        assert sent.headers[name.lower()] == value
    if theirs is None:
        return
    body = theirs["body"]
    assert bootstrap["bootstrap_host"] == body["bootstrap_host"]
    assert bootstrap["bootstrap_port"] == port_of(body["bootstrap_port"])
    assert shape(bootstrap["bootstrap_room"]) == shape(body["bootstrap_room"])
    for name, value in theirs["headers"].items():
        if name not in ("Host", "Content-Length"):
            assert sent.headers[name.lower()] == value
    for key, value in own.items():
        if key in body:
            assert without_unknown(value) == without_unknown(body[key])
        else:
            assert RENAMED.get(key) in body or key.startswith("unknown_")


def first_sent(capture: Capture) -> Any:
    for requests in capture.get("worker_requests", {}).values():
        return requests[0]
    return None


def port_of(captured: Any) -> Any:
    if isinstance(captured, list):
        return [port_of(each) for each in captured]
    return captured or SGLANGS_PORT


def shape(value: Any) -> Any:
    return [shape(each) for each in value] if isinstance(value, list) else type(value).__name__


def without_unknown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: each for key, each in value.items() if not key.startswith("unknown_")}
    return value


def check_answer(
    status: int, content_type: str, body: bytes, capture: Capture, difference: Difference | None
) -> None:
    theirs = capture["router_response"]
    if difference is not None:
        assert (status, content_type) == (difference.status, difference.content_type)
        assert difference.says in body
        check_form(content_type, body)
        assert (status, body.decode()) != (theirs.get("status"), theirs.get("body")) or (
            content_type != theirs["headers"]["Content-Type"]
        ), "no difference any more: take it out of the table"
        return
    assert status == theirs["status"]
    if content_type == _SSE:
        assert body.decode() == theirs["body"]
    else:
        assert json.loads(body) == json.loads(theirs["body"])


def check_form(content_type: str, body: bytes) -> None:
    """What clients can read to its end: JSON, or events of JSON and [DONE]."""
    if content_type != _SSE:
        json.loads(body)
        return
    *events, done, nothing = body.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    for each in events:
        json.loads(each.removeprefix(b"data: "))


def test_every_difference_is_of_a_capture() -> None:
    assert set(DIFFERENCES) <= set(EXCHANGES)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_captured_answer_about_the_router(run: Run, cluster: ClusterMaker, name: str) -> None:
    """Same status, and at least the same fields; tools that read theirs can read ours."""
    method, _, path = name.partition("_")
    capture = read(name)

    async def scenario() -> None:
        async with cluster(2, 2) as c:
            path_there = "/" + path.replace("v1_", "v1/")
            async with c.session.request(method.upper(), c.url + path_there) as response:
                body = await response.read()
            assert response.status == capture["status"]
            if capture["body"].startswith("{"):
                assert fields_of(json.loads(capture["body"])) <= fields_of(json.loads(body))

    run(scenario)


def fields_of(value: Any, path: str = "") -> set[str]:
    """Paths of all keys; lists are as their first items."""
    if isinstance(value, list):
        return fields_of(value[0], path + "[]") if value else {path + "[]"}
    if not isinstance(value, dict):
        return {path}
    return set().union(*(fields_of(each, f"{path}.{key}") for key, each in value.items()))
