"""Chat templates: what they may use, and that their failures are the client's answer."""

from datetime import datetime

import pytest

from baton.core.errors import RequestError
from baton.tokenizer.chat_template import ChatTemplate

USER = [{"role": "user", "content": " hi <b> "}]


def render(source, messages=USER, **options):
    template = ChatTemplate(source, {"bos_token": "<s>"}, now=lambda: datetime(2024, 7, 26))
    return template.render(messages, **options)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s> hi <b> "),
        ("{% if add_generation_prompt %}\nyes{% endif %}", "yes"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ('{{ strftime_now("%d %b %Y") }}', "26 Jul 2024"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": " hi <b> "}]'),
        ('{{ {"é": 1} | tojson(indent=1) }}', '{\n "é": 1\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}body{% endgeneration %}!", "body!"),
        ("{{ tools }}{{ documents }}{{ nothing }}", "NoneNone"),
    ],
)
def test_what_templates_may_use(source, expected):
    assert render(source) == expected


def test_tools_and_extra_names_reach_the_template():
    tools = [{"type": "function", "function": {"name": "f"}}]
    source = "{{ tools[0].function.name }} {{ enable_thinking }}"
    assert render(source, tools=tools, enable_thinking=False) == "f False"


def test_extra_names_cannot_replace_the_messages():
    assert render("{{ messages[0].role }}", tools=None, bos_token="x") == "user"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
        "{{ nothing.x }}",
        "{{ messages.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_failures_name_the_messages(source):
    with pytest.raises(RequestError, match="chat template refuses") as caught:
        render(source)
    assert caught.value.param == "messages"
    assert caught.value.status == 400


def test_the_templates_own_message_is_passed_on():
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_template_that_does_not_compile_says_so():
    with pytest.raises(RequestError, match=r"does not compile .*use /v1/completions"):
        render("{% if %}")


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
TRIMMED = TURNS.replace("m.content", "m.content | trim")
PARTS = TURNS.replace("m.content", "m.content[-1].text")


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (TURNS, "Once upon ", "[user]a[/][assistant]Once upon "),
        (TURNS, "", "[user]a[/][assistant]"),
        (TRIMMED, " Once upon ", "[user]a[/][assistant]Once upon"),
    ],
)
def test_the_final_message_can_be_left_open(source, content, expected):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    assert render(source, messages, continue_final_message=True) == expected
    assert messages[1]["content"] == content


def test_the_final_part_can_be_left_open():
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "so "}]}]
    assert render(PARTS, messages, continue_final_message=True) == "[assistant]so "
    assert messages[0]["content"][0]["text"] == "so "


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": []}]])
def test_nothing_to_continue_is_refused(messages):
    with pytest.raises(RequestError, match="final message"):
        render(TURNS, messages, continue_final_message=True)


def test_a_template_that_drops_the_final_message_cannot_continue_it():
    with pytest.raises(RequestError, match="leaves the final message out"):
        render("{{ messages[0].role }}", continue_final_message=True)
