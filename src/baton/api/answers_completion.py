"""Answers of POST /v1/completions.

`echo` on a pair: decode repeats the prompt's text itself, so the text is whole behind any router.
With `logprobs` its lists begin at the first new token, at that token's place in the echoed text:
Baton's router puts prefill's entries for the prompt in front (router/logprobs.py), and behind a
router that does not, only those entries are missing.
"""

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
from baton.api.logprobs import CompletionLogprobs, completion_logprobs
from baton.api.outcome import Outcome
from baton.api.sample_stream import Piece
from baton.messages.engine import TokenLogprob
from baton.tokenizer.tokenizer import Tokenizer


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    matched_stop: int | str | None


class Completion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class CompletionAnswer:
    """`echo_texts` has each prompt's text when the answer repeats it; `num_top_logprobs` None
    means that logprobs were not asked for."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        response_id: str,
        created: int,
        model: str,
        num_top_logprobs: int | None,
        echo_texts: Sequence[str] | None,
        usage: UsagePolicy,
    ):
        self._tokenizer = tokenizer
        self._id = f"cmpl-{response_id}"
        self._created = created
        self._model = model
        self._num_top = num_top_logprobs
        self._echo_texts = echo_texts
        self._usage = usage
        self._text_offsets: dict[int, int] = {}

    def whole(self, outcomes: Sequence[Outcome]) -> bytes:
        choices = [
            CompletionChoice(
                index=outcome.sample.index,
                text=self._echo(outcome) + outcome.text,
                logprobs=self._logprobs(
                    [*outcome.prompt_logprobs, *outcome.logprobs], self._first_offset(outcome)
                ),
                finish_reason=finish_reason(outcome),
                matched_stop=matched_stop(outcome),
            )
            for outcome in outcomes
        ]
        return self._encode(choices, usage_of(outcomes))

    def events(self, piece: Piece, outcome: Outcome) -> list[bytes]:
        text, logprobs = piece.text, piece.logprobs
        if outcome.num_pieces == 1:
            text = self._echo(outcome) + text
            logprobs = [*(piece.prompt_logprobs or []), *logprobs]
        if not text and not logprobs and piece.finish is None:
            return []
        offset = self._text_offsets.get(piece.index)
        shown = self._logprobs(logprobs, self._first_offset(outcome) if offset is None else offset)
        if shown is not None and shown.tokens:
            self._text_offsets[piece.index] = shown.text_offset[-1] + len(shown.tokens[-1])
        choice = CompletionChoice(
            piece.index, text, shown, finish_reason(outcome), matched_stop(outcome)
        )
        return [self._encode([choice], self._usage.for_event(outcome))]

    def last_events(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        return [self._encode([], usage_of(outcomes))] if self._usage.at_end else []

    def _echo(self, outcome: Outcome) -> str:
        return self._echo_texts[outcome.sample.prompt_index] if self._echo_texts else ""

    def _first_offset(self, outcome: Outcome) -> int:
        """Where the first listed token stands: behind an echoed prompt, unless that is listed."""
        if self._echo_texts is None or self._num_top is None or outcome.prompt_logprobs:
            return 0
        prompt = outcome.sample.request.prompt_token_ids[: outcome.num_prompt_tokens]
        return sum(len(self._tokenizer.token_text(token_id)) for token_id in prompt)

    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs | None:
        if self._num_top is None:
            return None
        return completion_logprobs(self._tokenizer, logprobs, self._num_top, offset)

    def _encode(
        self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None
    ) -> bytes:
        return encode(
            Completion(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=choices,
                usage=usage,
            )
        )
