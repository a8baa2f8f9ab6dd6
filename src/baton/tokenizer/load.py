"""Building the tokenizer of a GGUF file or a Hugging Face folder.

Elsewhere: GGUF vocabularies (gguf_vocab.py), using a tokenizer (tokenizer.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from baton.core.errors import CheckpointError
from baton.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from baton.checkpoint.gguf import GgufFile
    from baton.checkpoint.hf import HfFolder

_GGUF_TEMPLATE_NAMES: Final = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_HF_TEMPLATE_NAMES: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at `path`. Raises CheckpointError or UnsupportedModel."""
    from baton.checkpoint.gguf import GgufFile  # brings numpy, which text alone does not need
    from baton.checkpoint.hf import HfFolder

    if path.is_dir():
        return _from_folder(HfFolder(path))
    return _from_gguf(GgufFile(path))


def _from_gguf(file: "GgufFile") -> Tokenizer:
    from baton.checkpoint.card import gguf_end_token_ids
    from baton.tokenizer.gguf_vocab import build_from_metadata

    metadata = file.metadata
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    template = metadata.get("tokenizer.chat_template")
    backend = build_from_metadata(metadata)
    ids = _special_ids(metadata, len(tokens))
    return Tokenizer(
        backend,
        bos_token_id=ids.get("bos_token"),
        eos_token_ids=gguf_end_token_ids(metadata),
        special_tokens={name: tokens[each] for name, each in ids.items()},
        chat_template=template if isinstance(template, str) else None,
    )


def _from_folder(folder: "HfFolder") -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    from baton.checkpoint.card import hf_end_token_ids

    try:
        backend = Backend.from_file(str(folder.tokenizer_file))
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        raise CheckpointError(f"cannot read {folder.tokenizer_file}: {error}") from error
    backend.no_truncation()  # a file may carry settings of its training run
    backend.no_padding()
    special_tokens = _special_token_texts(folder.tokenizer_config)
    bos, eos = special_tokens.get("bos_token"), special_tokens.get("eos_token")
    end_ids = hf_end_token_ids(folder)
    if not end_ids and eos is not None:
        end_ids = tuple(each for each in [backend.token_to_id(eos)] if each is not None)
    return Tokenizer(
        backend,
        bos_token_id=None if bos is None else backend.token_to_id(bos),
        eos_token_ids=end_ids,
        special_tokens=special_tokens,
        chat_template=folder.chat_template,
    )


def _special_token_texts(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """tokenizer_config.json gives each as a string, or as an object with its "content"."""
    texts: dict[str, str] = {}
    for name in _HF_TEMPLATE_NAMES:
        value = tokenizer_config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _special_ids(metadata: dict[str, Any], vocab_size: int) -> dict[str, int]:
    """The ids that the metadata names; some files name ids past their vocabulary's end."""
    ids: dict[str, int] = {}
    for name, key in _GGUF_TEMPLATE_NAMES.items():
        value = metadata.get(key)
        if isinstance(value, int) and 0 <= value < vocab_size:
            ids[name] = value
    return ids
