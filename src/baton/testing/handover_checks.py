"""What holds of every hand-over when all is over, whatever went wrong on the way.

Elsewhere: the engines and the network (handover_world.py).
"""

from baton.core.request import EngineRequest, Finish, FinishReason
from baton.messages.engine import TokenOutput
from baton.testing.handover_world import MODEL, HandoverWorld


def expected(prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(MODEL.next_token(tokens))
    return tokens[len(prompt) :]


def check_all_is_over(world: HandoverWorld) -> None:
    for life in world.past_lives:
        for name, request in life.requests.items():
            tokens_of(life.outputs, name, request)  # its end is its api process's to tell
    for name, request in world.decode_requests.items():
        tokens, finish = tokens_of(world.decode.outputs, name, request)
        assert finish is not None, f"{name} never ended"
        if finish.reason is FinishReason.LENGTH:
            assert len(tokens) == request.sampling.max_new_tokens
        else:
            assert finish.message, f"{name} ended without saying why"
    ended = {o.request_id for o in world.prefill.outputs if o.finish is not None}
    assert ended >= world.prefill_requests
    for side in (world.decode, world.prefill):
        assert side.core.pool.num_in_use == 0, side.core.pool.holders()
        assert side.role.num_handovers == 0
    assert not world.transport.windows


def tokens_of(
    outputs: list[TokenOutput], name: str, request: EngineRequest
) -> tuple[list[int], Finish | None]:
    """What a request got, which is the model's text as far as it goes, and its one end."""
    own = [output for output in outputs if output.request_id == name]
    tokens = [token for output in own for token in output.token_ids]
    wanted = expected(request.prompt_token_ids, request.sampling.max_new_tokens)
    assert tokens == wanted[: len(tokens)], "the text is not the model's"
    ends = [output.finish for output in own if output.finish is not None]
    assert len(ends) <= 1
    assert not ends or own[-1].finish is not None, f"{name} goes on after its end"
    return tokens, ends[0] if ends else None
