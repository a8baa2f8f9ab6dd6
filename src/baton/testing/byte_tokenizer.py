"""A real `Tokenizer` over a tiny vocabulary: one token per byte and four special ones.

Token ids 0 to 255 are the bytes themselves, so tests can read them: `ord("a")` is the token "a".
"""

from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baton.tokenizer.tokenizer import Tokenizer as BatonTokenizer

BOS_ID: Final = 256
EOS_ID: Final = 257
VOCAB_SIZE: Final = 260

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn|>{{ message.role }}\n{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def make_byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> BatonTokenizer:
    """Special tokens: <s> 256, </s> 257, <|turn|> 258, <|end|> 259. </s> ends a text."""
    vocab = {character: byte for byte, character in _byte_characters().items()}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text in ("<s>", "</s>", "<|turn|>", "<|end|>")
        ]
    )
    assert backend.get_vocab_size(with_added_tokens=True) == VOCAB_SIZE
    return BatonTokenizer(
        backend,
        bos_token_id=BOS_ID,
        eos_token_ids=(EOS_ID,),
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        chat_template=chat_template,
    )


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(0x100 + number) for number, byte in enumerate(others)}
    return {byte: stand_ins.get(byte, chr(byte)) for byte in range(256)}
