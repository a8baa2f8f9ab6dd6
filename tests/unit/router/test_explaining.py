"""What the router remembers of a request, and what it asks its workers for."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from baton.router.config import HealthRules
from baton.testing.fake_worker import Script

from .conftest import Cluster, ClusterMaker

Run = Callable[[Callable[[], Any]], None]
BODY = {"text": "hello"}


async def explained(c: Cluster, name: str) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """(phase, why) of the router's part, and the whole answer."""
    status, _, body = await c.get(f"/explain/{name}")
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return [(name, *why) for name, _, *why in answer["router"]["phases"]], answer


def named(name: str) -> dict[str, Any]:
    return {"headers": {"X-Request-ID": name}}


def test_a_request_says_where_it_went_and_why(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, policy="round_robin") as c:
            await c.post("/generate", BODY, **named("a"))
            phases, answer = await explained(c, "a")
            (prefill,), (decode,) = c.prefills, c.decodes
            placed = f"prefill {prefill.url} (turn), decode {decode.url} (turn)"
            assert phases == [("queue", "/generate"), ("placed", placed), ("answer", "")]
            assert answer["router"]["outcome"] == "HTTP 200"
            times = [phase[1] for phase in answer["router"]["phases"]]
            assert times == sorted(times)
            assert answer["router"]["end_s"] >= times[-1]
            told = [(part["worker"], part["role"]) for part in answer["workers"]]
            assert told == [(prefill.url, "prefill"), (decode.url, "decode")]
            assert all("answered 404" in part["error"] for part in answer["workers"])

    run(scenario)


def test_a_refused_connection_is_a_second_placement(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        slow = HealthRules(interval_s=60.0, timeout_s=1.0)  # requests meet the death first
        async with cluster(0, 0, 2, policy="round_robin", health=slow) as c:
            await c.regulars[0].stop()
            for name in ("a", "b"):  # in turn: one of them meets the dead one first
                await c.post("/generate", BODY, **named(name))
            seen = [(await explained(c, name))[0] for name in ("a", "b")]
            names = [[phase for phase, _ in phases] for phases in seen]
            assert ["queue", "placed", "placed again", "answer"] in names
            (phases,) = [each for each in seen if len(each) == 4]
            assert phases[1][1].startswith(f"unified {c.regulars[0].url} (")
            assert phases[2][1].startswith(f"unified {c.regulars[1].url} (")
            _, answer = await explained(c, "ab"[seen.index(phases)])
            assert all("error" in part for part in answer["workers"])

    run(scenario)


def test_a_waiting_request_and_one_that_failed(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1) as c:
            (worker,) = c.regulars
            gate = asyncio.Event()
            worker.script = Script(gates={0: gate})
            asked = asyncio.create_task(c.post("/generate", BODY, **named("slow")))
            await worker.until(lambda w: len(w.requests) == 1)
            phases, answer = await explained(c, "slow")
            assert [name for name, _ in phases] == ["queue", "placed"]
            assert answer["router"]["end_s"] is None
            worker.script = Script(status=429)
            await c.post("/generate", BODY, **named("refused"))
            _, answer = await explained(c, "refused")
            assert answer["router"]["outcome"].startswith("HTTP 429: ")
            gate.set()
            assert (await asked)[0] == 200

    run(scenario)


def test_unknown_requests_are_told_so_and_the_key_is_asked_for(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1, api_key="k") as c:
            for path in ("/explain/a", "/start_profile", "/stop_profile"):
                assert (await c.get(path))[0] == 401
            headers = {"Authorization": "Bearer k"}
            status, _, body = await c.get("/explain/a", headers=headers)
            assert (status, json.loads(body)["error"]["code"]) == (404, "unknown_request")

    run(scenario)
