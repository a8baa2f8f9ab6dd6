"""A tokenizer from the vocabulary inside a GGUF file's metadata.

Invariant: token ids are positions in `tokenizer.ggml.tokens`; whatever the metadata holds, the
result is a working tokenizer, a CheckpointError or an UnsupportedModel.
Elsewhere: where text is cut first (pretokenize.py), a folder's tokenizer.json (load.py).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from baton.core.errors import CheckpointError, UnsupportedModel
from baton.tokenizer.pretokenize import build_pre_tokenizer, pre_tokenization
from baton.tokenizer.token_bytes import SPACE_MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_PREFIX: Final = "tokenizer.ggml."


class TokenType(IntEnum):
    """GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocab:
    """The vocabulary's fields, checked against each other. `scores` is empty when absent."""

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    id_of_token: dict[str, int]

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "GgufVocab":
        tokens = _list_of(metadata, "tokens", str)
        if not tokens:
            raise CheckpointError(f"the file has no {_PREFIX}tokens, so it carries no tokenizer")
        id_of_token = {token: index for index, token in enumerate(tokens)}
        if len(id_of_token) != len(tokens):
            twice = next(each for index, each in enumerate(tokens) if id_of_token[each] != index)
            raise CheckpointError(f"{_PREFIX}tokens lists {twice!r} twice")
        types = _list_of(metadata, "token_type", int) or [TokenType.NORMAL] * len(tokens)
        scores = _list_of(metadata, "scores", float)
        for name, values in (("token_type", types), ("scores", scores)):
            if values and len(values) != len(tokens):
                raise CheckpointError(
                    f"{_PREFIX}{name} has {len(values)} entries for {len(tokens)} tokens"
                )
        merges = _list_of(metadata, "merges", str)
        model = str(metadata.get(f"{_PREFIX}model"))
        return cls(model, tokens, types, scores, merges, id_of_token)


def build_from_metadata(metadata: dict[str, Any]) -> "Backend":
    vocab = GgufVocab.from_metadata(metadata)
    try:
        match vocab.model:
            case "gpt2":
                rule_name = str(metadata.get(f"{_PREFIX}pre", "default"))
                backend = _byte_level(vocab, rule_name)
                adds_bos = pre_tokenization(rule_name).adds_bos
            case "llama":
                backend = _sentencepiece(vocab, metadata)
                adds_bos = True
            case other:
                raise UnsupportedModel(
                    f"{_PREFIX}model is {other!r}; supported are 'gpt2' (byte-level BPE) and"
                    " 'llama' (SentencePiece BPE)"
                )
        _mark_added_tokens(backend, vocab)
        _set_ends(backend, vocab, metadata, adds_bos)
    except (CheckpointError, UnsupportedModel):
        raise
    except Exception as error:  # the library raises bare Exception, e.g. for a merge of unknowns
        raise CheckpointError(f"the vocabulary contradicts itself: {error}") from error
    return backend


def _byte_level(vocab: GgufVocab, rule_name: str) -> "Backend":
    from tokenizers import Tokenizer, decoders, models

    rule = pre_tokenization(rule_name)
    merges: list[tuple[str, str]] = []
    for merge in vocab.merges:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    model = models.BPE(vocab.id_of_token, merges, ignore_merges=rule.keeps_whole_words)
    backend = Tokenizer(model)
    backend.pre_tokenizer = build_pre_tokenizer(rule)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(vocab: GgufVocab, metadata: dict[str, Any]) -> "Backend":
    """SentencePiece BPE as the library's merge list: the better-scored token is merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if not vocab.scores:
        raise CheckpointError(
            f"the file has no {_PREFIX}scores, which rank its SentencePiece tokens"
        )
    unknown_id = _token_id(metadata, "unknown_token_id", vocab) or 0
    model = models.BPE(
        vocab.id_of_token,
        _merges_by_score(vocab),
        unk_token=vocab.tokens[unknown_id],
        fuse_unk=True,
        byte_fallback=TokenType.BYTE in vocab.types,
    )
    backend = Tokenizer(model)
    has_prefix = bool(metadata.get(f"{_PREFIX}add_space_prefix", True))
    to_marks = normalizers.Replace(" ", SPACE_MARK)
    prefix = [normalizers.Prepend(SPACE_MARK)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, to_marks])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_score(vocab: GgufVocab) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best result first, as SentencePiece picks them."""
    id_of_token = vocab.id_of_token
    ranked: list[tuple[float, int, str, str]] = []
    for token, kind, score in zip(vocab.tokens, vocab.types, vocab.scores, strict=True):
        if kind != TokenType.NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in id_of_token and right in id_of_token:
                ranked.append((-score, -cut, left, right))
    ranked.sort()
    return [(left, right) for _, _, left, right in ranked]


def _mark_added_tokens(backend: "Backend", vocab: GgufVocab) -> None:
    """Tokens that are found whole in the text. Control tokens are hidden when decoding."""
    from tokenizers import AddedToken

    control: list[AddedToken] = []
    plain: list[AddedToken] = []
    for token, kind in zip(vocab.tokens, vocab.types, strict=True):
        if not token:
            continue
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            control.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(control)
    backend.add_tokens(plain)


def _set_ends(
    backend: "Backend", vocab: GgufVocab, metadata: dict[str, Any], adds_bos: bool
) -> None:
    """Have encoding put the start and end tokens around the text, if the file wants them."""
    from tokenizers.processors import TemplateProcessing

    template = ["$A"]
    specials: list[dict[str, Any]] = []
    for field, name, default in (("bos", "BOS", adds_bos), ("eos", "EOS", False)):
        if not metadata.get(f"{_PREFIX}add_{field}_token", default):
            continue
        token_id = _token_id(metadata, f"{field}_token_id", vocab)
        if token_id is None:
            raise CheckpointError(
                f"the tokenizer adds a {name} token, but {_PREFIX}{field}_token_id is missing"
            )
        specials.append({"id": name, "ids": [token_id], "tokens": [vocab.tokens[token_id]]})
        template = [name, *template] if field == "bos" else [*template, name]
    if specials:
        backend.post_processor = TemplateProcessing(single=template, special_tokens=specials)


def _token_id(metadata: dict[str, Any], name: str, vocab: GgufVocab) -> int | None:
    value = metadata.get(f"{_PREFIX}{name}")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(vocab.tokens):
        raise CheckpointError(
            f"{_PREFIX}{name} is {value!r}, not one of {len(vocab.tokens)} token ids"
        )
    return value


def _list_of(metadata: dict[str, Any], name: str, kind: type) -> list[Any]:
    """The list's entries, [] when absent. Arrays in GGUF are of one type: the first entry tells."""
    values = metadata.get(f"{_PREFIX}{name}", [])
    if not isinstance(values, list) or (values and not isinstance(values[0], kind)):
        raise CheckpointError(f"{_PREFIX}{name} is not a list of {kind.__name__}")
    return values
