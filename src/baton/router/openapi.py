"""The router's routes as an OpenAPI document, for generators of clients, browsers and fuzzers.

It says what is true of the router: of bodies for tokens only what the router itself reads, because
everything else is the workers' to accept or refuse.
Elsewhere: the routes (app.py); that this is true (tests/unit/router/test_openapi.py).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec

import baton
from baton.router.admin import Abort, AddWorker, UpdateWorker
from baton.router.errors import ErrorBody
from baton.router.requests import CHAT, COMPLETIONS, GENERATE, MAX_CHOICES

PATH: Final = "/openapi.json"

_REFERENCE: Final = "#/components/schemas/{name}"

Json = dict[str, Any]


class ErrorAnswer(msgspec.Struct):
    """What every error of the router looks like: OpenAI's shape."""

    error: ErrorBody


_TEXTS: Final[Json] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}
_IDS: Final[Json] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PRIORITY: Final[Json] = {"type": "integer", "description": "higher first, unless the router says"}
_STREAM: Final[Json] = {"type": "boolean"}
_BODIES: Final[Mapping[str, Json]] = {
    GENERATE: {
        "text": _TEXTS,
        "input_ids": {"anyOf": [_IDS, {"type": "array", "items": _IDS}]},
        "sampling_params": {"type": "object"},
        "return_logprob": {"type": "boolean"},
        "stream": _STREAM,
        "rid": {"type": "string"},
        "priority": _PRIORITY,
    },
    CHAT: {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
        "max_completion_tokens": {"type": "integer", "minimum": 0},
        "stream": _STREAM,
        "user": {"type": "string"},
        "priority": _PRIORITY,
    },
    COMPLETIONS: {
        "model": {"type": "string"},
        "prompt": {"anyOf": [*_TEXTS["anyOf"], _IDS, {"type": "array", "items": _IDS}]},
        "max_tokens": {"type": "integer", "minimum": 0},
        "echo": {"type": "boolean"},
        "logprobs": {"type": "integer", "minimum": 0},
        "stream": _STREAM,
        "user": {"type": "string"},
        "priority": _PRIORITY,
    },
}
_REQUIRED: Final[Mapping[str, list[str]]] = {CHAT: ["messages"], COMPLETIONS: ["prompt"]}


@cache
def document() -> bytes:
    """As it is served."""
    return msgspec.json.encode(openapi())


def openapi() -> Json:
    """OpenAPI 3.1."""
    kinds = (Abort, AddWorker, UpdateWorker, ErrorAnswer)
    _, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Baton's router", "version": baton.__version__},
        "paths": _paths(),
        "components": {"schemas": components, "securitySchemes": {"key": bearer}},
        "security": [{}, {"key": []}],
    }


def _paths() -> Json:
    paths: Json = {route: {"post": _generation(route)} for route in _BODIES}
    for path in ("/health", "/liveness"):
        paths[path] = {"get": _operation("the router runs", "text/plain")}
    for path in (
        "/get_model_info",
        "/model_info",
        "/get_server_info",
        "/server_info",
        "/v1/models",
    ):
        asked = _operation("what a worker answers", "application/json", 503)
        asked["responses"]["default"] = {"description": "what a worker answers instead"}
        paths[path] = {"get": asked}
    worker_id = {"name": "worker_id", "in": "path", "required": True, "schema": {"type": "string"}}
    one = {"parameters": [worker_id]}
    paths |= {
        "/readiness": {
            "get": _operation("requests can be served", "application/json", 503, tells_503=True)
        },
        "/health_generate": {"get": _operation("workers make tokens", "text/plain", 503)},
        "/metrics": {"get": _operation("Prometheus' text", "text/plain")},
        "/get_loads": {"get": _operation("tokens in KV by worker", "application/json")},
        "/workers": {
            "get": _operation("all workers", "application/json"),
            "post": _operation("it will be used", "application/json", 409, ok=202)
            | {"requestBody": _body({"$ref": "#/components/schemas/AddWorker"})},
        },
        "/workers/{worker_id}": {
            "get": _operation("the worker", "application/json", 404) | one,
            "put": _operation("it is changed", "application/json", 404, 409, ok=202)
            | one
            | {"requestBody": _body({"$ref": "#/components/schemas/UpdateWorker"})},
            "delete": _operation("it gets nothing new", "application/json", 404, ok=202) | one,
        },
        "/queue": {"get": _operation("how long a request would wait", "application/json")},
        "/explain/{request_id}": {
            "get": _operation("where the request spent its time", "application/json", 404)
            | {"parameters": [{**worker_id, "name": "request_id"}]}
        },
        "/flush_cache": {
            method: _operation("all caches are empty", "application/json", 503, tells_503=True)
            for method in ("get", "post")
        },
        "/abort_request": {
            "post": _operation("workers were told", "application/json", 503, tells_503=True)
            | {"requestBody": _body({"$ref": "#/components/schemas/Abort"}, is_required=False)}
        },
        PATH: {"get": _operation("this document", "application/json")},
    }
    return paths


def _generation(route: str) -> Json:
    schema = {"type": "object", "properties": _BODIES[route], "required": _REQUIRED.get(route, [])}
    operation = _operation("the answer", "application/json", 413, 422, 429, 499, 500, 503, 504)
    operation["responses"]["200"]["content"]["text/event-stream"] = {}
    return operation | {"requestBody": _body(schema)}


def _body(schema: Json, is_required: bool = True) -> Json:
    return {"required": is_required, "content": {"application/json": {"schema": schema}}}


def _operation(
    said: str, content_type: str, *errors: int, ok: int = 200, tells_503: bool = False
) -> Json:
    """Every route may refuse a request that is none (400), or has no key (401). `tells_503`: with
    an answer of its own shape."""
    told = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    responses: Json = {str(ok): {"description": said, "content": {content_type: {}}}}
    for status in (400, 401, *errors):
        content = {"application/json": {}} if status == 503 and tells_503 else told
        responses[str(status)] = {"description": "refused, and why", "content": content}
    return {"responses": responses}
