"""A byte-level BPE tokenizer for tiny models, trained on a few built-in sentences.

Elsewhere: the models (tiny_models.py, tiny_gguf.py), real tokenizers (tokenizer/).
"""

from functools import cache
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT: Final = "<|endoftext|>"
START_OF_TURN: Final = "<|im_start|>"
END_OF_TURN: Final = "<|im_end|>"
SPECIAL_TOKENS: Final = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_NUM_TOKENS: Final = 300
_SENTENCES: Final = (
    "A relay team runs as one: the first runner hands the baton to the second.",
    "The prompt is read once, and then the answer is written token by token.",
    "user assistant system: what is the capital of the country on the other side?",
)


@cache
def train_tokenizer() -> Tokenizer:
    """The same tokenizer each time: three special tokens, the 256 bytes, and some merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_NUM_TOKENS,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer
