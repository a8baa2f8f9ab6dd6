"""A request on a prefill and a decode worker: both get it at once, decode answers.

    prefill ok, decode ok      decode's answer; prefill's is read to its end behind the scenes
    prefill fails first        decode is cancelled at once, the client gets prefill's error
    decode fails first         prefill is cancelled at once, the client gets decode's error
    prefill fails after decode began to answer: decode has the KV, the request goes on
    prefill was never reached  as if it had failed first, whatever decode says it has made
    client leaves              both connections are closed

Invariant: when an attempt ends with an error, none of its legs is left running.
Elsewhere: attempts on other pairs (dispatch.py), what one leg does (legs.py).
"""

import msgspec

from baton.router.errors import LegBroken, LegFailure, LegRejected
from baton.router.exchange import Exchange
from baton.router.fleet import Fleet
from baton.router.http.messages import Response
from baton.router.http.stream import ResponseStream
from baton.router.legs import AnswerLeg, PrefillLeg, Wire
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
) -> Response | ResponseStream:
    """One attempt; raises LegFailure. LegRefused means that the client has seen nothing yet."""
    generation, lines, poke = exchange.generation, exchange.header_lines, exchange.poke
    merges = exchange.wants_prompt_logprobs
    body = generation.body_for_pair(prefill.bootstrap_host, prefill.bootstrap_port, fleet.draw_room)
    prefill_leg = wire.start_prefill(prefill, request, generation.route, body, lines, poke, merges)
    prefill_leg.decode_id = decode.id
    decode_leg = wire.start_answer(decode, request, generation.route, body, lines, poke)
    prefill_leg.may_move = decode_leg.may_move = exchange.may_retry
    try:
        await exchange.until(lambda: _is_settled(prefill_leg, decode_leg, merges))
        _raise_what_failed(prefill_leg, decode_leg, merges)
        if decode_leg.is_stream:
            decode_leg.visit.computed_s = prefill_leg.visit.computed_s
            fleet.note_first_byte(decode_leg.visit)
        merge = _prompt_logprobs(exchange, wire, prefill_leg) if merges else None
        response = await exchange.deliver(decode_leg, merge)
    except BaseException as error:
        prefill_leg.abort()
        if isinstance(error, LegRejected) and error.worker is decode and not decode_leg.has_answer:
            error.suspects = (decode, prefill)
        raise
    finally:
        decode_leg.abort()
    wire.let_finish(prefill_leg)
    return response


def _is_settled(prefill: PrefillLeg, decode: AnswerLeg, merges: bool) -> bool:
    """Whether the client's answer can begin, or never will."""
    if decode.has_answer and (prefill.is_over if merges else prefill.was_sent):
        return True
    return decode.failure is not None or prefill.failure is not None


def _raise_what_failed(prefill: PrefillLeg, decode: AnswerLeg, merges: bool) -> None:
    """Raise the failure that makes the client's answer impossible, if there is one."""
    if decode.failure is not None and (merges or not decode.has_answer):
        raise _root_cause(prefill.failure, decode.failure)
    if prefill.failure is not None and (merges or not (decode.has_answer and prefill.was_sent)):
        raise prefill.failure


def _root_cause(prefill: LegFailure | None, decode: LegFailure) -> LegFailure:
    """When both have failed, decode usually failed because prefill did; but a refusal of the
    request itself is decode's own."""
    if prefill is None or (isinstance(decode, LegRejected) and decode.is_clients_fault):
        return decode
    return prefill


def _prompt_logprobs(exchange: Exchange, wire: Wire, leg: PrefillLeg) -> PromptLogprobs:
    generation = exchange.generation
    try:
        if generation.route == GENERATE:
            return GenerateLogprobs(leg.body, leg.is_stream)
        return CompletionLogprobs(leg.body, leg.is_stream, generation.num_prefill_tokens)
    except msgspec.DecodeError as error:
        raise wire.failed(LegBroken(leg.worker, f"odd JSON: {error}")) from error
