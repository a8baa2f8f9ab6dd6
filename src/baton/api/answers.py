"""What every API's answer can do, and the parts that OpenAI's two routes share.

Elsewhere: chat (answers_chat.py), text completions (answers_completion.py), SGLang
(answers_sglang.py), writing them to the client (generation.py).
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from baton.api.outcome import Outcome, count_tokens
from baton.api.sample_stream import Piece
from baton.api.schemas_openai import StreamOptions

encode = msgspec.json.Encoder().encode


class Answer(Protocol):
    """Turns outcomes into JSON: the whole at once, or one event after another."""

    def whole(self, outcomes: Sequence[Outcome]) -> bytes: ...

    def events(self, piece: Piece, outcome: Outcome) -> list[bytes]:
        """Events for one piece; `outcome` has it already. None while there is nothing to say."""
        ...

    def last_events(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        """Events after the last piece, before [DONE]."""
        ...


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_of(outcomes: Sequence[Outcome]) -> Usage:
    counts = count_tokens(outcomes)
    return Usage(
        prompt_tokens=counts.prompt,
        completion_tokens=counts.completion,
        total_tokens=counts.prompt + counts.completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=counts.cached),
    )


class UsagePolicy:
    """Which events of a stream carry usage: none, one last event, or all of them."""

    def __init__(self, options: StreamOptions | None):
        self.at_end = bool(options and options.include_usage)
        self.always = bool(options and options.include_usage and options.continuous_usage_stats)

    def for_event(self, outcome: Outcome) -> Usage | msgspec.UnsetType | None:
        if self.always:
            return usage_of([outcome])
        return None if self.at_end else msgspec.UNSET


def finish_reason(outcome: Outcome) -> str | None:
    return outcome.finish.reason if outcome.finish else None


def matched_stop(outcome: Outcome) -> int | str | None:
    return outcome.finish.matched if outcome.finish else None
