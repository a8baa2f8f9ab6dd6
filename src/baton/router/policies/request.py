"""A request as policies see it: sizes, what its prompt begins with, and whose session it is.

Elsewhere: how it is read from a body and headers (router/prompt_shape.py).
"""

import msgspec

PrefixHash = bytes | int
"""Name of a prompt's beginning: a KV block's hash where the client sent token ids, else a chained
hash of the text's pieces."""


class RoutedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`num_prompt_tokens` is exact for token ids and an estimate for text. `prefix_hashes` name
    ever longer beginnings of the prompt, each `tokens_per_hash` tokens longer than the one before;
    they may stop short of a very long prompt."""

    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    prefix_hashes: tuple[PrefixHash, ...] = ()
    tokens_per_hash: int = 16
    session_key: str | None = None

    @property
    def num_tokens(self) -> int:
        """KV tokens that it needs in the end, at most."""
        return self.num_prompt_tokens + self.num_new_tokens

    def num_uncached(self, num_hits: int) -> int:
        """Prompt tokens left to compute where the first `num_hits` hashes are cached. The last
        token is always computed."""
        cached = num_hits * self.tokens_per_hash
        return max(min(1, self.num_prompt_tokens), self.num_prompt_tokens - cached)


UNKNOWN_REQUEST = RoutedRequest()
"""What is known of a request that nobody looked into."""
