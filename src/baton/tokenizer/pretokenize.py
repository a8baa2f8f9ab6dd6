"""Where text is cut before merging: the rules that `tokenizer.ggml.pre` names.

A GGUF file carries merges but only a name for the rule that cut the training text, and with
another rule the same merges give other tokens. So an unknown name is refused, never guessed.
The patterns are those of the models' published tokenizer.json files; llama.cpp's vocabulary
loader is where the names come from. Patterns are applied one after the other, each to the pieces
the one before left, matches and gaps both becoming pieces.
Elsewhere: merging (the tokenizers library), SentencePiece, which does not cut (gguf_vocab.py).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from baton.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD_START: Final = r"[^\r\n\p{L}\p{N}]?"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = (
    rf"{_CONTRACTIONS}|{_WORD_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2: Final = (
    rf"{_CONTRACTIONS}|{_WORD_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN: Final = (
    rf"{_WORD_START}{_UPPER}*{_LOWER}+|{_WORD_START}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O: Final = (
    rf"{_WORD_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD_START}{_UPPER}+{_LOWER}*"
    rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK_V3: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_HAN_AND_KANA: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True)
class PreTokenization:
    """`keeps_whole_words`: a piece that is itself in the vocabulary is not merged up from bytes.
    `adds_bos`: what holds when the file does not say."""

    patterns: tuple[str, ...]
    keeps_whole_words: bool = False
    adds_bos: bool = False


_PLAIN_GPT2: Final = PreTokenization((_GPT2,))
_SINGLE_DIGITS: Final = PreTokenization((r"\p{N}", _GPT2))
_LLAMA3_WHOLE_WORDS: Final = PreTokenization((_LLAMA3,), keeps_whole_words=True, adds_bos=True)

PRE_TOKENIZATIONS: Final[dict[str, PreTokenization]] = {
    "default": PreTokenization(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    "gpt-2": _PLAIN_GPT2,
    "phi-2": _PLAIN_GPT2,
    "olmo": _PLAIN_GPT2,
    "mpt": _PLAIN_GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3_WHOLE_WORDS,
    "llama3": _LLAMA3_WHOLE_WORDS,
    "llama-v3": _LLAMA3_WHOLE_WORDS,
    "falcon3": _LLAMA3_WHOLE_WORDS,
    "smaug-bpe": PreTokenization((_LLAMA3,)),
    "dbrx": PreTokenization((_LLAMA3,)),
    "qwen2": PreTokenization((_QWEN2,)),
    "stablelm2": PreTokenization((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenization((_QWEN2,)),
    "tekken": PreTokenization((_TEKKEN,), keeps_whole_words=True, adds_bos=True),
    "gpt-4o": PreTokenization((_GPT4O,)),
    "deepseek-coder": PreTokenization(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}"),
    ),
    "deepseek-v3": PreTokenization((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_V3)),
}


def pre_tokenization(name: str) -> PreTokenization:
    found = PRE_TOKENIZATIONS.get(name)
    if found is None:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre is {name!r}; known are {', '.join(sorted(PRE_TOKENIZATIONS))}"
        )
    return found


def build_pre_tokenizer(rule: PreTokenization) -> "PreTokenizer":
    from tokenizers import Regex, pre_tokenizers  # 50 ms; only processes that tokenize pay it

    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in rule.patterns]
    to_byte_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_byte_alphabet])
