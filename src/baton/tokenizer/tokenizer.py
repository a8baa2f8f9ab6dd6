"""Text to token ids and back, for one model.

Invariant: `decode` is the UTF-8 decoding of the joined `token_bytes`, with U+FFFD for bytes that
are no character, so that decoding piecewise (detokenize.py) gives the same text.
Elsewhere: building one (load.py), how tokens spell bytes (token_bytes.py), templates
(chat_template.py).
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from baton.core.errors import RequestError
from baton.tokenizer.token_bytes import spelling_of_decoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from baton.tokenizer.chat_template import ChatTemplate


class Tokenizer:
    """A model's tokenizer. Safe to share between threads; token bytes are remembered once found.

    `special_tokens` maps template names ("bos_token") to texts. `eos_token_ids` are all the ids
    that end a generation.
    """

    def __init__(
        self,
        backend: "Backend",
        *,
        bos_token_id: int | None,
        eos_token_ids: tuple[int, ...],
        special_tokens: Mapping[str, str],
        chat_template: str | None,
    ):
        self._backend = backend
        self._spelling = spelling_of_decoder(backend.decoder)
        added = backend.get_added_tokens_decoder()
        self._added_texts = {token_id: token.content for token_id, token in added.items()}
        self._special_ids = frozenset(
            token_id for token_id, token in added.items() if token.special
        )
        self._bytes_of_id: dict[int, bytes] = {}
        self._special_tokens = dict(special_tokens)
        self._compiled_template: ChatTemplate | None = None
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.chat_template = chat_template

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding from the start of a text drops one space that encoding put there."""
        return self._spelling.strips_leading_space

    def encode(
        self, text: str, add_special_tokens: bool = True, *, param: str | None = None
    ) -> list[int]:
        """Token ids of `text`. Special tokens written out in it become their ids.

        Raises RequestError (naming `param`) for text that is not valid Unicode. Takes about 1 s
        per megabyte; other Python threads run meanwhile.
        """
        _refuse_surrogates(text, param)
        # A batch of one: unlike `encode`, it lets go of the interpreter lock and skips offsets.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        text = self.join_bytes(ids, skip_special_tokens).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def join_bytes(self, ids: Iterable[int], skip_special_tokens: bool) -> bytes:
        """The bytes of the tokens, one after another."""
        if skip_special_tokens:
            special = self._special_ids
            return b"".join([self.token_bytes(each) for each in ids if each not in special])
        return b"".join([self.token_bytes(each) for each in ids])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id that has no token, such as a padding row of the
        model's embedding."""
        known = self._bytes_of_id.get(token_id)
        return self._find_bytes(token_id) if known is None else known

    def token_text(self, token_id: int) -> str:
        """One token as text by itself, special or not, with U+FFFD for part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> str:
        """The conversation as prompt text; pass it to `encode_chat`. Raises RequestError."""
        return self._template().render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **template_kwargs,
        )

    def encode_chat(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation. The template has written the start token where it
        belongs, so none is added: a second one measurably harms answers."""
        return self.encode(rendered, add_special_tokens=False, param="messages")

    def _template(self) -> "ChatTemplate":
        if self._compiled_template is None:
            if self.chat_template is None:
                raise RequestError(
                    "this model has no chat template; use /v1/completions",
                    param="messages",
                    code="chat_template_missing",
                )
            from baton.tokenizer.chat_template import ChatTemplate

            self._compiled_template = ChatTemplate(self.chat_template, self._special_tokens)
        return self._compiled_template

    def _find_bytes(self, token_id: int) -> bytes:
        """Look the token up, and remember its bytes if there is one."""
        added = self._added_texts.get(token_id)
        token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if added is not None:
            found = self._spelling.added_token_bytes(added)
        elif token is not None:
            found = self._spelling.token_bytes(token)
        else:
            return b""  # not remembered: any number may be asked for
        self._bytes_of_id[token_id] = found
        return found


def _refuse_surrogates(text: str, param: str | None) -> None:
    """JSON can carry half of a surrogate pair ("\\ud800"), which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character"
            f" {error.start}; send valid Unicode",
            param=param,
        ) from error
