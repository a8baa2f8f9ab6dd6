"""From a token's spelling in the vocabulary to the bytes of text it stands for.

Vocabularies spell bytes in two ways. Byte-level BPE (GPT-2 and after) writes each byte as one
printable character; SentencePiece writes text with U+2581 for a space and "<0x0A>" for a raw byte.
Invariant: the text of a token list is the UTF-8 decoding of its tokens' bytes joined together,
which is what makes decoding token by token exact.
Elsewhere: joining and decoding (tokenizer.py, detokenize.py).
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

from baton.core.errors import UnsupportedModel

SPACE_MARK: Final = "\u2581"
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_STEPS: Final = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})


class TokenSpelling(Protocol):
    """How a vocabulary writes bytes. `strips_leading_space`: encoding put one space before the
    text, so decoding from its start takes one away."""

    @property
    def strips_leading_space(self) -> bool: ...

    def token_bytes(self, token: str) -> bytes: ...

    def added_token_bytes(self, text: str) -> bytes:
        """Of a token that is matched whole in the text, and so is spelled as itself."""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable Latin-1 bytes as themselves, the others from U+0100 up, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + rank): byte for rank, byte in enumerate(others)
    }


BYTE_OF_CHARACTER: Final = _byte_alphabet()


@dataclass(frozen=True)
class ByteLevelSpelling:
    strips_leading_space: bool = False

    def token_bytes(self, token: str) -> bytes:
        try:
            return bytes([BYTE_OF_CHARACTER[character] for character in token])
        except KeyError:  # not spelled in the alphabet, so it stands for itself
            return token.encode("utf-8")

    def added_token_bytes(self, text: str) -> bytes:
        return text.encode("utf-8")


@dataclass(frozen=True)
class SentencePieceSpelling:
    strips_leading_space: bool = True
    has_byte_tokens: bool = True

    def token_bytes(self, token: str) -> bytes:
        if self.has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(SPACE_MARK, " ").encode("utf-8")

    def added_token_bytes(self, text: str) -> bytes:
        return text.replace(SPACE_MARK, " ").encode("utf-8")


def spelling_of_decoder(decoder: Any) -> TokenSpelling:
    """The spelling that a `tokenizers` decoder undoes; UnsupportedModel names any other decoder."""
    steps = _decoder_steps(decoder)
    kinds = {str(step["type"]) for step in steps}
    if kinds == {"ByteLevel"}:
        return ByteLevelSpelling()
    is_sentencepiece = bool(kinds & {"Replace", "Metaspace"}) and kinds <= _SENTENCEPIECE_STEPS
    if is_sentencepiece and all(_marks_spaces(step) for step in steps):
        return SentencePieceSpelling(
            strips_leading_space=any(_strips_space(step) for step in steps),
            has_byte_tokens="ByteFallback" in kinds,
        )
    raise UnsupportedModel(
        f"the tokenizer's decoder is {' + '.join(sorted(kinds))}; byte-level BPE (ByteLevel) and"
        " SentencePiece (Replace or Metaspace, ByteFallback, Fuse, Strip) are supported"
    )


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    """The decoder's own JSON form, which the library gives only as its pickled state."""
    if decoder is None:
        return [{"type": "no decoder"}]
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return steps


def _marks_spaces(step: dict[str, Any]) -> bool:
    """Whether a decoder step writes spaces the usual way (steps that write none do)."""
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": SPACE_MARK}, " ")
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == SPACE_MARK)
    return True


def _strips_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return bool(step["content"] == " " and step["start"] > 0)
    return bool(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
