"""OpenAI's routes: chat, text completions, models."""

import time

import msgspec
from aiohttp import web

from baton.api.answers import UsagePolicy
from baton.api.answers_chat import ChatAnswer
from baton.api.answers_completion import CompletionAnswer
from baton.api.bodies import BodyReader, off_loop_if_large
from baton.api.convert_openai import chat_spec, completion_spec
from baton.api.generation import generate
from baton.api.request_id import REQUEST_ID
from baton.api.schemas_openai import ChatRequest, CompletionRequest
from baton.api.spec import GenerationSpec, check_model
from baton.api.state import SERVICE, Service

_chat_bodies = BodyReader(ChatRequest)
_completion_bodies = BodyReader(CompletionRequest)


def add_openai_routes(app: web.Application) -> None:
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{model_id:.+}", show_model)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    state = service.state
    body = await _chat_bodies.read(request)
    check_model(body.model, state.served_model_name)
    spec = await off_loop_if_large(request, lambda: chat_spec(body, service.vocabulary))
    created = _created(spec)
    answer = ChatAnswer(
        tokenizer=state.tokenizer,
        response_id=request[REQUEST_ID],
        created=created,
        model=state.served_model_name,
        num_top_logprobs=spec.prompts[0].sampling.num_top_logprobs,
        usage=UsagePolicy(body.stream_options),
    )
    return await generate(request, service, spec, answer, created)


async def completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    state = service.state
    body = await _completion_bodies.read(request)
    check_model(body.model, state.served_model_name)
    spec = await off_loop_if_large(
        request,
        lambda: completion_spec(body, service.vocabulary, state.config.default_completion_tokens),
    )
    created = _created(spec)
    answer = CompletionAnswer(
        tokenizer=state.tokenizer,
        response_id=request[REQUEST_ID],
        created=created,
        model=state.served_model_name,
        num_top_logprobs=body.logprobs,
        echo_texts=[prompt.text for prompt in spec.prompts] if body.echo else None,
        usage=UsagePolicy(body.stream_options),
    )
    return await generate(request, service, spec, answer, created)


def _created(spec: GenerationSpec) -> int:
    resumed = spec.resume.created if spec.resume else None
    return int(time.time()) if resumed is None else resumed


class ModelEntry(msgspec.Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "baton"
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[ModelEntry]


async def list_models(request: web.Request) -> web.Response:
    return _json(ModelList(data=[_entry(request.app[SERVICE])]))


async def show_model(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    check_model(request.match_info["model_id"], service.state.served_model_name)
    return _json(_entry(service))


def _entry(service: Service) -> ModelEntry:
    state = service.state
    return ModelEntry(
        id=state.served_model_name,
        created=service.started_at,
        root=str(state.card.path),
        max_model_len=state.engine.ready.context_length,
    )


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
