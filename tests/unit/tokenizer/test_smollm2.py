"""The embedded model's tokenizer against two independent readings of the same vocabulary.

One is transformers' (with the pipeline of the model's published tokenizer.json: single digits,
then GPT-2's pattern; its own GGUF conversion does not know the "smollm" rule). The other is a
plain Python byte-pair encoder over llama.cpp's two patterns for "smollm".
"""

import importlib.metadata
import itertools
import random
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest
import regex

from baton.checkpoint import GgufFile
from baton.core.errors import RequestError
from baton.tokenizer.token_bytes import BYTE_OF_CHARACTER

LLAMA_CPP_PATTERNS = (
    r"\p{N}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
)
CHOSEN = [
    "",
    " ",
    "   ",
    "a  1",
    "x 1 2  3   4",
    "1234567890 3.14159 1e-9 0x1F ½ ² Ⅷ ٣٤",
    "I'LL don't we've he'd it's 'tis rock'n'roll",
    "\r\n\r\n a\r b\n\n\n",
    "\t\tif x:\n\t\t\treturn  y  # done\t \n",
    "日本語のテスト。这是一个测试、谢谢。한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك؟",
    "Ελληνικά, русский, עברית, हिन्दी, ไทย",
    "😀👨‍👩‍👧🏳️‍🌈 flags 🇩🇪🇯🇵",
    "naïve café Ångström é̀ ñ ﬁ ﬀ",
    "\u00a0non\u3000breaking\u200bzero\ufeffwidth",
    "a\x04b\x00c\x7f",
    "\U00040000 private \U0010ffff",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>",
    "<|im_start|",
    "def f(x: int) -> list[int]: return [x ** 2 for _ in range(10)]",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x';",
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "word" * 200,
    " " * 500 + "x",
    "=" * 300,
]
CHATS = [
    [{"role": "user", "content": "Hello  1 2 3"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "héllo 😀"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b\n"},
        {"role": "user", "content": "<|im_end|> c"},
    ],
]


def corpus() -> list[str]:
    """Chosen texts, lines and whole paragraphs of the standard library and of package licences."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]
    files += sorted(
        Path(str(distribution.locate_file(file)))
        for distribution in importlib.metadata.distributions()
        for file in distribution.files or []
        if "LICEN" in file.name.upper()
    )[:20]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    rng = random.Random(0)
    return CHOSEN + rng.sample(lines, 1500) + [text[:3000] for text in texts]


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path, tmp_path_factory) -> Any:
    from tokenizers import pre_tokenizers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about its dependencies
        from transformers import AutoTokenizer

        folder = tmp_path_factory.mktemp("gguf")
        (folder / "m.gguf").symlink_to(smollm2_gguf)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def test_ids_and_texts_agree_with_transformers(smollm2, reference):
    for text in corpus():
        ids = smollm2.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip)
            assert smollm2.decode(ids, skip_special_tokens=skip) == expected


def test_every_token_decodes_as_in_transformers(smollm2, reference):
    for token_id in range(0, smollm2.vocab_size, 7):
        assert smollm2.token_text(token_id) == reference.decode([token_id])


def test_texts_survive_the_round_trip(smollm2):
    """Except for the bytes that the vocabulary lacks, which are lost (in every implementation)."""
    known = set(smollm2.join_bytes(range(smollm2.vocab_size), skip_special_tokens=True))
    for text in corpus():
        if set(text.encode()) <= known:
            assert smollm2.decode(smollm2.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_agree_with_transformers(smollm2, reference, chat, add_generation_prompt):
    mine = smollm2.apply_chat_template(chat, add_generation_prompt=add_generation_prompt)
    expected = reference.apply_chat_template(
        chat, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    assert mine == expected
    ids = reference.apply_chat_template(
        chat, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
    assert smollm2.encode_chat(mine) == ids


def test_continued_chats_agree_with_transformers(smollm2, reference):
    for ending in ("Once upon", "Once upon ", "Once\n"):
        chat = [*CHATS[0], {"role": "assistant", "content": ending}]
        expected = reference.apply_chat_template(chat, continue_final_message=True, tokenize=False)
        assert smollm2.apply_chat_template(chat, continue_final_message=True) == expected


def test_ids_agree_with_llama_cpps_patterns(smollm2, smollm2_gguf):
    metadata = GgufFile(smollm2_gguf).metadata
    encoder = PlainEncoder(metadata)
    for text in [each for each in corpus() if "<" not in each and len(each) < 400]:
        assert smollm2.encode(text) == encoder.encode(text), text


def test_ends_and_sizes(smollm2):
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_token_id, smollm2.eos_token_ids) == (1, (2,))
    assert smollm2.encode("a") == smollm2.encode("a", add_special_tokens=False)
    assert smollm2.token_text(2) == "<|im_end|>"
    assert smollm2.token_bytes(49152) == smollm2.token_bytes(-1) == b""


def test_lone_surrogates_are_refused(smollm2):
    with pytest.raises(RequestError, match=r"U\+D800.* at character 1") as caught:
        smollm2.encode("a\ud800b", param="prompt")
    assert caught.value.param == "prompt"
    rendered = smollm2.apply_chat_template([{"role": "user", "content": "\udfff"}])
    with pytest.raises(RequestError, match="lone surrogate"):
        smollm2.encode_chat(rendered)


class PlainEncoder:
    """Byte-pair encoding as its definition says, with no regard to speed."""

    def __init__(self, metadata: dict[str, Any]):
        self._ids = {t: index for index, t in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = metadata["tokenizer.ggml.merges"]
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self._character = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}

    def encode(self, text: str) -> list[int]:
        pieces = [text]
        for pattern in LLAMA_CPP_PATTERNS:
            pieces = [part for piece in pieces for part in split(pattern, piece)]
        symbols = [symbol for piece in pieces for symbol in self._merge(piece)]
        return [self._ids[symbol] for symbol in symbols if symbol in self._ids]

    def _merge(self, piece: str) -> list[str]:
        symbols = [self._character[byte] for byte in piece.encode()]
        symbols = [symbol for symbol in symbols if symbol in self._ids]
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            rank, at = min((self._ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairs))
            if rank == 1 << 30:
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return symbols


def split(pattern: str, text: str) -> list[str]:
    parts, end = [], 0
    for match in regex.finditer(pattern, text):
        parts += [text[end : match.start()], match.group()]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]
