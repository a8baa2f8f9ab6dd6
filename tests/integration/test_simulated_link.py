"""`--simulate-link` on real workers: the same tokens, later."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.testing.processes import EventStream, Server, router, running, wait_until, worker

DELAY_S = 0.4
BITS_PER_S = 10e6
SENT = "baton:transfer_bytes_total"
LINK = "10Mbps,400ms"
TOKEN_BYTES = 2 * 3 * 2 * 16 * 2
"""K and V of the tiny model: layers, kv heads, head dimension, bytes of a bfloat16."""
LONG_PROMPT = [5 + i * 7 % 200 for i in range(2000)]
Pairs = tuple[Server, Server, Server, Server]
PROMPTS: list[list[int]] = [[9], [5 + i for i in range(40)], LONG_PROMPT]


@pytest.fixture(scope="module", params=["shm", "tcp"])
def pairs(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pairs]:
    """Routers of a pair at full speed and of one behind a link; the latter's workers."""
    folder = tmp_path_factory.mktemp("link")
    options = ["--max-total-tokens=8192"]
    options.append(f"--disaggregation-transfer-backend={request.param}")
    plain = [worker(role, tiny_model, folder, *options) for role in ("prefill", "decode")]
    options.append(f"--simulate-link={LINK}")
    slow = [worker(role, tiny_model, folder, *options) for role in ("prefill", "decode")]
    fronts = router(plain, folder), router(slow, folder)
    with running(*plain, *slow, *fronts):
        yield (*fronts, *slow)


def generate(front: Server, prompt: list[int]) -> list[int]:
    sampling: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "sampling_seed": 3}
    status, answer = front.post("/generate", {"input_ids": prompt, "sampling_params": sampling})
    assert status == 200, answer
    return answer["output_ids"]  # type: ignore[no-any-return]


def metric(server: Server, name: str) -> float:
    lines = str(server.get("/metrics")[1]).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_the_tokens_are_the_same(pairs: Pairs, prompt: list[int]) -> None:
    plain, slow, *_ = pairs
    assert generate(slow, prompt) == generate(plain, prompt)


def test_the_first_token_of_a_long_prompt_waits_for_the_link(
    pairs: Pairs,
) -> None:
    _, slow, prefill, decode = pairs
    prompt = [7, *LONG_PROMPT]  # decode has none of its blocks
    num_bytes = -(-len(prompt) // 16) * 16 * TOKEN_BYTES
    before = metric(prefill, SENT)
    sampling = {"max_new_tokens": 4, "temperature": 0}
    started_s = time.monotonic()
    stream = EventStream(slow, "/generate", {"input_ids": prompt, "sampling_params": sampling})
    next(iter(stream.events()))
    ttft_s = time.monotonic() - started_s
    stream.close()
    assert ttft_s >= DELAY_S + 8 * num_bytes / BITS_PER_S
    wait_until(lambda: metric(prefill, SENT) == before + num_bytes, "all bytes are counted")
    verified = "baton:kv_blocks_verified_total"
    wait_until(lambda: metric(decode, verified) >= num_bytes / (16 * TOKEN_BYTES), "verified")
    assert metric(decode, "baton:kv_blocks_damaged_total") == 0
