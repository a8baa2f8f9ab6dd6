"""Workers that come by themselves: whom the router believes, and when it forgets them."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from baton.cluster.announcer import Announcer, WorkerAddress
from baton.messages.announcement import ANNOUNCE_PATH, Announcement, sign
from baton.router.leases import Lease, Leases
from baton.router.policies import PolicyName
from baton.router.proofs import ROTATION_S, Proofs
from baton.testing.fake_worker import FakeWorker

from .conftest import Cluster, ClusterMaker

Run = Callable[[Callable[[], Any]], None]
SECRET = "the secret of this cluster"
GENERATE = {"text": "hello"}


def said(url: str, **fields: Any) -> Announcement:
    fields = {"role": "decode", "instance": "i" * 16, "number": 1, "intent": "serving"} | fields
    return Announcement(url=url, lease_s=fields.pop("lease_s", 10.0), **fields)


async def post(
    c: Cluster, announcement: Announcement, challenge: str, secret: str = SECRET
) -> tuple[int, str, bytes]:
    """Status, the next challenge, and the answer."""
    body = msgspec.json.encode(announcement)
    headers = {
        "X-Baton-Challenge": challenge,
        "X-Baton-Signature": sign(secret, challenge, body),
    }
    status, answered, answer = await c.post(ANNOUNCE_PATH, body, headers=headers)
    return status, answered.get("X-Baton-Challenge", ""), answer


async def challenge_of(c: Cluster) -> str:
    status, challenge, _ = await post(c, said("http://h:1"), "")
    assert status == 401
    assert len(c.fleet.pool) == 0
    return challenge


def code_of(answer: bytes) -> str:
    code: str = json.loads(answer)["error"]["code"]
    return code


@asynccontextmanager
async def announcing(c: Cluster, *workers: FakeWorker) -> Any:
    announcers = [
        Announcer([c.url], SECRET, WorkerAddress(url=w.url, role=role(w)), beat_s=0.05, lease_s=0.5)
        for w in workers
    ]
    for announcer in announcers:
        announcer.start()
    try:
        yield announcers
    finally:
        for announcer in announcers:
            await announcer.leave()


def role(worker: FakeWorker) -> Any:
    return "null" if worker.role == "regular" else worker.role


def test_announced_workers_serve_and_leave(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, cluster_secret=SECRET) as c:
            async with FakeWorker("prefill") as prefill, FakeWorker("decode") as decode:
                async with announcing(c, prefill, decode):
                    await c.until_healthy(2)
                    assert (await c.post("/generate", GENERATE))[0] == 200
                assert len(c.fleet.pool) == 0

    run(scenario)


def test_a_draining_worker_finishes_and_gets_nothing_new(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1, cluster_secret=SECRET, policy=PolicyName.ROUND_ROBIN) as c:
            async with FakeWorker("regular") as leaver:
                async with announcing(c, leaver) as (announcer,):
                    await c.until_healthy(2)
                    gate = asyncio.Event()
                    leaver.script = type(leaver.script)(gates={1: gate})
                    c.regulars[0].script = type(leaver.script)(gates={1: gate})
                    asked = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(2)]
                    await leaver.until(lambda w: len(w.requests) == 1)
                    assert await announcer.say_draining() == 1
                    gate.set()
                    for _ in range(4):
                        assert (await c.post("/generate", GENERATE))[0] == 200
                    assert [(await each)[0] for each in asked] == [200, 200]
                    assert (len(leaver.requests), len(c.regulars[0].requests)) == (1, 5)
                    text = (await c.get("/metrics"))[2].decode()
                    label = f'role="regular",url="{leaver.url}"'
                    assert f"baton_router_worker_draining{{{label}}} 1.0" in text

    run(scenario)


def test_who_falls_silent_is_forgotten_and_the_operators_worker_is_not(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(0, 1, cluster_secret=SECRET) as c:
            own = c.decodes[0].url
            challenge = (await post(c, said("http://127.0.0.1:9"), ""))[1]
            for number, url in enumerate((own, "http://127.0.0.1:9"), start=1):
                announced = said(url, number=number, lease_s=0.2, intent="draining")
                assert (await post(c, announced, challenge))[0] == 200
            assert len(c.fleet.pool) == 2
            (kept,) = [worker for worker in c.fleet.pool if worker.url == own]
            await c.fleet.until(lambda pool: len(pool) == 1 and kept.is_available)
            assert not kept.is_announced

    run(scenario)


def test_strangers_and_echoes_change_nothing(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, cluster_secret=SECRET) as c:
            challenge, url = await challenge_of(c), "http://127.0.0.1:9"
            status, _, answer = await post(c, said(url), challenge, "another secret of 16")
            assert (status, code_of(answer)) == (403, "wrong_secret")
            assert len(c.fleet.pool) == 0
            assert (await post(c, said(url, number=5), challenge))[0] == 200
            (worker,) = c.fleet.pool
            for number in (5, 4):
                echo = said(url, number=number, intent="gone")
                status, _, answer = await post(c, echo, challenge)
                assert (status, code_of(answer)) == (409, "repeated")
            other = said(url, instance="j" * 16, intent="gone")
            assert (await post(c, other, challenge))[0] == 200
            assert list(c.fleet.pool) == [worker]

    run(scenario)


def test_what_was_signed_for_another_router_is_void(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, cluster_secret=SECRET) as one:
            async with cluster(0, 0, cluster_secret=SECRET) as other:
                challenge = await challenge_of(one)
                assert (await post(other, said("http://127.0.0.1:9"), challenge))[0] == 401
                assert len(other.fleet.pool) == 0

    run(scenario)


def test_a_changed_body_is_no_announcement(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, cluster_secret=SECRET) as c:
            challenge = await challenge_of(c)
            signature = sign(SECRET, challenge, msgspec.json.encode(said("http://127.0.0.1:9")))
            headers = {"X-Baton-Challenge": challenge, "X-Baton-Signature": signature}
            body = msgspec.json.encode(said("http://127.0.0.1:8"))
            assert (await c.post(ANNOUNCE_PATH, body, headers=headers))[0] == 403
            assert len(c.fleet.pool) == 0

    run(scenario)


def test_without_a_secret_nobody_is_believed(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0) as c:
            status, _, answer = await post(c, said("http://127.0.0.1:9"), "", "")
            assert (status, code_of(answer)) == (403, "announcements_off")
            async with FakeWorker("decode") as worker, announcing(c, worker) as (announcer,):
                assert await announcer.say_draining() == 0
            assert len(c.fleet.pool) == 0

    run(scenario)


def test_strangers_bodies_are_not_read(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, cluster_secret=SECRET, api_key="sesame") as c:
            assert (await c.post(ANNOUNCE_PATH, b" " * 5000))[0] == 401
            assert (await post(c, said("http://127.0.0.1:9"), await challenge_of(c)))[0] == 200

    run(scenario)


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"url": "h:1"}, 400), ({"role": "null", "url": "OWN"}, 409), ({"number": 0}, 400)],
)
def test_what_cannot_be_is_refused(
    run: Run, cluster: ClusterMaker, fields: dict[str, Any], status: int
) -> None:
    async def scenario() -> None:
        async with cluster(1, 0, cluster_secret=SECRET) as c:
            others = {key: value for key, value in fields.items() if key != "url"}
            url = fields.get("url", "http://127.0.0.1:9").replace("OWN", c.prefills[0].url)
            challenge = (await post(c, said(url), ""))[1]
            assert (await post(c, said(url, **others), challenge))[0] == status
            assert len(c.fleet.pool) == 1

    run(scenario)


def test_a_worker_that_changes_its_role_joins_anew(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, cluster_secret=SECRET) as c:
            challenge, url = await challenge_of(c), "http://127.0.0.1:9"
            assert (await post(c, said(url), challenge))[0] == 200
            again = said(url, role="prefill", instance="j" * 16, bootstrap_port=8998)
            assert (await post(c, again, challenge))[0] == 200
            (worker,) = c.fleet.pool
            assert (worker.role, worker.bootstrap_port) == ("prefill", 8998)

    run(scenario)


def test_challenges_grow_old() -> None:
    proofs = Proofs(0.0)
    first = proofs.challenge(0.0)
    assert proofs.is_new("a", 1, 1.0)
    assert proofs.challenge(ROTATION_S - 1) == first
    second = proofs.challenge(2 * ROTATION_S - 1)
    assert second != first
    assert proofs.is_ours(first, 2 * ROTATION_S)
    assert not proofs.is_new("a", 1, 2 * ROTATION_S)
    assert not proofs.is_ours(first, 3 * ROTATION_S)
    assert proofs.is_ours(second, 3 * ROTATION_S)
    assert proofs.num_remembered == 0
    assert not proofs.is_ours(second, 9 * ROTATION_S)
    assert not proofs.is_ours("", 0.0)


def test_only_the_holder_ends_a_lease() -> None:
    leases = Leases()
    assert not leases.renew(Lease("u", "w", "a", 5.0))
    assert not leases.renew(Lease("u", "w", "a", 6.0))
    assert leases.renew(Lease("u", "w", "b", 7.0))
    assert leases.end("u", "a") is None
    assert leases.take_expired(6.9) == []
    assert leases.next_expiry_s() == 7.0
    assert [lease.instance for lease in leases.take_expired(7.0)] == ["b"]
    assert (len(leases), leases.next_expiry_s(), leases.end("u", "b")) == (0, None, None)
