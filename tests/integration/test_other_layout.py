"""Workers whose KV blocks do not look alike: told at once, by name, without harm to others."""

import re
import time
from pathlib import Path

from baton.testing.processes import Server, router, running, wait_until, worker

REFUSED = re.compile(r'baton:refused_connections_total\{channel="control".*reason="layout"\} (\S+)')
IN_HAND_OVER = re.compile(r"baton:num_handover_reqs\{[^}]*\} (\S+)")
CLEAR_S = 8.0
BODY = {
    "input_ids": list(range(5, 60)),
    "sampling_params": {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True},
}


def num_refused(server: Server) -> int:
    (count,) = REFUSED.findall(str(server.get("/metrics")[1]))
    return int(float(count))


def num_in_hand_over(server: Server) -> int:
    (count,) = IN_HAND_OVER.findall(str(server.get("/metrics")[1]))
    return int(float(count))


def test_another_page_size_is_told_by_name_and_harms_nobody(
    tiny_model: Path, tmp_path: Path
) -> None:
    small = ("--max-total-tokens=4096", "--kernel-backend=torch")
    prefill = worker("prefill", tiny_model, tmp_path, *small, "--page-size=16")
    fits = worker("decode", tiny_model, tmp_path, *small, "--page-size=16")
    other = worker("decode", tiny_model, tmp_path, *small, "--page-size=32")
    fronts = [router([prefill, decode], tmp_path) for decode in (fits, other)]
    with running(prefill, fits, other, *fronts):
        status, expected = fronts[0].post("/generate", BODY)
        assert status == 200
        for num_asked in (1, 2):
            began_s = time.monotonic()
            status, answer = fronts[1].post("/generate", BODY)
            assert time.monotonic() - began_s < CLEAR_S
            assert status == 500
            told = "--page-size is 16 on the prefill worker and 32 on the decode worker"
            assert f"{told}; start both with the same --page-size" in str(answer)
            for server in (prefill, other):
                wait_until(
                    lambda s=server, n=num_asked: num_refused(s) == n, "the refusal is counted"
                )
        for server in (prefill, other):
            wait_until(lambda s=server: s.num_blocks_in_use() == 0, "no block is held")
            wait_until(lambda s=server: num_in_hand_over(s) == 0, "no leg waits for the other")
        assert num_refused(fits) == 0
        status, answer = fronts[0].post("/generate", BODY)
        assert (status, answer["output_ids"]) == (200, expected["output_ids"])
