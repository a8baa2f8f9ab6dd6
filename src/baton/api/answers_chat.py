"""Answers of POST /v1/chat/completions."""

from collections.abc import Sequence

import msgspec

from baton.api.answers import (
    Usage,
    UsagePolicy,
    encode,
    finish_reason,
    matched_stop,
    usage_of,
)
from baton.api.logprobs import ChatLogprobs, chat_logprobs
from baton.api.outcome import Outcome
from baton.api.sample_stream import Piece
from baton.messages.engine import TokenLogprob
from baton.tokenizer.tokenizer import Tokenizer


class ChatAnswerMessage(msgspec.Struct):
    content: str
    role: str = "assistant"


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    matched_stop: int | str | None


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(msgspec.Struct):
    content: str | msgspec.UnsetType = msgspec.UNSET
    role: str | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: int | str | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class ChatAnswer:
    """`num_top_logprobs` None: logprobs were not asked for."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        response_id: str,
        created: int,
        model: str,
        num_top_logprobs: int | None,
        usage: UsagePolicy,
    ):
        self._tokenizer = tokenizer
        self._id = f"chatcmpl-{response_id}"
        self._created = created
        self._model = model
        self._num_top = num_top_logprobs
        self._usage = usage

    def whole(self, outcomes: Sequence[Outcome]) -> bytes:
        choices = [
            ChatChoice(
                index=outcome.sample.index,
                message=ChatAnswerMessage(content=outcome.text),
                logprobs=self._logprobs(outcome.logprobs),
                finish_reason=finish_reason(outcome),
                matched_stop=matched_stop(outcome),
            )
            for outcome in outcomes
        ]
        return encode(
            ChatCompletion(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=choices,
                usage=usage_of(outcomes),
            )
        )

    def events(self, piece: Piece, outcome: Outcome) -> list[bytes]:
        events: list[bytes] = []
        if outcome.num_pieces == 1:
            delta = ChatDelta(content="", role="assistant")
            events.append(self._chunk(ChatChunkChoice(piece.index, delta), outcome))
        if piece.text or piece.logprobs:
            choice = ChatChunkChoice(
                piece.index, ChatDelta(content=piece.text), self._logprobs(piece.logprobs)
            )
            events.append(self._chunk(choice, outcome))
        if piece.finish is not None:
            choice = ChatChunkChoice(
                piece.index,
                ChatDelta(),
                finish_reason=piece.finish.reason,
                matched_stop=piece.finish.matched,
            )
            events.append(self._chunk(choice, outcome))
        return events

    def last_events(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        if not self._usage.at_end:
            return []
        return [
            encode(
                ChatChunk(
                    id=self._id,
                    created=self._created,
                    model=self._model,
                    choices=[],
                    usage=usage_of(outcomes),
                )
            )
        ]

    def _chunk(self, choice: ChatChunkChoice, outcome: Outcome) -> bytes:
        return encode(
            ChatChunk(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=[choice],
                usage=self._usage.for_event(outcome),
            )
        )

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if self._num_top is None:
            return None
        return chat_logprobs(self._tokenizer, logprobs, self._num_top)
