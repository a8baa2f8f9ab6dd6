"""Text of a growing token list, as early as it is certain.

Invariant: what the pushes and the final flush return, joined, is what decoding all tokens at once
would give after the prompt's text; work per push is proportional to the tokens pushed.
Elsewhere: stop strings (stop_strings.py), the bytes of a token (token_bytes.py).
"""

import codecs
from collections.abc import Sequence
from typing import Final

from baton.tokenizer.tokenizer import Tokenizer

_MAX_OPEN_BYTES: Final = 3  # of a UTF-8 character whose last byte is missing


class IncrementalDetokenizer:
    """Turns the tokens of one sequence into text. `prompt_tail_ids` are the prompt's tokens, or
    enough of its end: they tell whether the text has begun and finish a character the prompt
    broke off."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tail_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = self._tail_bytes(prompt_tail_ids)
        self._decoder.decode(tail)
        self._strips_space = tokenizer.strips_leading_space and not tail
        self._has_own_bytes = False

    def push(self, ids: Sequence[int]) -> str:
        """Text that has become certain. A character split between tokens waits for its rest."""
        added = self._tokenizer.join_bytes(ids, self._skip_special_tokens)
        self._has_own_bytes = self._has_own_bytes or bool(added)
        return self._without_first_space(self._decoder.decode(added))

    def flush(self) -> str:
        """Text held back, now that no token follows: U+FFFD for a character left open."""
        if not self._has_own_bytes:
            return ""  # a character left open by the prompt is not the answer's
        return self._without_first_space(self._decoder.decode(b"", final=True))

    def _tail_bytes(self, ids: Sequence[int]) -> bytes:
        """The last bytes before the answer: enough to hold any character that is still open."""
        tail = b""
        for token_id in reversed(ids):
            tail = self._tokenizer.join_bytes([token_id], self._skip_special_tokens) + tail
            if len(tail) > _MAX_OPEN_BYTES:
                break
        return tail

    def _without_first_space(self, text: str) -> str:
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text
