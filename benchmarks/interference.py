"""How much do long prompts disturb running streams? Over public HTTP, against any running server.

Four streams write 1,200 tokens each while six prompts of 1,000 tokens arrive one after the other:

    baton serve --port 8455 --workers 1p1d &
    python benchmarks/interference.py http://127.0.0.1:8455

Prints the streams' inter-token latency and both kinds' time to first token. Prompts are random
token ids from fixed seeds, so a freshly started server has none of them in its prefix cache.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field

import aiohttp

NUM_STREAMS, STREAM_TOKENS, STREAM_PROMPT = 4, 1200, 60
NUM_LONG, LONG_PROMPT, PAUSE_S = 6, 1000, 0.5


@dataclass
class Samples:
    ttft_s: list[float] = field(default_factory=list)
    itl_s: list[float] = field(default_factory=list)


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    num_prompt: int,
    num_new: int,
    seed: int,
    into: Samples,
) -> None:
    """One greedy request of random tokens; notes when each of its tokens came."""
    draw = random.Random(seed)
    body = {
        "input_ids": [draw.randrange(1000, 20000) for _ in range(num_prompt)],
        "sampling_params": {"temperature": 0, "max_new_tokens": num_new, "ignore_eos": True},
        "stream": True,
    }
    last_s = started_s = time.perf_counter()
    is_first = True
    async with session.post(f"{url}/generate", data=json.dumps(body)) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                now_s = time.perf_counter()
                if is_first:
                    into.ttft_s.append(now_s - started_s)
                else:
                    into.itl_s.append(now_s - last_s)
                last_s, is_first = now_s, False


def at(share: float, values: list[float]) -> float:
    """Percentile by nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def main(url: str) -> None:
    streams, longs = Samples(), Samples()
    limit = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=limit) as session:
        await stream(session, url, STREAM_PROMPT, 4, seed=999, into=Samples())  # warm-up

        async def disturb() -> None:
            for number in range(NUM_LONG):
                await asyncio.sleep(PAUSE_S)
                await stream(session, url, LONG_PROMPT, 4, seed=100 + number, into=longs)

        await asyncio.gather(
            disturb(),
            *(
                stream(session, url, STREAM_PROMPT, STREAM_TOKENS, seed=number, into=streams)
                for number in range(NUM_STREAMS)
            ),
        )
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    itl = ", ".join(f"{name} {at(p, streams.itl_s) * 1e3:.0f}" for name, p in shares.items())
    print(f"inter-token latency of the streams, ms: {itl}")
    print(f"time to first token, s: streams p50 {at(0.5, streams.ttft_s):.2f}, ", end="")
    print(f"long prompts mean {sum(longs.ttft_s) / len(longs.ttft_s):.2f}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/")))
