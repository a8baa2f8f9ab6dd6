"""A sample's result so far, put together from its pieces.

Elsewhere: how each API shows it (answers_*.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.api.sample_stream import Piece, SampleFinish
from baton.api.spec import Sample
from baton.messages.engine import TokenLogprob


@dataclass
class Outcome:
    """Grows with every piece; `num_pieces` 0 means that nothing came yet."""

    sample: Sample
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish: SampleFinish | None = None
    num_pieces: int = 0
    transferred_tokens: int = 0
    transfer_s: float = 0.0

    def add(self, piece: Piece) -> None:
        assert self.finish is None, "a piece after the finish"
        self.num_pieces += 1
        self.text += piece.text
        self.token_ids.extend(piece.token_ids)
        self.logprobs.extend(piece.logprobs)
        if piece.prompt_logprobs is not None:
            self.prompt_logprobs = piece.prompt_logprobs
        self.num_cached_tokens = max(self.num_cached_tokens, piece.num_cached_tokens)
        self.finish = piece.finish
        if piece.transferred_tokens:
            self.transferred_tokens, self.transfer_s = piece.transferred_tokens, piece.transfer_s

    @property
    def num_prompt_tokens(self) -> int:
        return self.sample.request.num_prompt_tokens

    @property
    def num_new_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class TokenCounts:
    """Totals of one HTTP request; each prompt counts once, however many samples it has."""

    prompt: int
    completion: int
    cached: int


def count_tokens(outcomes: Sequence[Outcome]) -> TokenCounts:
    first_of_prompt: dict[int, Outcome] = {}
    for outcome in outcomes:
        first_of_prompt.setdefault(outcome.sample.prompt_index, outcome)
    return TokenCounts(
        prompt=sum(outcome.num_prompt_tokens for outcome in first_of_prompt.values()),
        completion=sum(outcome.num_new_tokens for outcome in outcomes),
        cached=sum(outcome.num_cached_tokens for outcome in first_of_prompt.values()),
    )
