"""Errors that workers tell inside a stream, whose status has already been sent. Pure.

Elsewhere: errors with a status of their own (legs.py).
"""

import msgspec

from baton.router import sse
from baton.router._event_bytes import mentions_error
from baton.router.errors import CLIENT_GONE_STATUS, LegRejected
from baton.router.workers import Worker


class _StreamedError(msgspec.Struct):
    """What SGLang's workers put into a stream whose status has already been sent."""

    error: dict[str, object] | str | None = None
    meta_info: "_MetaInfo | None" = None


class _MetaInfo(msgspec.Struct):
    finish_reason: "_FinishReason | None" = None


class _FinishReason(msgspec.Struct):
    type: str = ""
    message: str | None = None
    status_code: int | None = None


_decode_streamed = msgspec.json.Decoder(_StreamedError).decode


def rejection_in(worker: Worker, events: bytes) -> LegRejected | None:
    """The error that a worker tells inside a stream, whose status has already been sent."""
    if not mentions_error(events):
        return None
    for payload in sse.payloads(events):
        try:
            said = _decode_streamed(payload)
        except msgspec.DecodeError:
            continue  # not one of the two shapes that tell of an error
        finish = said.meta_info.finish_reason if said.meta_info else None
        if said.error is not None:
            return _rejected(worker, _status_of(said.error), payload)
        if finish is not None and finish.type == "abort":
            message = finish.message or "the prefill worker aborted the request"
            body = msgspec.json.encode({"error": {"message": message, "type": "abort"}})
            return _rejected(worker, finish.status_code, body)
    return None


def _status_of(error: dict[str, object] | str) -> object:
    """SGLang's workers write the status as the code, Baton's write words for both."""
    if isinstance(error, str):
        return None
    return CLIENT_GONE_STATUS if error.get("code") == "aborted" else error.get("code")


def _rejected(worker: Worker, code: object, body: bytes) -> LegRejected:
    status = code if isinstance(code, int) and 400 <= code <= 599 else 500
    return LegRejected(worker, status, {"Content-Type": "application/json"}, body)
