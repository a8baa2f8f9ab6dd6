"""Greedy text is the same from one worker as from prefill and decode apart.

50 prompts of real prose, from 10 to 3,000 tokens (the topics of Python's own manual, shipped with
the interpreter), sent a few at a time, so that batches and chunks differ between the two.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from baton.checkpoint import default_cache_dir, resolve_model
from baton.testing.processes import Server, wait_until
from baton.tokenizer import load_tokenizer

NUM_PROMPTS = 50
NUM_NEW = 24


def real_prompts() -> list[str]:
    """Texts whose token counts are spread evenly on a log scale."""
    path = resolve_model(None, cache_dir=default_cache_dir(os.environ))
    tokenizer = load_tokenizer(path)
    token_ids = tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)))
    lengths = np.geomspace(10, 3000, NUM_PROMPTS).astype(int)
    starts = np.linspace(0, len(token_ids) - 3000, NUM_PROMPTS).astype(int)
    return [tokenizer.decode(token_ids[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def ask(server: Server, prompt: str) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": NUM_NEW, "ignore_eos": True}
    status, answer = server.post("/generate", {"text": prompt, "sampling_params": sampling})
    assert status == 200, answer
    return answer  # type: ignore[no-any-return]


@pytest.mark.timeout(900)  # 54,000 prompt tokens on the reference ops
def test_greedy_text_is_equal(smol_pd: tuple[Server, Server, Server], smol_unified: Server) -> None:
    front, prefill, decode = smol_pd
    prompts = real_prompts()
    with ThreadPoolExecutor(4) as pool:
        apart = list(pool.map(lambda prompt: ask(front, prompt), prompts))
    with ThreadPoolExecutor(2) as pool:
        whole = list(pool.map(lambda prompt: ask(smol_unified, prompt), prompts))
    lengths = [answer["meta_info"]["prompt_tokens"] for answer in whole]
    print(f"prompt tokens: {min(lengths)} to {max(lengths)}, {sum(lengths)} in all")
    assert min(lengths) <= 12
    assert max(lengths) >= 2900
    for one, other in zip(apart, whole, strict=True):
        assert one["output_ids"] == other["output_ids"]
        assert one["text"] == other["text"]
        assert one["meta_info"]["prompt_tokens"] == other["meta_info"]["prompt_tokens"]
    for server in (prefill, decode, smol_unified):
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")
