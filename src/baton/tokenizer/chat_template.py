"""Rendering a conversation into the text a chat model was trained on.

A template is a small program that comes with the model. It runs in Jinja's sandbox, without
access to Python, and sees what Hugging Face's own rendering shows it.
Invariant: whatever a template does with a client's messages, the client gets text or a
RequestError with param "messages".
Elsewhere: tokenizing the result (tokenizer.py), the messages' schema (api/).
"""

import copy
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from baton.core.errors import RequestError

if TYPE_CHECKING:
    import jinja2

_CUT_MARK: Final = "\u2063cut-here\u2063 "
"""Put after the last message to find where it ends. Its closing space tells whether the template
trims contents."""


class ChatTemplate:
    """A compiled template. `special_tokens` are the names it may use, such as "bos_token"."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ):
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._template = _compile(source, now)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> str:
        """The prompt's text. `continue_final_message` leaves the last message open, so that the
        model goes on with it; no generation prompt is added then."""
        if not continue_final_message:
            return self._run(messages, add_generation_prompt, tools, template_kwargs)
        marked = _mark_end(messages)
        text = self._run(marked, False, tools, template_kwargs)
        return _cut_at_mark(text)

    def _run(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None,
        template_kwargs: dict[str, Any],
    ) -> str:
        names = {"documents": None, **self._special_tokens, **template_kwargs}
        names |= {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(names)
        except Exception as error:  # the template is the model's program: it may raise anything
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _compile(source: str, now: Callable[[], datetime]) -> "jinja2.Template":
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from baton.tokenizer.jinja_tags import GenerationTag

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", GenerationTag],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise RequestError(
            f"the model's chat template does not compile ({error}); use /v1/completions",
            code="chat_template_invalid",
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like json.dumps: Jinja's own filter escapes <, > and & for HTML, which models never saw."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _mark_end(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy whose last message's text ends with the mark."""
    if not messages:
        raise RequestError("there is no final message to continue", param="messages")
    final = copy.deepcopy(messages[-1])
    content = final.get("content")
    if isinstance(content, str):
        final["content"] = content + _CUT_MARK
        return [*messages[:-1], final]
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                part["text"] += _CUT_MARK
                return [*messages[:-1], final]
    raise RequestError("the final message has no text to continue", param="messages")


def _cut_at_mark(text: str) -> str:
    trimmed_mark = _CUT_MARK.rstrip()
    position = text.rfind(trimmed_mark)
    if position < 0:
        raise RequestError(
            "the model's chat template leaves the final message out, so it cannot be continued",
            param="messages",
        )
    is_whole = text.startswith(_CUT_MARK, position)
    return text[:position] if is_whole else text[:position].rstrip()
