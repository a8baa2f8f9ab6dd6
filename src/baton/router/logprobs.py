"""Prompt logprobs: computed by prefill, wanted in decode's answer.

A decode worker never runs the prompt, so its own lists start at the first output token; what
prefill reported is put in front. All other values keep the bytes decode wrote.
Invariant: an answer without the expected fields passes unchanged; one that is not JSON raises
msgspec.DecodeError.
Elsewhere: when this is wanted (requests.py), the two legs (pair.py).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from baton.router import sse

INPUT_KEYS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
CHOICE_KEYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


_Object = dict[str, msgspec.Raw]
_decode_object = msgspec.json.Decoder(_Object).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class PromptLogprobs(Protocol):
    """Knows the prefill leg's lists and puts them in front of decode's."""

    def into_body(self, body: bytes) -> bytes:
        """For a whole answer."""
        ...

    def into_events(self, events: bytes) -> bytes:
        """For a run of whole SSE events."""
        ...


class GenerateLogprobs:
    """For /generate: lists in `meta_info`, which streams repeat in every event."""

    def __init__(self, prefill_body: bytes, is_stream: bool):
        answers = list(sse.payloads(prefill_body)) if is_stream else _answers(prefill_body)
        self._by_index: dict[int, _Object] = {}
        for position, answer in enumerate(answers):
            outer = _decode_object(answer)
            index = _index(outer) if is_stream else position
            if "meta_info" in outer:
                self._by_index[index] = _decode_object(outer["meta_info"])

    def into_body(self, body: bytes) -> bytes:
        if not body.lstrip().startswith(b"["):
            return self._into_answer(body, 0)
        answers = _answers(body)
        # SGLang lists the n samples of a prompt next to each other
        per_prompt = max(1, len(answers) // max(1, len(self._by_index)))
        merged = [self._into_answer(a, i // per_prompt) for i, a in enumerate(answers)]
        return _encode([msgspec.Raw(answer) for answer in merged])

    def into_events(self, events: bytes) -> bytes:
        return _each_event(events, lambda p: self._into_answer(p, _index(_decode_object(p))))

    def _into_answer(self, answer: bytes, index: int) -> bytes:
        prefill = self._by_index.get(index)
        outer = _decode_object(answer)
        if prefill is None or "meta_info" not in outer:
            return answer
        meta = _decode_object(outer["meta_info"])
        for key in INPUT_KEYS:
            if key in prefill:
                _prepend(meta, key, _items(prefill, key))
        outer["meta_info"] = msgspec.Raw(_encode(meta))
        return _encode(outer)


class CompletionLogprobs:
    """For /v1/completions with `echo`: lists in each choice, sent once per stream.

    `num_prefill_tokens`: behind the prompt's entries prefill lists those of the new tokens it
    made, which decode's answer has, too. Decode's `text_offset` counts the echoed prompt.
    """

    def __init__(self, prefill_body: bytes, is_stream: bool, num_prefill_tokens: int):
        self._by_index: dict[int, dict[str, list[msgspec.Raw]]] = {}
        for answer in sse.payloads(prefill_body) if is_stream else [prefill_body]:
            for choice in _choices(_decode_object(answer)):
                self._collect(choice)
        for lists in self._by_index.values():
            for key in lists:
                lists[key] = lists[key][: max(0, len(lists[key]) - num_prefill_tokens)]

    def _collect(self, choice: _Object) -> None:
        logprobs = _logprobs(choice)
        if logprobs is None:
            return
        lists = self._by_index.setdefault(_index(choice), {})
        for key in CHOICE_KEYS:
            lists.setdefault(key, []).extend(_items(logprobs, key))

    def into_body(self, body: bytes) -> bytes:
        return self._into_answer(body)

    def into_events(self, events: bytes) -> bytes:
        return _each_event(events, self._into_answer)

    def _into_answer(self, answer: bytes) -> bytes:
        outer = _decode_object(answer)
        choices = _choices(outer)
        num_changed = sum([self._into_choice(choice) for choice in choices])
        if not num_changed:
            return answer
        outer["choices"] = msgspec.Raw(_encode(choices))
        return _encode(outer)

    def _into_choice(self, choice: _Object) -> bool:
        logprobs = _logprobs(choice)
        lists = None if logprobs is None else self._by_index.pop(_index(choice), None)
        if logprobs is None or lists is None:
            return False
        for key, items in lists.items():
            if items:
                _prepend(logprobs, key, items)
        choice["logprobs"] = msgspec.Raw(_encode(logprobs))
        return True


def _each_event(events: bytes, rewrite: Callable[[bytes], bytes]) -> bytes:
    """Rewrite the JSON objects among `events`; `[DONE]`, errors and comments pass as they are."""
    out = bytearray()
    for line in events.splitlines(keepends=True):
        payload = line[5:].strip() if line.startswith(b"data:") else b""
        if payload.startswith(b"{"):
            out += b"data: " + rewrite(payload) + b"\n"
        else:
            out += line
    return bytes(out)


def _answers(body: bytes) -> list[bytes]:
    if body.lstrip().startswith(b"["):
        return [bytes(answer) for answer in _decode_list(body)]
    return [body]


def _choices(outer: Mapping[str, msgspec.Raw]) -> list[_Object]:
    raw = outer.get("choices")
    return [] if raw is None else [_decode_object(choice) for choice in _decode_list(raw)]


def _logprobs(choice: _Object) -> _Object | None:
    raw = choice.get("logprobs")
    return None if raw is None or bytes(raw) == b"null" else _decode_object(raw)


def _index(outer: _Object) -> int:
    raw = outer.get("index")
    return int(bytes(raw)) if raw is not None and bytes(raw).isdigit() else 0


def _items(outer: _Object, key: str) -> list[msgspec.Raw]:
    raw = outer.get(key)
    return [] if raw is None or bytes(raw) == b"null" else _decode_list(raw)


def _prepend(outer: _Object, key: str, items: list[msgspec.Raw]) -> None:
    outer[key] = msgspec.Raw(_encode([*items, *_items(outer, key)]))
