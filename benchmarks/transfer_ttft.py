"""What the hand-over adds to the time to first token: prefill and decode apart, against one worker.

    python benchmarks/transfer_ttft.py [--backend shm] [--tokens 2000] [--rounds 15]

Starts a unified worker, and a prefill and a decode worker, on this machine with the default model
and asks them in turn, without a router, so that both ways have the same HTTP in them. Prompts are
random token ids from fixed seeds, never the same twice, so no prefix cache helps. Pools hold three
prompts, and the warm-up goes through them once: the first write to memory that nobody has touched
is slow, which is a server's start and not its hand-over. The order changes from round to round.

Prints the median of each way, the median of the differences within rounds, and their quartiles; and
how long prefill still wrote after it had computed, which is the most that sending layer by layer
instead of chunk by chunk could save.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from baton.testing.processes import Server, running, worker

# Passive waiting in all three: `serve` gives a lone unified worker a spin of its own.
PASSIVE = {"GOMP_SPINCOUNT": "0"}
POOL_PROMPTS = 3
WARM_UP_ROUNDS = 2 * POOL_PROMPTS


@dataclass(frozen=True)
class Unified:
    """One worker that does both."""

    server: Server
    name: str = field(default="unified", init=False)

    async def first_token_s(self, session: aiohttp.ClientSession, body: dict[str, object]) -> float:
        started_s = time.perf_counter()
        return await first_event(session, self.server, body) - started_s


@dataclass(frozen=True)
class Apart:
    """A prefill and a decode worker; the client speaks to both, as a router would."""

    prefill: Server
    decode: Server
    name: str = field(default="apart", init=False)

    async def first_token_s(self, session: aiohttp.ClientSession, body: dict[str, object]) -> float:
        pair = {
            **body,
            "bootstrap_host": self.prefill.host,
            "bootstrap_port": self.prefill.bootstrap_port,
            "bootstrap_room": random.getrandbits(62),
        }
        started_s = time.perf_counter()
        prefill_leg = asyncio.create_task(first_event(session, self.prefill, pair))
        first_s = await first_event(session, self.decode, pair)
        await prefill_leg
        return first_s - started_s


async def first_event(
    session: aiohttp.ClientSession, server: Server, body: dict[str, object]
) -> float:
    """When the first token came, after the answer has been read to its end."""
    first_s = 0.0
    async with session.post(f"{server.url}/generate", data=json.dumps(body)) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {") and not first_s:
                first_s = time.perf_counter()
    return first_s


def body_of(num_tokens: int, seed: int) -> dict[str, object]:
    draw = random.Random(seed)
    return {
        "input_ids": [draw.randrange(1000, 20000) for _ in range(num_tokens)],
        "sampling_params": {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True},
        "stream": True,
    }


async def writing_s(session: aiohttp.ClientSession, prefill: Server) -> tuple[int, float]:
    """How many prompts were written to their end, and the seconds after they had been computed."""
    async with session.get(f"{prefill.url}/metrics") as answer:
        text = await answer.text()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("stage") == "writing"
    }
    stage = "baton:handover_stage_seconds"
    return int(values.get(f"{stage}_count", 0)), values.get(f"{stage}_sum", 0.0)


async def measure(
    ways: list[Unified | Apart], prefill: Server, num_tokens: int, rounds: int
) -> None:
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    async with aiohttp.ClientSession() as session:
        for number in range(-WARM_UP_ROUNDS, rounds):
            if number == 0:
                before = await writing_s(session, prefill)
            for way in ways if number % 2 else reversed(ways):
                seed = 2 * (number + WARM_UP_ROUNDS) + ways.index(way)
                took_s = await way.first_token_s(session, body_of(num_tokens, seed))
                if number >= 0:
                    seconds[way.name].append(took_s)
        await asyncio.sleep(1.5)  # an idle engine tells its counters once a second
        after = await writing_s(session, prefill)
    report(seconds, num_tokens)
    mean_s = (after[1] - before[1]) / max(1, after[0] - before[0])
    print(f"prefill wrote {mean_s * 1e3:.2f} ms longer than it computed, on average")


def report(seconds: dict[str, list[float]], num_tokens: int) -> None:
    for name, values in seconds.items():
        print(f"{name}: TTFT p50 {statistics.median(values) * 1e3:.1f} ms at {num_tokens} tokens")
    added = [
        apart - unified for unified, apart in zip(seconds["unified"], seconds["apart"], strict=True)
    ]
    low, middle, high = statistics.quantiles(added, n=4)
    share = middle / statistics.median(seconds["unified"])
    print(
        f"the hand-over adds {middle * 1e3:.1f} ms (quartiles {low * 1e3:.1f} to "
        f"{high * 1e3:.1f}), {share:.1%} of it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="shm", help="KV transport (default: shm)")
    parser.add_argument("--simulate-link", help="as of `baton serve`, for example 10Gbps,1ms")
    parser.add_argument("--tokens", type=int, default=2000, help="length of a prompt")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        backend = f"--disaggregation-transfer-backend={options.backend}"
        link = [f"--simulate-link={options.simulate_link}"] if options.simulate_link else []
        pool = f"--max-total-tokens={POOL_PROMPTS * (options.tokens + 64)}"
        servers = {
            role: worker(role, options.model, Path(folder), backend, pool, *link)
            for role in ("null", "prefill", "decode")
        }
        for server in servers.values():
            server.argv.remove("--verify-kv")
            server.environ.update(PASSIVE)
        with running(*servers.values()):
            ways: list[Unified | Apart] = [
                Unified(servers["null"]),
                Apart(servers["prefill"], servers["decode"]),
            ]
            asyncio.run(measure(ways, servers["prefill"], options.tokens, options.rounds))


if __name__ == "__main__":
    main()
