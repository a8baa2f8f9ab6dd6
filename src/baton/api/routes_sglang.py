"""SGLang's own routes that do something: generate, abort, flush."""

from aiohttp import web

from baton.api.answers_sglang import SglangAnswer
from baton.api.bodies import BodyReader, off_loop_if_large
from baton.api.convert_sglang import generate_spec, is_list
from baton.api.generation import generate
from baton.api.schemas_sglang import AbortRequest, GenerateRequest
from baton.api.state import SERVICE
from baton.core.errors import RequestError

_generate_bodies = BodyReader(GenerateRequest)
_abort_bodies = BodyReader(AbortRequest)


def add_sglang_routes(app: web.Application) -> None:
    app.router.add_post("/generate", native_generate)
    app.router.add_put("/generate", native_generate)
    app.router.add_post("/abort_request", abort_request)
    app.router.add_get("/flush_cache", flush_cache)
    app.router.add_post("/flush_cache", flush_cache)


async def native_generate(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    state = service.state
    start_s = state.clock.now_s()
    body = await _generate_bodies.read(request)
    spec = await off_loop_if_large(
        request,
        lambda: generate_spec(body, service.vocabulary, state.config.default_generate_tokens),
    )
    answer = SglangAnswer(
        tokenizer=state.tokenizer,
        is_list=is_list(body, spec),
        num_top_logprobs=[prompt.sampling.num_top_logprobs for prompt in spec.prompts],
        text_in_logprobs=bool(body.return_text_in_logprobs),
        elapsed_s=lambda: state.clock.now_s() - start_s,
    )
    return await generate(request, service, spec, answer)


async def abort_request(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = await _abort_bodies.read(request)
    if body.abort_all:
        service.running.abort_all()
        num_aborted = service.live_engine().abort_all()
    elif body.rid:
        num_aborted = service.running.abort(body.rid, service.live_engine().abort)
    else:
        raise RequestError("give rid, or abort_all as true; the body has neither", param="rid")
    return web.json_response({"success": True, "num_aborted": num_aborted})


async def flush_cache(request: web.Request) -> web.Response:
    num_blocks_freed = await request.app[SERVICE].live_engine().flush_cache()
    return web.json_response({"success": True, "num_blocks_freed": num_blocks_freed})
