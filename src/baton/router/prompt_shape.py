"""What routing wants to know of a request: size, beginning of the prompt, session, tenant.

The router has no tokenizer. Token ids are named as the workers name KV blocks; text and chats are
cut into pieces of the client's own bytes, so that a later turn of a chat begins with all names of
the earlier one. Nothing here refuses a request: what is odd is left for the worker to say.
Elsewhere: the body's outermost keys (requests.py), what policies do with it (policies/).
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import xxhash

from baton.kvcache.block_hash import BlockHash, extend_hashes
from baton.router.policies.request import RoutedRequest
from baton.router.requests import CHAT, COMPLETIONS, Fields, Generation

BLOCK_TOKENS = 16
"""The workers' default block size; another one there only makes these names coarser or finer."""

PIECE_BYTES = 128
BYTES_PER_TOKEN = 4
"""Rough, for English in today's vocabularies."""

MAX_HASHES = 512
"""Beginnings beyond 8,192 tokens (ids) or 64 KiB (text) are not told apart."""

ASSUMED_NEW_TOKENS = 256
MAX_ASSUMED_NEW_TOKENS = 1024
"""A client's limit is seldom reached, so a huge one must not count as load in full."""

SESSION_HEADER = "x-smg-routing-key"
"""As of SGLang's router; then the body's `session_id`, then OpenAI's `user`."""

_GLANCE_BYTES = 64

_SALTS = ("model", "lora_path", "cache_salt", "extra_key")


class _Parameters(msgspec.Struct):
    """What is read of SGLang's `sampling_params`."""

    max_new_tokens: int | None = None


_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_decode_ids = msgspec.json.Decoder(list[_TokenId]).decode
_decode_prompts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_decode_parameters = msgspec.json.Decoder(_Parameters).decode


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A request's place among others: whose it is, how urgent, and its tenant's share of turns."""

    tenant: str
    priority: int
    weight: float = 1.0


def shape_of(
    generation: Generation,
    headers: Mapping[str, str],
    *,
    with_prefix: bool = True,
    with_session: bool = True,
) -> RoutedRequest:
    """`with_prefix` False: nobody will ask for the prompt's beginnings, so they are not named.
    `with_session` False: nor for its session."""
    fields = generation.fields
    prompt, before = _prompt(generation.route, fields)
    ids = None if generation.route == CHAT else _token_ids(prompt)
    num_sequences = generation.num_items or 1
    if ids is not None:
        num_prompt_tokens, tokens_per_hash = num_sequences * len(ids), BLOCK_TOKENS
        hashes: tuple[Any, ...] = hashes_of_ids(ids, _worker_salt(fields)) if with_prefix else ()
    else:
        num_prompt_tokens = (len(prompt) + len(before)) // BYTES_PER_TOKEN
        tokens_per_hash = PIECE_BYTES // BYTES_PER_TOKEN
        hashes = _hashes_of_text(before, prompt, fields) if with_prefix else ()
    return RoutedRequest(
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_sequences * _num_new_tokens(fields),
        prefix_hashes=hashes,
        tokens_per_hash=tokens_per_hash,
        session_key=_session_key(fields, headers) if with_session else None,
    )


def standing_of(
    generation: Generation, headers: Mapping[str, str], tenant_header: str | None
) -> Standing:
    """The tenant is whoever the header names, which a gateway must have set; else the API key,
    of which only a digest is kept."""
    tenant = _header(headers, tenant_header) if tenant_header else None
    if tenant is None:
        key = _header(headers, "authorization")
        tenant = f"key-{hashlib.sha256(key.encode()).hexdigest()[:16]}" if key else ""
    return Standing(tenant=tenant, priority=priority_of(generation))


def priority_of(generation: Generation) -> int:
    """SGLang's `priority`; what is no integer counts as 0."""
    return _whole(generation.fields.get("priority")) or 0


def hashes_of_ids(ids: list[int], salt: str = "") -> tuple[BlockHash, ...]:
    """Names of the prompt's full blocks, as its workers have them."""
    hashes: list[BlockHash] = []
    extend_hashes(hashes, ids[: MAX_HASHES * BLOCK_TOKENS], BLOCK_TOKENS, salt)
    return tuple(hashes)


