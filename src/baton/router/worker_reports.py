"""Reading what workers say of themselves: Baton's, and SGLang's of several versions.

Invariant: no field is mandatory and no odd value raises; what cannot be read is left out.
Elsewhere: asking for it (health.py).
"""

import json
from typing import Any

import msgspec

from baton.router.workers import WorkerFacts

SERVER_INFO_PATHS = ("/server_info", "/get_server_info")
MODEL_INFO_PATHS = ("/model_info", "/get_model_info")
LOAD_PATHS = ("/v1/loads", "/get_load")

_METADATA = ("served_model_name", "model_path", "tp_size", "dp_size", "disaggregation_mode",
             "load_balance_method", "model_type", "architectures")  # fmt: skip


def facts_from(server: Any, model: Any) -> WorkerFacts:
    """Facts from the answers of /server_info and /model_info (None: not answered)."""
    said: dict[str, Any] = {}
    for answer in (model, server):
        if isinstance(answer, dict):
            said.update(answer)
    metadata = {key: _text(said[key]) for key in _METADATA if said.get(key) is not None}
    return WorkerFacts(
        model_id=metadata.get("served_model_name") or metadata.get("model_path") or "unknown",
        pid=_whole(said.get("pid")),
        bootstrap_port=_whole(said.get("disaggregation_bootstrap_port")),
        takes_whole_requests=said.get("takes_whole_requests") is True,
        metadata=metadata,
    )


def load_from(answer: Any) -> tuple[int | None, int] | None:
    """(requests, tokens) over all ranks, None if unreadable. Requests are None where a worker
    reports only tokens."""
    ranks = answer.get("loads") if isinstance(answer, dict) else answer
    if not isinstance(ranks, list) or not all(isinstance(rank, dict) for rank in ranks):
        return None
    requests = [_num_requests(rank) for rank in ranks]
    tokens = [_first_whole(rank, ("num_total_tokens", "num_tokens")) or 0 for rank in ranks]
    counted = [number for number in requests if number is not None]
    return (sum(counted) if counted else None), sum(tokens)


def next_load_path(path: str) -> str | None:
    """What to try where `path` is unknown to the worker."""
    later = LOAD_PATHS[LOAD_PATHS.index(path) + 1 :]
    return later[0] if later else None


def _num_requests(rank: dict[str, Any]) -> int | None:
    """/v1/loads counts running and waiting apart, /get_load together, or not at all."""
    num_running = _whole(rank.get("num_running_reqs"))
    if num_running is None:
        return _whole(rank.get("num_reqs"))
    return num_running + (_whole(rank.get("num_waiting_reqs")) or 0)


def _first_whole(rank: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((n for key in keys if (n := _whole(rank.get(key))) is not None), None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _HealthError(msgspec.Struct):
    code: str | None = None


class _HealthAnswer(msgspec.Struct):
    error: _HealthError


def is_draining(status: int, body: bytes) -> bool:
    """Whether the answer to GET /health says that the worker is well, and about to leave."""
    if status != 503:
        return False
    try:
        return msgspec.json.decode(body, type=_HealthAnswer).error.code == "draining"
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
