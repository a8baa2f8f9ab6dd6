"""Prefill and decode speed of any running OpenAI-compatible server, over its streaming HTTP API.

    python benchmarks/peers/http_load.py http://127.0.0.1:8000 --engine Baton --format Q4_1

Prefill: prompt tokens divided by the time to the first token, one request at a time. Decode: all
streams start together; counted are the tokens that arrive from the moment the last stream has its
first token until the first stream ends, so that no prompt is computed meanwhile. Greedy, end
tokens ignored, prompts random token ids that no prefix cache has seen.

The client shares the cores with the server. Elsewhere: lengths and streams (workload.py).
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import aiohttp
from report import Engine, Samples, emit, run_script_parser, start, summarize
from workload import (
    ANSWER_TOKENS,
    DECODE_NEW_TOKENS,
    DECODE_PROMPT_TOKENS,
    DECODE_STREAMS,
    PREFILL_TOKENS,
    QUESTION,
    prompt_ids,
)

METHOD: Final = "HTTP, streaming completions; client on the same cores"
_NUM_WARM_UPS: Final = 2
_TIMEOUT_S: Final = 600


class LoadError(RuntimeError):
    """A server's answer that cannot be measured."""


@dataclass
class Arrivals:
    """When one stream's tokens came: `(time_s, num_tokens)`, the tokens so far after each event."""

    events: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        return self.events[0][0]

    @property
    def last_s(self) -> float:
        return self.events[-1][0]

    def num_tokens_at(self, time_s: float) -> int:
        return max((tokens for at_s, tokens in self.events if at_s <= time_s), default=0)


def steady_tokens_per_s(streams: Sequence[Arrivals]) -> float:
    """Tokens/s summed over `streams` while all of them were running. Raises LoadError when there
    was no such time."""
    begin_s = max(each.first_s for each in streams)
    end_s = min(each.last_s for each in streams)
    if end_s <= begin_s:
        raise LoadError("the first stream ended before the last began: too few slots?")
    tokens = sum(each.num_tokens_at(end_s) - each.num_tokens_at(begin_s) for each in streams)
    return tokens / (end_s - begin_s)


class Client:
    """One server under load. Prompts are never repeated within its life."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str):
        self._session = session
        self._url = url
        self._model = model
        self._seeds = count()

    async def prefill_tokens_per_s(self, num_prompt: int) -> float:
        started_s = time.perf_counter()
        arrivals = await self._stream(num_prompt, 1)
        return num_prompt / (arrivals.first_s - started_s)

    async def decode_tokens_per_s(self, num_streams: int) -> float:
        streams = (
            self._stream(DECODE_PROMPT_TOKENS, DECODE_NEW_TOKENS) for _ in range(num_streams)
        )
        return steady_tokens_per_s(await asyncio.gather(*streams))

    async def answer(self) -> str:
        """How the model goes on, greedily, after QUESTION."""
        body = {
            "model": self._model,
            "prompt": QUESTION,
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
        }
        async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
            await _check(answer)
            text: str = (await answer.json())["choices"][0]["text"]
            return text

    async def _stream(self, num_prompt: int, num_new: int) -> Arrivals:
        body = {
            "model": self._model,
            "prompt": prompt_ids(num_prompt, next(self._seeds)),
            "max_tokens": num_new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            # Several tokens may share an event: each of these makes a server say how many.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "timings_per_token": True,
        }
        arrivals = Arrivals()
        async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
            await _check(answer)
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise LoadError(f"{self._url}: {event['error']}")
                    if event.get("choices"):
                        _note(event, arrivals)
        num_tokens = arrivals.events[-1][1] if arrivals.events else 0
        if num_tokens != num_new:
            raise LoadError(f"{self._url} made {num_tokens} tokens instead of {num_new}")
        return arrivals


def _note(event: dict[str, Any], arrivals: Arrivals) -> None:
    now_s = time.perf_counter()
    before = arrivals.events[-1][1] if arrivals.events else 0
    so_far = _tokens_so_far(event)
    if so_far is None:
        is_text = bool(event["choices"][0].get("text"))
        so_far = before + is_text
    if so_far > before:
        arrivals.events.append((now_s, so_far))


def _tokens_so_far(event: dict[str, Any]) -> int | None:
    """What the server says: vLLM in `usage`, llama.cpp in `timings`, others not at all."""
    usage, timings = event.get("usage") or {}, event.get("timings") or {}
    number = usage.get("completion_tokens", timings.get("predicted_n"))
    return number if isinstance(number, int) else None


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        raise LoadError(f"{answer.url} answered {answer.status}: {(await answer.text())[:300]}")


async def measure(url: str, model: str, repetitions: int) -> tuple[Samples, Samples, str]:
    """Prefill samples, decode samples and the answer to the question, from the server at `url`."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    # No reuse of connections: llama-server closes kept ones while a request may be on its way.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = Client(session, url.rstrip("/"), model)
        answer = await client.answer()
        for _ in range(_NUM_WARM_UPS):
            await client.prefill_tokens_per_s(max(PREFILL_TOKENS))
            await client.decode_tokens_per_s(max(DECODE_STREAMS))
        prefill: dict[int, list[float]] = {size: [] for size in PREFILL_TOKENS}
        decode: dict[int, list[float]] = {size: [] for size in DECODE_STREAMS}
        for _ in range(repetitions):  # in turn, so that a slow minute touches every figure
            for num_tokens, into in prefill.items():
                into.append(await client.prefill_tokens_per_s(num_tokens))
            for num_streams, into in decode.items():
                into.append(await client.decode_tokens_per_s(num_streams))
    return prefill, decode, answer


def main() -> None:
    parser = run_script_parser(__doc__)
    parser.add_argument("url", help="of the running server, which pins itself")
    parser.add_argument("--model", default="default", help="model name to send")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--version", default="unknown")
    parser.add_argument("--format", required=True)
    flags = start(parser)
    prefill, decode, answer = asyncio.run(measure(flags.url, flags.model, flags.repetitions))
    engine = Engine(flags.engine, flags.version, flags.format, METHOD, answer)
    emit(summarize(engine, prefill, decode, other_cores=None), flags.json)


if __name__ == "__main__":
    try:
        main()
    except (LoadError, aiohttp.ClientError) as error:
        sys.exit(f"error: {error}")
