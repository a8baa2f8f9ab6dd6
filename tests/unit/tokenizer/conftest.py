"""The embedded model's tokenizer where it can be had, and small vocabularies made to order."""

import os
from pathlib import Path
from typing import Any

import pytest

from baton.checkpoint import default_cache_dir, resolve_model
from baton.core.errors import CheckpointError
from baton.tokenizer import Tokenizer, load_tokenizer
from baton.tokenizer.gguf_vocab import build_from_metadata
from baton.tokenizer.token_bytes import BYTE_OF_CHARACTER

SENTENCEPIECE_WORDS = {
    "▁": -3.0,
    "▁h": -9.0,
    "he": -8.0,
    "▁he": -7.0,
    "ll": -6.0,
    "llo": -5.0,
    "▁hello": -4.0,
    "lo": -10.0,
    **{letter: -50.0 for letter in "abcdefghijklmnopqrstuvwxyz"},
}


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    try:
        return resolve_model(None, cache_dir=default_cache_dir(os.environ))
    except CheckpointError as error:
        pytest.skip(f"the embedded model cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="session")
def sentencepiece_metadata() -> dict[str, Any]:
    """<unk>, <s>, </s>, 256 byte tokens, words and letters, one user-defined token."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = list(SENTENCEPIECE_WORDS)
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *words, "[THINK]"]
    scores = [0.0] * 259 + list(SENTENCEPIECE_WORDS.values()) + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words) + [4],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def byte_level_metadata() -> dict[str, Any]:
    """All 256 bytes as tokens, a few merges, two control tokens and a user-defined one."""
    alphabet = sorted(BYTE_OF_CHARACTER, key=BYTE_OF_CHARACTER.__getitem__)
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "12 3", "Ã ©"]
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*alphabet, *merged, "<|bos|>", "<|end|>", "<think é>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }


def tokenizer_of(metadata: dict[str, Any], chat_template: str | None = None) -> Tokenizer:
    return Tokenizer(
        build_from_metadata(metadata),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=(),
        special_tokens={"bos_token": "<|bos|>", "eos_token": "<|end|>"},
        chat_template=chat_template,
    )


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer(metadata, chat_template=None) -> Tokenizer"""
    return tokenizer_of


@pytest.fixture(scope="session")
def byte_level(byte_level_metadata) -> Tokenizer:
    return tokenizer_of(byte_level_metadata)


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_metadata) -> Tokenizer:
    return tokenizer_of(sentencepiece_metadata)
