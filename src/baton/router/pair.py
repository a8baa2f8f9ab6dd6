"""A request on a prefill and a decode worker: both get it at once, decode answers.

    prefill ok, decode ok      decode's answer; prefill's is read to its end behind the scenes
    prefill fails first        decode is cancelled at once, the client gets prefill's error
    decode fails first         prefill is cancelled at once, the client gets decode's error
    prefill fails after decode began to answer: decode has the KV, the request goes on
    client leaves              both connections are closed

Invariant: when an attempt ends with an error, none of its legs is left running.
Elsewhere: attempts on other pairs (dispatch.py), what one leg does (legs.py).
"""

import asyncio

import msgspec
from aiohttp import web

from baton.router.breaker import outcome_in_stream
from baton.router.errors import LegBroken, LegRejected
from baton.router.exchange import Exchange
from baton.router.fleet import Fleet
from baton.router.legs import Answer, PrefillAnswer, StreamAnswer, Wire
from baton.router.logprobs import CompletionLogprobs, GenerateLogprobs, PromptLogprobs
from baton.router.policies import RoutedRequest
from baton.router.requests import GENERATE
from baton.router.workers import Worker


async def serve_on_pair(
    exchange: Exchange,
    request: RoutedRequest,
    prefill: Worker,
    decode: Worker,
    fleet: Fleet,
    wire: Wire,
) -> web.StreamResponse:
    """One attempt; raises LegFailure. LegRefused means that the client has seen nothing yet."""
    generation, headers = exchange.generation, exchange.headers
    body = generation.body_for_pair(prefill.bootstrap_host, prefill.bootstrap_port, fleet.draw_room)
    with fleet.counted(decode, request) as visit:
        prefill_leg = fleet.start_counted_leg(
            prefill,
            wire.run_prefill(
                prefill, generation.route, body, headers, generation.wants_prompt_logprobs
            ),
            request,
        )
        fleet.watch_prefill(visit, prefill_leg)
        decode_leg = fleet.start_leg(wire.open_answer(decode, generation.route, body, headers))
        try:
            answer = await _first_answer(prefill_leg, decode_leg)
            if isinstance(answer, StreamAnswer):
                fleet.note_first_byte(visit)
            merge = None
            if generation.wants_prompt_logprobs:
                merge = _prompt_logprobs(exchange, wire, prefill, await prefill_leg)
            response = await exchange.deliver(answer, merge)
            visit.verdict = outcome_in_stream(exchange.status)
        except BaseException:
            prefill_leg.cancel()
            raise
        finally:
            _hang_up(decode_leg)
    fleet.let_finish(prefill_leg)
    return response


async def _first_answer(
    prefill_leg: asyncio.Task[PrefillAnswer], decode_leg: asyncio.Task[Answer]
) -> Answer:
    """Decode's answer, or the failure that comes first."""
    await asyncio.wait({prefill_leg, decode_leg}, return_when=asyncio.FIRST_COMPLETED)
    if decode_leg.done():
        if (decode_error := decode_leg.exception()) is None:
            return decode_leg.result()
        prefill_error = prefill_leg.exception() if prefill_leg.done() else None
        raise _root_cause(prefill_error, decode_error)
    prefill_leg.result()
    return await decode_leg


def _root_cause(prefill_error: BaseException | None, decode_error: BaseException) -> BaseException:
    """When both have failed, decode usually failed because prefill did; but a refusal of the
    request itself is decode's own."""
    if prefill_error is None:
        return decode_error
    if isinstance(decode_error, LegRejected) and decode_error.is_clients_fault:
        return decode_error
    return prefill_error


def _prompt_logprobs(
    exchange: Exchange, wire: Wire, prefill: Worker, answer: PrefillAnswer
) -> PromptLogprobs:
    generation = exchange.generation
    try:
        if generation.route == GENERATE:
            return GenerateLogprobs(answer.body, answer.is_stream)
        return CompletionLogprobs(answer.body, answer.is_stream, generation.num_prefill_tokens)
    except msgspec.DecodeError as error:
        raise wire.failed(LegBroken(prefill, f"odd JSON: {error}")) from error


def _hang_up(decode_leg: asyncio.Task[Answer]) -> None:
    """Close decode's connection, whether or not its answer was ever taken."""
    if not decode_leg.done():
        decode_leg.cancel()
    elif not decode_leg.cancelled() and decode_leg.exception() is None:
        decode_leg.result().close()
