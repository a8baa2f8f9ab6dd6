"""Logprobs in the three shapes that clients know: chat, text completions, SGLang.

Elsewhere: what a logprob means (messages/engine.py).
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from baton.messages.engine import TokenLogprob
from baton.tokenizer.tokenizer import Tokenizer

LOWEST_LOGPROB: Final = -9999.0
"""OpenAI's figure for "practically impossible"; JSON has no infinity."""

SglangLogprob = tuple[float | None, int, str | None]


class ChatTopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]


class CompletionLogprobs(msgspec.Struct):
    """Four lists of equal length; `text_offset` counts characters from the start of `text`."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], num_top: int
) -> ChatLogprobs:
    content = [
        ChatTokenLogprob(
            token=tokenizer.token_text(entry.token_id),
            logprob=_finite(entry.logprob),
            bytes=list(tokenizer.token_bytes(entry.token_id)),
            top_logprobs=[
                ChatTopLogprob(
                    token=tokenizer.token_text(token_id),
                    logprob=_finite(logprob),
                    bytes=list(tokenizer.token_bytes(token_id)),
                )
                for token_id, logprob in entry.top[:num_top]
            ],
        )
        for entry in logprobs
    ]
    return ChatLogprobs(content)


def completion_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], num_top: int, offset: int
) -> CompletionLogprobs:
    """`offset`: characters of text before the first of these tokens."""
    tokens = [tokenizer.token_text(entry.token_id) for entry in logprobs]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[
            None if entry.logprob is None else _finite(entry.logprob) for entry in logprobs
        ],
        top_logprobs=[_top_by_text(tokenizer, entry, num_top) for entry in logprobs]
        if num_top
        else None,
        text_offset=offsets,
    )


def _top_by_text(
    tokenizer: Tokenizer, entry: TokenLogprob, num_top: int
) -> dict[str, float] | None:
    """The best alternatives and the token itself. Of tokens that read alike the best counts."""
    if entry.logprob is None:
        return None
    by_text: dict[str, float] = {}
    for token_id, logprob in [*entry.top[:num_top], (entry.token_id, entry.logprob)]:
        by_text.setdefault(tokenizer.token_text(token_id), _finite(logprob))
    return by_text


def sglang_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], with_text: bool
) -> list[SglangLogprob]:
    return [
        (
            None if entry.logprob is None else _finite(entry.logprob),
            entry.token_id,
            tokenizer.token_text(entry.token_id) if with_text else None,
        )
        for entry in logprobs
    ]


def sglang_top_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], num_top: int, with_text: bool
) -> list[list[SglangLogprob] | None]:
    return [
        None
        if entry.logprob is None
        else [
            (_finite(logprob), token_id, tokenizer.token_text(token_id) if with_text else None)
            for token_id, logprob in entry.top[:num_top]
        ]
        for entry in logprobs
    ]


def _finite(logprob: float | None) -> float:
    return LOWEST_LOGPROB if logprob is None else max(logprob, LOWEST_LOGPROB)
