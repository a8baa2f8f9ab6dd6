"""A later attempt at a request, on a worker that is still at an earlier one of the same `rid`."""

import asyncio

import pytest

from baton.testing.fake_engine import FakeEngine
from baton.testing.worker_server import serve_fake_worker

BODY = {"text": "abc", "rid": "r", "sampling_params": {"max_new_tokens": 6, "temperature": 0}}
SECOND = {"X-Baton-Attempt": "2"}


@pytest.mark.parametrize("more", [{}, {"sampling_params": {"max_new_tokens": 6, "n": 2}}])
def test_it_does_not_meet_the_earlier_one(more: dict[str, object]) -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=2)
        async with serve_fake_worker(engine) as worker:
            asked = [
                asyncio.create_task(worker.post("/generate", {**BODY, **more}, headers))
                for headers in ({}, SECOND)
            ]
            num = 2 if more else 1
            while len(engine.running_ids) < 2 * num:  # noqa: ASYNC110
                await asyncio.sleep(0)
            status, answer = await worker.post("/generate", {**BODY, **more}, SECOND)
            assert (status, answer["error"]["code"]) == (400, "duplicate_rid")
            engine.resume()
            (first, one), (second, other) = await asyncio.gather(*asked)
            assert (first, second) == (200, 200)
            for one_of_it, other_of_it in zip(*map(listed, (one, other)), strict=True):
                assert one_of_it["meta_info"]["id"] == other_of_it["meta_info"]["id"]
                assert "~" not in other_of_it["meta_info"]["id"]
                assert one_of_it["output_ids"] == other_of_it["output_ids"]

    asyncio.run(scenario())


def listed(answer: object) -> list[dict[str, dict[str, str]]]:
    return answer if isinstance(answer, list) else [answer]  # type: ignore[list-item]


def test_its_rid_aborts_every_attempt() -> None:
    async def scenario() -> None:
        engine = FakeEngine(pause_after=2)
        async with serve_fake_worker(engine) as worker:
            asked = [
                asyncio.create_task(worker.post("/generate", BODY, headers))
                for headers in ({}, SECOND)
            ]
            while len(engine.running_ids) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            _, answer = await worker.post("/abort_request", {"rid": "r"})
            assert answer["num_aborted"] == 2
            for status, answer in await asyncio.gather(*asked):
                assert (status, answer["error"]["code"]) == (499, "aborted")

    asyncio.run(scenario())


@pytest.mark.parametrize("odd", ["", "-1", "two", "12345", "2~3"])
def test_an_odd_attempt_is_none(odd: str) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serve_fake_worker(engine) as worker:
            status, _ = await worker.post("/generate", BODY, {"X-Baton-Attempt": odd})
            assert (status, engine.requests[0].request_id) == (200, "r")

    asyncio.run(scenario())
