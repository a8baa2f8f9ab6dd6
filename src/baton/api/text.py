"""Tokens from a client's text, and text from the engine's tokens as they come.

Invariant: the text of a sample depends on its tokens only, never on how they were grouped into
outputs, so that a resumed or disaggregated stream reads the same.
Elsewhere: the tokenizer and incremental decoding themselves (tokenizer/).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from baton.core.errors import RequestError
from baton.tokenizer.detokenize import IncrementalDetokenizer
from baton.tokenizer.stop_strings import StopStringMatcher
from baton.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens: what text becomes, which ids exist, which of them end a text.

    `size` is the model's own number of ids; a tokenizer may name fewer.
    """

    tokenizer: Tokenizer
    size: int
    eos_token_ids: tuple[int, ...]

    def encode(self, text: str, param: str) -> list[int]:
        """Raises RequestError when nothing comes out."""
        return self._some(self.tokenizer.encode(text, param=param), param)

    def encode_chat(self, rendered: str) -> list[int]:
        return self._some(self.tokenizer.encode_chat(rendered), "messages")

    def check(self, token_ids: list[int], param: str) -> list[int]:
        """The ids themselves. Raises RequestError if one of them is not in the model."""
        self._some(token_ids, param)
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.size:
            wrong = low if low < 0 else high
            raise RequestError(
                f"{param} has token id {wrong}; ids go from 0 to {self.size - 1}", param=param
            )
        return token_ids

    def _some(self, token_ids: list[int], param: str) -> list[int]:
        if not token_ids:
            raise RequestError(f"{param} is empty; give at least one token", param=param)
        return token_ids


@dataclass(frozen=True)
class TextStep:
    """What some tokens added: their text, how many of them count, the stop string that ended it."""

    text: str
    num_tokens: int
    matched: str | None = None


class SampleText:
    """Text of one sample, cut at its stop strings."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        stops: tuple[str, ...],
        keep_stop: bool,
        skip_special_tokens: bool,
        min_new_tokens: int,
    ):
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids, skip_special_tokens)
        self._matcher = StopStringMatcher(stops, keep_stop) if stops else None
        self._keep_stop = keep_stop
        self._min_new_tokens = min_new_tokens
        self._num_tokens = 0

    def push(self, token_ids: Sequence[int], stop_token: int | None = None) -> TextStep:
        """Add tokens. `stop_token`, when it is the last of them, ends the sample and has no text
        of its own unless stops are kept."""
        parts: list[str] = []
        for position, token_id in enumerate(token_ids):
            is_stop = token_id == stop_token and position == len(token_ids) - 1
            self._num_tokens += 1
            if is_stop and not self._keep_stop:
                break
            text, matched = self._match(self._detokenizer.push([token_id]))
            parts.append(text)
            if matched is not None:
                return TextStep("".join(parts), position + 1, matched)
        return TextStep("".join(parts), len(token_ids))

    def flush(self) -> TextStep:
        """What was held back, once no token follows."""
        text, matched = self._match(self._detokenizer.flush())
        if matched is None and self._matcher is not None:
            text += self._matcher.flush()
        return TextStep(text, 0, matched)

    def _match(self, text: str) -> tuple[str, str | None]:
        """Stop strings begin to count once the request's minimum length is reached."""
        if self._matcher is None or self._num_tokens < self._min_new_tokens:
            return text, None
        return self._matcher.push(text)
