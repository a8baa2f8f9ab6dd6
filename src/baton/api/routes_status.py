"""What a worker says about itself: health, facts, load, metrics."""

import asyncio
import datetime
import os
import secrets
from contextlib import aclosing
from typing import Any, Final

from aiohttp import web

import baton
from baton.api.engine_view import snapshot
from baton.api.errors import GenerationFailed
from baton.api.state import SERVICE, WEIGHT_VERSION, Service
from baton.core.request import EngineRequest, FinishReason
from baton.core.sampling import SamplingParams
from baton.obs.metrics import CONTENT_TYPE


def add_status_routes(app: web.Application) -> None:
    for path, handler in _HANDLERS.items():
        app.router.add_get(path, handler)


async def health(request: web.Request) -> web.Response:
    """200 while the engine runs and its loop moves, not merely while this process answers; 503 with
    the code "draining" once this worker is about to leave, which routers tell from being ill."""
    service = request.app[SERVICE]
    service.live_engine()
    if service.is_draining:
        raise GenerationFailed("this worker finishes what runs and then ends", 503, "draining")
    return web.Response(text="OK")


async def liveness(request: web.Request) -> web.Response:
    """As health; but a worker that drains must not be killed for it."""
    request.app[SERVICE].live_engine()
    return web.Response(text="OK")


async def health_generate(request: web.Request) -> web.Response:
    """Generates one token, on this worker alone, whatever its role."""
    service = request.app[SERVICE]
    limit_s = service.state.config.health_generate_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            await _generate_one_token(service)
    except TimeoutError:
        raise GenerationFailed(
            f"no token within {limit_s:g} s (health_generate_timeout_s)", 503, "engine_stuck"
        ) from None
    return web.Response(text="OK")


async def _generate_one_token(service: Service) -> None:
    bos = service.state.card.bos_token_id
    probe = EngineRequest(
        request_id=f"HEALTH_CHECK_{secrets.token_hex(8)}",
        prompt_token_ids=[0 if bos is None else bos],
        sampling=SamplingParams(max_new_tokens=1, temperature=0.0),
    )
    async with aclosing(service.live_engine().generate(probe)) as outputs:
        async for output in outputs:
            finish = output.finish
            if finish is not None and finish.reason in (FinishReason.ERROR, FinishReason.ABORT):
                raise GenerationFailed(finish.message, 503, "engine_error")


async def server_info(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    state, ready = service.state, service.state.engine.ready
    now = snapshot(state.engine)
    blocks = {
        "num_blocks": ready.num_blocks,
        "num_free": now.num_blocks_free,
        "num_cached": now.num_blocks_cached,
        "num_in_use": now.num_blocks_in_use,
    }
    return web.json_response(
        {
            "served_model_name": state.served_model_name,
            "model_path": str(state.card.path),
            "tokenizer_path": str(state.card.path),
            "model_type": state.card.model_type,
            "architectures": [state.card.architecture],
            "version": baton.__version__,
            "weight_version": WEIGHT_VERSION,
            "tp_size": 1,
            "dp_size": 1,
            "disaggregation_mode": state.role,
            "disaggregation_bootstrap_port": state.bootstrap_port,
            "takes_whole_requests": state.role == "null" or state.takes_whole_requests,
            "disaggregation_transfer_backends": ready.transfer_backends,
            "engine_id": ready.engine_id,
            "pid": os.getpid(),
            "engine_pid": ready.pid,
            "pids": {"api": os.getpid(), "engine": ready.pid},
            "status": _status(service) if now.is_alive else "dead",
            "context_length": ready.context_length,
            "max_total_num_tokens": now.max_total_num_tokens,
            "max_running_requests": ready.max_running_requests,
            "page_size": ready.block_size,
            "kv_cache_dtype": ready.kv_cache_dtype,
            "kv_layout_hash": ready.layout_hash,
            "kv_blocks": blocks,
            "internal_states": [_load(service)],
        }
    )


def _status(service: Service) -> str:
    return "draining" if service.is_draining else "ready"


async def model_info(request: web.Request) -> web.Response:
    card = request.app[SERVICE].state.card
    return web.json_response(
        {
            "model_path": str(card.path),
            "tokenizer_path": str(card.path),
            "served_model_name": request.app[SERVICE].state.served_model_name,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": WEIGHT_VERSION,
            "model_type": card.model_type,
            "architectures": [card.architecture],
            "model_id": card.model_id,
            "context_length": card.context_length,
            "vocab_size": card.vocab_size,
        }
    )


async def get_load(request: web.Request) -> web.Response:
    load = _load(request.app[SERVICE])
    return web.json_response(
        [
            {
                "dp_rank": 0,
                "num_reqs": load["num_total_reqs"],
                "num_waiting_reqs": load["num_waiting_reqs"],
                "num_tokens": load["num_used_tokens"],
            }
        ]
    )


async def loads(request: web.Request) -> web.Response:
    now = datetime.datetime.now(datetime.UTC)
    return web.json_response(
        {
            "timestamp": now.isoformat(),
            "version": baton.__version__,
            "dp_rank_count": 1,
            "loads": [_load(request.app[SERVICE])],
        }
    )


def _load(service: Service) -> dict[str, Any]:
    now = snapshot(service.state.engine)
    return {
        "dp_rank": 0,
        "num_running_reqs": now.num_running,
        "num_waiting_reqs": now.num_waiting,
        "num_handover_reqs": now.num_handover,
        "num_total_reqs": now.num_running + now.num_waiting + now.num_handover,
        "num_used_tokens": now.num_tokens_in_use,
        "num_total_tokens": now.num_tokens_in_use,
        "max_total_num_tokens": now.max_total_num_tokens,
        "max_running_requests": service.state.engine.ready.max_running_requests,
        "token_usage": round(now.token_usage, 4),
        "cache_hit_rate": round(now.cache_hit_rate, 4),
        "gen_throughput": round(service.metrics.gen_throughput, 2),
    }


async def metrics(request: web.Request) -> web.Response:
    body = request.app[SERVICE].metrics.render()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


_HANDLERS: Final = {
    "/health": health,
    "/liveness": liveness,
    "/health_generate": health_generate,
    "/server_info": server_info,
    "/get_server_info": server_info,
    "/model_info": model_info,
    "/get_model_info": model_info,
    "/get_load": get_load,
    "/v1/loads": loads,
    "/metrics": metrics,
}
STATUS_PATHS: Final = frozenset(_HANDLERS)
