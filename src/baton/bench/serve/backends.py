"""The dialects of servers: what a request's body says, and what an event of the answer brings.

    sglang, sglang-native  /generate; text so far, `meta_info`
    sglang-oai, vllm       /v1/completions; usage in every event
    llama.cpp              /v1/completions; `timings` in every event
    openai                 /v1/completions; only what OpenAI has
    each with -chat        /v1/chat/completions

Elsewhere: sending (exchange.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from baton.bench.serve.config import TargetConfig
from baton.bench.serve.sessions import Content
from baton.core.errors import ConfigError

Json = dict[str, Any]


class Part(msgspec.Struct, frozen=True, gc=False):
    """What an event, or a whole answer, brings. Numbers are of the answer so far, None where the
    server does not say; `text` is what to add, or the text so far where `is_cumulative`."""

    text: str = ""
    is_cumulative: bool = False
    num_output: int | None = None
    num_input: int | None = None
    num_cached: int | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass
class History:
    """The turns of a session so far and their answers; the last question is in it."""

    contents: list[Content] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def prompt(self) -> Content:
        """All of it as one prompt, for servers that know no messages."""
        if len(self.contents) == 1:
            return self.contents[0]
        text = ""
        for content, answer in zip(self.contents, [*self.answers, ""], strict=True):
            assert isinstance(content, str)
            text += content + answer
        return text

    def messages(self) -> list[Json]:
        messages: list[Json] = []
        for number, content in enumerate(self.contents):
            messages.append({"role": "user", "content": content})
            if number < len(self.answers):
                messages.append({"role": "assistant", "content": self.answers[number]})
        return messages


class Backend(Protocol):
    """`takes_ids`: whether a prompt may be token ids."""

    path: str
    takes_ids: bool

    def body(self, history: History, num_output: int) -> Json: ...

    def read(self, event: Json) -> Part: ...


def make_backend(config: TargetConfig, model: str) -> Backend:
    """Raises ConfigError for an --extra-request-body that is no JSON object."""
    extra = parse_extra(config.extra_request_body)
    if config.backend in ("sglang", "sglang-native"):
        return SglangNative(config, extra)
    if config.backend.endswith("-chat"):
        return Chat(config, model, extra)
    return Completions(config, model, extra)


def parse_extra(text: str | None) -> Json:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"--extra-request-body {text!r} is no JSON object ({error}); try '{{\"top_p\": 0.9}}'"
        ) from error


def merged(body: Json, extra: Mapping[str, Any]) -> Json:
    """`extra` over `body`, objects inside it too; null takes a field away."""
    result = dict(body)
    for name, value in extra.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


class SglangNative:
    """POST /generate."""

    path: str = "/generate"
    takes_ids: bool = True

    def __init__(self, config: TargetConfig, extra: Json):
        self._config = config
        self._extra = extra

    def body(self, history: History, num_output: int) -> Json:
        prompt = history.prompt()
        sampling: Json = {"temperature": 0.0, "max_new_tokens": num_output}
        if not self._config.disable_ignore_eos:
            sampling["ignore_eos"] = True
        body: Json = {
            "text" if isinstance(prompt, str) else "input_ids": prompt,
            "sampling_params": sampling,
            "stream": not self._config.disable_stream,
        }
        return merged(body, self._extra)

    def read(self, event: Json) -> Part:
        if (error := error_text(event)) is not None:
            return Part(error=error)
        meta = _object(event.get("meta_info"))
        finish = meta.get("finish_reason")
        kind = finish.get("type") if isinstance(finish, dict) else finish
        return Part(
            text=str(event.get("text") or ""),
            is_cumulative=True,
            num_output=_number(meta.get("completion_tokens")),
            num_input=_number(meta.get("prompt_tokens")),
            num_cached=_number(meta.get("cached_tokens")),
            finish_reason=kind,
            error=_abort(finish, kind),
        )


class Completions:
    """POST /v1/completions."""

    path: str = "/v1/completions"
    takes_ids: bool = True
    _length_field: str = "max_tokens"

    def __init__(self, config: TargetConfig, model: str, extra: Json):
        self._config = config
        self._dialect = config.backend.removesuffix("-chat")
        self._model = model
        self._extra = extra

    def body(self, history: History, num_output: int) -> Json:
        body: Json = {"model": self._model, **self._prompt(history)}
        body |= {self._length_field: num_output, "temperature": 0.0}
        body["stream"] = not self._config.disable_stream
        if self._dialect != "openai" and not self._config.disable_ignore_eos:
            body["ignore_eos"] = True
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
            # Several tokens may share an event: each of these makes a server say how many.
            if self._dialect in ("sglang-oai", "vllm"):
                body["stream_options"]["continuous_usage_stats"] = True
            elif self._dialect == "llama.cpp":
                body["timings_per_token"] = True
        return merged(body, self._extra)

    def read(self, event: Json) -> Part:
        if (error := error_text(event)) is not None:
            return Part(error=error)
        choices = event.get("choices")
        choice = _object(choices[0]) if isinstance(choices, list) and choices else {}
        usage, timings = _object(event.get("usage")), _object(event.get("timings"))
        details = _object(usage.get("prompt_tokens_details"))
        reason = choice.get("finish_reason")
        return Part(
            text=self._text(choice),
            num_output=_number(usage.get("completion_tokens", timings.get("predicted_n"))),
            num_input=_number(usage.get("prompt_tokens")),
            num_cached=_number(details.get("cached_tokens", timings.get("cache_n"))),
            finish_reason=reason,
            error="the server aborted the answer" if reason == "abort" else None,
        )

    def _prompt(self, history: History) -> Json:
        return {"prompt": history.prompt()}

    def _text(self, choice: Json) -> str:
        return str(choice.get("text") or "")


class Chat(Completions):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"
    takes_ids = False

    def __init__(self, config: TargetConfig, model: str, extra: Json):
        super().__init__(config, model, extra)
        # llama.cpp's server knows the old name alone.
        self._length_field = (
            "max_tokens" if self._dialect == "llama.cpp" else "max_completion_tokens"
        )

    def _prompt(self, history: History) -> Json:
        return {"messages": history.messages()}

    def _text(self, choice: Json) -> str:
        message = _object(choice.get("delta")) or _object(choice.get("message"))
        return str(message.get("content") or message.get("reasoning_content") or "")


def error_text(event: Json) -> str | None:
    """What an error event or body says, None when it is none."""
    error = event.get("error")
    if error is None:
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)


_NO_OBJECT: Final[Json] = {}


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else _NO_OBJECT


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _abort(finish: Any, kind: Any) -> str | None:
    if kind != "abort":
        return None
    message = finish.get("message") if isinstance(finish, dict) else None
    return str(message or "the server aborted the answer")
