"""A client's body, looked into no deeper than routing needs, and what is added for the pair.

Only the outermost keys are parsed; every value travels on as the bytes the client wrote, so
numbers of any size and any spelling arrive unchanged, in the client's order.
Elsewhere: validating the request itself (the workers), HTTP (app.py).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from baton.core.errors import RequestError

GENERATE = "/generate"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GENERATION_ROUTES = (GENERATE, CHAT, COMPLETIONS)

MAX_CHOICES = 1024
"""Largest `n`: each choice gets a room, so a huge number must not cost memory here."""

Fields = Mapping[str, msgspec.Raw]
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_BEGINNING = re.compile(rb"(?P<lists>[\s\[]*)(?P<leaf>.?)", re.DOTALL)
"""How deep the first of nested lists begins; a long list of numbers need not be taken apart."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One request for tokens. `num_items` is None for a single one, else the length that
    SGLang expects of the bootstrap lists."""

    route: str
    body: bytes
    fields: dict[str, msgspec.Raw]
    num_items: int | None
    wants_prompt_logprobs: bool

    @property
    def num_prefill_tokens(self) -> int:
        """New tokens that the prefill leg's answer has: it runs every sequence for one, and does
        not show even that to a client who asked for none."""
        asked = self.fields.get("max_tokens")
        return 0 if asked is not None and bytes(asked) == b"0" else 1

    @property
    def is_stream(self) -> bool:
        """The client wants its answer as events."""
        return _is_true(self.fields.get("stream"))

    @property
    def may_be_marked(self) -> bool:
        """A stream whose beginning a client may have seen when its worker dies."""
        return self.is_stream and "resume" not in self.fields

    @property
    def repeats_logprobs(self) -> bool:
        """Each event of its stream has the logprobs of all tokens so far."""
        return self.route == GENERATE and self.wants_prompt_logprobs

    @property
    def may_be_resumed(self) -> bool:
        """A stream of one sample, whose events need nothing of an earlier worker but its tokens."""
        fields = self.fields
        return (
            self.is_stream
            and self.num_items is None
            and not self.wants_prompt_logprobs
            and "resume" not in fields
        )

    def without(self, name: str) -> "Generation":
        """The same request without a field."""
        fields = {key: value for key, value in self.fields.items() if key != name}
        return msgspec.structs.replace(self, fields=fields, body=_encode(fields))

    def resumed(self, resume: bytes) -> "Generation":
        """The same request with a `resume` field."""
        fields = {**self.fields, "resume": msgspec.Raw(resume)}
        return msgspec.structs.replace(self, fields=fields, body=_encode(fields))

    def body_for_pair(self, host: str, port: int | None, draw_room: Callable[[], int]) -> bytes:
        """The body both legs get, with rooms drawn anew. (To join the raw values again is cheaper
        than to splice the added ones into the client's bytes.)"""
        fields: dict[str, Any] = dict(self.fields)
        num = self.num_items
        fields["bootstrap_host"] = host if num is None else [host] * num
        fields["bootstrap_port"] = port if num is None else [port] * num
        fields["bootstrap_room"] = draw_room() if num is None else [draw_room() for _ in range(num)]
        return _encode(fields)


def parse_generation(route: str, body: bytes) -> Generation:
    """Raise RequestError if the body is not a JSON object."""
    fields = parse_object(body)
    return Generation(
        route=route,
        body=body,
        fields=fields,
        num_items=_num_items(route, fields),
        wants_prompt_logprobs=_wants_prompt_logprobs(route, fields),
    )


def parse_object(body: bytes) -> dict[str, msgspec.Raw]:
    """The outermost keys of a JSON object in UTF-8; raises RequestError."""
    if not body.strip():
        raise RequestError("the body is empty; send a JSON object", code="invalid_json")
    try:
        if not body.isascii():
            body.decode("utf-8")
        return _decode_fields(body)
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the body is not UTF-8 (byte {error.start}); send JSON encoded as UTF-8",
            code="invalid_json",
        ) from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply", code="invalid_json") from error
    except msgspec.DecodeError as error:
        raise RequestError(
            f"the body is not a JSON object: {error}", code="invalid_json"
        ) from error


def _num_items(route: str, fields: Fields) -> int | None:
    if route == CHAT:
        return _num_choices(fields.get("n"))
    if route == COMPLETIONS:
        return _num_prompts(fields.get("prompt"), depth_of_ids=1)
    for name, depth_of_ids in (("text", 1), ("input_ids", 1), ("input_embeds", 2)):
        raw = fields.get(name)
        if _is_set(raw):
            return _num_prompts(raw, depth_of_ids)
    return None


def _num_prompts(raw: msgspec.Raw | None, depth_of_ids: int) -> int | None:
    """Length of a batch of prompts, None for a single one.

    A prompt is a text, or numbers nested `depth_of_ids` lists deep. What is neither is left for
    the worker to refuse.
    """
    if raw is None:
        return None
    text = memoryview(raw)
    if bytes(text[:1]) == b'"':
        return None
    beginning = _BEGINNING.match(text)
    assert beginning is not None, "it matches everything"
    depth, leaf = beginning["lists"].count(b"["), beginning["leaf"]
    if depth == 0 or leaf == b"]":
        return None
    is_batch = leaf == b'"' or depth > depth_of_ids
    return len(_decode_items(raw)) if is_batch else None


def _num_choices(raw: msgspec.Raw | None) -> int | None:
    """Chat's `n` above 1; anything odd is left for the worker to refuse."""
    if raw is None or not bytes(raw).isdigit():
        return None
    num = int(bytes(raw)[:20])
    if num > MAX_CHOICES:
        raise RequestError(f"n is {num}; it must be at most {MAX_CHOICES}", param="n")
    return num if num > 1 else None


def _wants_prompt_logprobs(route: str, fields: Fields) -> bool:
    """Only the prefill worker knows them: decode never ran the prompt."""
    if route == GENERATE:
        return _is_set(fields.get("return_logprob"))
    if route == COMPLETIONS:
        return _is_set(fields.get("echo")) and _is_set(fields.get("logprobs"))
    return False


def _is_true(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw) == b"true"


def _is_set(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw) not in (b"null", b"false")