def hashes_of_bytes(prompt: bytes, salt: bytes = b"") -> tuple[int, ...]:
    """Names of the prompt's full pieces, each chained to the one before. The hash is fast, not
    strong: who makes two prompts collide only gets them routed alike."""
    digest = xxhash.xxh3_64_intdigest
    num_pieces = min(len(prompt) // PIECE_BYTES, MAX_HASHES)
    hashes, parent = [], digest(salt)
    for start in range(0, num_pieces * PIECE_BYTES, PIECE_BYTES):
        parent = digest(prompt[start : start + PIECE_BYTES], parent)
        hashes.append(parent)
    return tuple(hashes)


def _hashes_of_text(before: bytes, prompt: bytes, fields: Fields) -> tuple[int, ...]:
    """Of a huge prompt, such as one with images, no more is copied than is named."""
    beginning = before + prompt[: MAX_HASHES * PIECE_BYTES]
    return hashes_of_bytes(beginning, _text_salt(fields))


def _prompt(route: str, fields: Fields) -> tuple[bytes, bytes]:
    """The prompt's bytes as the client wrote them, and those of what chat templates put first.
    Of a list of prompts the first ones decide."""
    if route == CHAT:
        return _bytes(fields.get("messages")), _bytes(fields.get("tools"))
    if route == COMPLETIONS:
        return _bytes(fields.get("prompt")), b""
    return _bytes(fields.get("text")) or _bytes(fields.get("input_ids")), b""


def _token_ids(prompt: bytes) -> list[int] | None:
    """Token ids, of a batch the first prompt's; None if it is a text or anything else."""
    if prompt[:1] != b"[":
        return None
    try:
        is_batch = prompt[1:_GLANCE_BYTES].lstrip()[:1] == b"["
        return _decode_ids(_decode_prompts(prompt)[0] if is_batch else prompt)
    except (msgspec.DecodeError, RecursionError):
        return None


def _num_new_tokens(fields: Fields) -> int:
    asked = None
    for name in ("max_completion_tokens", "max_tokens"):
        if asked is None and name in fields:
            asked = _whole(fields[name])
    if asked is None and "sampling_params" in fields:
        asked = _max_new_tokens(fields["sampling_params"])
    if asked is None:
        return ASSUMED_NEW_TOKENS
    return max(0, min(asked, MAX_ASSUMED_NEW_TOKENS))


def _max_new_tokens(raw: msgspec.Raw) -> int | None:
    try:
        return _decode_parameters(raw).max_new_tokens
    except (msgspec.DecodeError, RecursionError):
        return None


def _session_key(fields: Fields, headers: Mapping[str, str]) -> str | None:
    return (
        _header(headers, SESSION_HEADER) or _text(fields.get("session_id")) or _user(fields)
    ) or None


def _user(fields: Fields) -> str:
    return _text(fields.get("user"))


def _worker_salt(fields: Fields) -> str:
    """As workers make it of `cache_salt` and `extra_key`."""
    salt, extra = _text(fields.get("cache_salt")), _text(fields.get("extra_key"))
    return f"{len(salt)}:{salt}{extra}" if salt and extra else salt or extra


def _text_salt(fields: Fields) -> bytes:
    return b"\0".join(_bytes(fields.get(name)) for name in _SALTS)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """Header names have no case; the mapping may have one."""
    given = headers.get(name)
    if given is None:
        given = next((text for key, text in headers.items() if key.lower() == name.lower()), None)
    return given or None


def _bytes(raw: msgspec.Raw | None) -> bytes:
    content = b"" if raw is None else bytes(raw)
    return b"" if content == b"null" else content


def _text(raw: msgspec.Raw | None) -> str:
    found = _parsed(raw) if raw is not None and bytes(memoryview(raw)[:1]) == b'"' else None
    return found if isinstance(found, str) else ""


def _whole(raw: msgspec.Raw | None) -> int | None:
    text = _bytes(raw)
    if not text[-1:].isdigit() or len(text) > 19:
        return None
    found = _parsed(raw)
    return found if isinstance(found, int) else None


def _parsed(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else _decode_any(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
