"""What is sent: sessions, each a row of turns, and how token ids become text.

Invariant: a dataset is a pure function of its options and the seed.
Elsewhere: making them (random_prompts.py, shared_prefix.py, sharegpt.py, traces.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

Content = str | tuple[int, ...]
"""A turn's text, or its token ids for a server that takes them."""


@dataclass(frozen=True)
class Turn:
    """`num_output`: tokens that the answer is to have."""

    content: Content
    num_input: int
    num_output: int


@dataclass(frozen=True)
class Session:
    """`at_s`: when a trace has it; None where only the load says. Every later turn is sent with all
    before it and their answers."""

    turns: tuple[Turn, ...]
    at_s: float | None = None

    @property
    def num_tokens(self) -> int:
        """Of the whole session, when every answer has its planned length."""
        return sum(turn.num_input + turn.num_output for turn in self.turns)


@dataclass(frozen=True)
class Dataset:
    """`source` names where the data is from, with its licence; `num_left_out` sessions were longer
    than --max-context-len."""

    sessions: tuple[Session, ...]
    source: str
    num_left_out: int = 0
    notes: dict[str, str] = field(default_factory=dict)


def draw_lengths(draw: np.random.Generator, longest: int, ratio: float, number: int) -> list[int]:
    """Evenly from `ratio * longest` (at least 1) up to `longest`, as SGLang's bench_serving."""
    shortest = max(int(longest * ratio), 1)
    return [int(each) for each in draw.integers(shortest, longest + 1, number)]


def draw_ids(draw: np.random.Generator, low_high: Sequence[int], number: int) -> tuple[int, ...]:
    low, high = low_high
    return tuple(int(each) for each in draw.integers(low, high, number))


def fit(sessions: Iterable[Session], limit: int | None, number: int) -> tuple[list[Session], int]:
    """The first `number` sessions of at most `limit` tokens, and how many were passed over."""
    kept: list[Session] = []
    num_left_out = 0
    for session in sessions:
        if len(kept) == number:
            break
        if limit is not None and session.num_tokens > limit:
            num_left_out += 1
        else:
            kept.append(session)
    return kept, num_left_out
