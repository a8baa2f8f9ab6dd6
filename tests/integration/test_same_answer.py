"""A client cannot tell one worker from a pair: whole answers are equal, field for field.

What may differ: ids, times, and how many prompt tokens a cache happened to hold. The events of
several samples may also come in another order, so streams are compared sample by sample.
Elsewhere: many random requests, bit for bit (test_exactness.py), the official client
(test_openai_client.py).
"""

import http.client
import json
from collections import defaultdict
from typing import Any

import pytest

from baton.testing.processes import Server, wait_until

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
MAY_DIFFER = frozenset({"id", "created", "e2e_latency", "cached_tokens"})

CAPITAL = {"role": "user", "content": "What is the capital of France?"}
SKY = "The sky is"
GREEDY: dict[str, Any] = {"temperature": 0}
NULLS = dict.fromkeys(
    ["stop", "logit_bias", "stream_options", "n", "seed", "tools", "response_format", "top_p"]
)
TALK: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    CAPITAL,
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": [{"type": "text", "text": "And of Spain?"}]},
]
ODD_TEXT = "👩‍👩‍👧‍👦 \x00 e\u0301 שלום \ufffd \U0010ffff"


def chat(*messages: dict[str, Any], **options: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": messages or [CAPITAL], "max_tokens": 8, **options}


def completion(prompt: Any = SKY, **options: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": prompt, "max_tokens": 5, **options}


def native(text: Any = SKY, sampling: Any = None, **options: Any) -> tuple[str, dict[str, Any]]:
    sampling_params = {**GREEDY, "max_new_tokens": 5, **(sampling or {})}
    return GENERATE, {"text": text, "sampling_params": sampling_params, **options}


SEEDED = {"temperature": 1, "seed": 7}
REQUESTS = {
    "chat": chat(**GREEDY),
    "chat, nulls": chat(**NULLS, **GREEDY),
    "chat, several turns": chat(*TALK, **GREEDY),
    "chat, odd text": chat({"role": "user", "content": ODD_TEXT}, **GREEDY),
    "chat, one token": chat(**GREEDY, max_completion_tokens=1),
    "chat, stop string": chat(**GREEDY, stop=["France", "x"]),
    "chat, stop string in the first token": chat(**GREEDY, stop="The"),
    "chat, penalties": chat(**GREEDY, frequency_penalty=1.5, presence_penalty=0.5, max_tokens=16),
    "chat, logit bias": chat(**GREEDY, logit_bias={"504": -100}),
    "chat, logprobs": chat(**GREEDY, logprobs=True, top_logprobs=3),
    "chat, seeded choices": chat(**SEEDED, n=3, top_p=0.9),
    "chat, min_tokens": chat(**GREEDY, min_tokens=12, max_tokens=12),
    "chat, continued": chat(
        CAPITAL, {"role": "assistant", "content": "The capital"}, **GREEDY,
        continue_final_message=True,
    ),
    "chat, stream": chat(**GREEDY, stream=True, stream_options={"include_usage": True}),
    "chat, stream of choices": chat(**SEEDED, n=2, stream=True),
    "chat, stream, logprobs": chat(**GREEDY, stream=True, logprobs=True, top_logprobs=1),
    "chat, no messages": chat(messages=[]),
    "chat, too long": chat(**GREEDY, max_tokens=10**6),
    "chat, unknown model": chat(model="gpt-4"),
    "completion, token ids": completion([504, 2365, 282], **GREEDY),
    "completion, list": completion([SKY, "A"], **SEEDED, n=2),
    "completion, echo": completion(**GREEDY, echo=True),
    "completion, echo, logprobs": completion(**GREEDY, echo=True, logprobs=2),
    "completion, scored only": completion(**GREEDY, echo=True, logprobs=1, max_tokens=0),
    "completion, stream": completion([SKY, "A"], **GREEDY, stream=True),
    "completion, wrong id": completion([10**6]),
    "generate": native(),
    "generate, list": native([SKY, "A"], {"n": 2, "temperature": 1, "seed": 3}),
    "generate, stop token": native(sampling={"stop_token_ids": [28]}),
    "generate, logprobs": native(return_logprob=True, top_logprobs_num=2, logprob_start_len=0),
    "generate, logprobs of some": native(
        [SKY, "A"], return_logprob=[True, False], top_logprobs_num=[1, 0], logprob_start_len=1
    ),
    "generate, stream, logprobs": native(return_logprob=True, logprob_start_len=0, stream=True),
    "generate, nothing new": native(sampling={"max_new_tokens": 0}),
    "generate, wrong field": native(sampling={"temperature": -1}),
}  # fmt: skip


def ask(server: Server, path: str, body: dict[str, Any]) -> tuple[int, str, Any]:
    """Status, content type, and the answer or the list of its events."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        kind, payload = answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()
    return answer.status, kind, _events(payload) if "event-stream" in kind else json.loads(payload)


def _events(payload: bytes) -> dict[str, list[Any]]:
    """The events of every sample in their order, and those of none."""
    *events, last = [line[6:] for line in payload.splitlines() if line.startswith(b"data: ")]
    assert last == b"[DONE]"
    by_sample = defaultdict(list)
    for event in map(json.loads, events):
        indices = [choice["index"] for choice in event.get("choices", [])]
        by_sample[str(indices or event.get("index"))].append(event)
    return dict(by_sample)


def comparable(value: Any) -> Any:
    """The same with what may differ made equal; that it is there still counts."""
    if isinstance(value, dict):
        return {
            key: type(item).__name__ if key in MAY_DIFFER else comparable(item)
            for key, item in value.items()
        }
    return [comparable(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", REQUESTS)
def test_one_worker_and_a_pair_answer_alike(
    smol_pd: tuple[Server, Server, Server], smol_unified: Server, name: str
) -> None:
    path, body = REQUESTS[name]
    apart, whole = ask(smol_pd[0], path, body), ask(smol_unified, path, body)
    assert comparable(list(apart)) == comparable(list(whole))


def test_nothing_is_left_behind(
    smol_pd: tuple[Server, Server, Server], smol_unified: Server
) -> None:
    for server in (*smol_pd[1:], smol_unified):
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")
