"""What is told of a request's way: in a header, and in its line of the log."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.split import SplitRules
from baton.router.waiting import WaitingRules
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker, until

Run = Callable[[Callable[[], Any]], None]
BODY = {"text": "hi", "sampling_params": {"max_new_tokens": 4}}


def test_a_pool_without_a_choice_says_nothing(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            _, headers, _ = await c.post("/generate", BODY)
            assert not [name for name in headers if name.startswith("X-Baton")]

    run(scenario)


def test_a_mixed_pool_says_which_way_and_why(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, 1, pd_disaggregation=True) as c:
            for body in (BODY, {**BODY, "stream": True}):
                _, headers, _ = await c.post("/generate", body)
                assert headers["X-Baton-Route"] == "whole; reason=whole_faster"
        split = SplitRules(is_conditional=False)
        async with cluster(1, 1, 1, pd_disaggregation=True, split=split) as c:
            _, headers, _ = await c.post("/generate", BODY)
            assert headers["X-Baton-Route"] == "split; reason=always_split"

    run(scenario)


def test_workers_are_named_where_the_operator_says_so(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(expose_routing=True) as c:
            _, headers, _ = await c.post("/generate", BODY)
            prefill, decode = c.prefills[0].url, c.decodes[0].url
            assert headers["X-Baton-Route"] == (
                f"split; prefill={prefill}; prefill-reason=least_loaded; "
                f"decode={decode}; decode-reason=least_loaded"
            )
            c.decodes[0].script = Script(status=500, error={"error": {"message": "no"}})
            status, headers, _ = await c.post("/generate", BODY)
            assert status == 500
            assert f"decode={decode}" in headers["X-Baton-Route"], "a failed one says it, too"

    run(scenario)


def test_the_log_says_where_a_request_was_and_how_long_it_waited(
    run: Run, cluster: ClusterMaker, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster(waiting=WaitingRules(max_running=1)) as c:
            gate = asyncio.Event()
            c.decodes[0].script = Script(gates={2: gate})
            first = asyncio.create_task(c.post("/generate", BODY))
            await c.decodes[0].until(lambda worker: len(worker.requests) == 1)
            second = asyncio.create_task(c.post("/generate", BODY))
            await until(lambda: c.fleet.admission.num_waiting == 1)
            gate.set()
            _, headers, _ = await first
            assert "X-Baton-Queue-Wait" not in headers
            _, headers, _ = await second
            assert float(headers["X-Baton-Queue-Wait"]) >= 0
            done = [
                r.__dict__["baton_fields"]
                for r in caplog.records
                if r.msg and r.getMessage() == "request done"
            ]
            assert [fields["status"] for fields in done] == [200, 200]
            assert "waited_s" not in done[0]
            assert done[1]["waited_s"] >= 0
            assert done[1]["placement"] == "split"
            assert done[1]["prefill"] == c.prefills[0].url
            assert done[1]["decode_reason"] == "least_loaded"

    with caplog.at_level(logging.DEBUG, logger="baton"):
        run(scenario)
