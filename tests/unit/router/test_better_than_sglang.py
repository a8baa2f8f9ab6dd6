"""Where SGLang's router 0.3.2 falls short as measured, and Baton's must not: one behaviour per
section, over real sockets.

Elsewhere: what both routers do alike (test_captures.py), each part by itself (its own file).
"""

import asyncio
import dataclasses
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from baton.router.breaker import BreakerPhase, BreakerRules
from baton.router.config import HealthRules, WorkerRole, WorkerSpec
from baton.router.http.connection import ServerConnection
from baton.router.http.upstream import UpstreamConnection
from baton.router.policies import PolicyName
from baton.router.waiting import WaitingRules
from baton.router.workers import Phase
from baton.testing.fake_worker import Script
from baton.testing.scripted_server import (
    DONE,
    STREAM_HEAD,
    Break,
    Request,
    ScriptedServer,
    Step,
    chunk,
    generated,
)

from .conftest import ClusterMaker, error_of, until

Run = Callable[[Callable[[], Any]], None]
GENERATE = {"text": "hello", "sampling_params": {"max_new_tokens": 8}}
STREAM = {**GENERATE, "stream": True}
SOON_S = 1.0
NEVER_AGAIN = HealthRules(interval_s=3600)
"""Workers are asked for their load once, at the start."""


def hanging() -> Script:
    return Script(gates={0: asyncio.Event()})


def events_of(body: bytes) -> list[bytes]:
    assert body.endswith(b"\n\n")
    return body.split(b"\n\n")[:-1]


# the first streamed byte waits for the whole prefill answer, and for Nagle


def test_the_first_byte_comes_as_soon_as_decode_sends_it(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            prefill_may_answer, decode_may_go_on = asyncio.Event(), asyncio.Event()
            c.prefills[0].script = Script(gates={0: prefill_may_answer})
            c.decodes[0].script = Script(gates={2: decode_may_go_on})
            async with c.session.post(c.url + "/generate", json=STREAM) as response:
                first = await response.content.readuntil(b"\n\n")
                assert json.loads(first[5:])["text"] == "x"
                decode_may_go_on.set()
                rest = await response.content.read()
                assert rest.endswith(b"data: [DONE]\n\n")
            in_flight = {w.role: w.num_in_flight for w in c.fleet.pool}
            assert in_flight == {"prefill": 1, "decode": 0}
            prefill_may_answer.set()
            await c.until_quiet()
            assert c.prefills[0].num_hung_up == 0

    run(scenario)


def test_no_bytes_wait_for_others_to_be_acknowledged(
    run: Run, cluster: ClusterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP_NODELAY on both sides: 44 ms per first token otherwise, with delayed acknowledgements."""
    delays: dict[type, list[int]] = {ServerConnection: [], UpstreamConnection: []}
    for kind in delays:

        def noting(self: Any, transport: Any, kind: type = kind, made: Any = kind.connection_made):  # type: ignore[no-untyped-def, attr-defined]
            made(self, transport)
            connected = transport.get_extra_info("socket")
            delays[kind].append(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        monkeypatch.setattr(kind, "connection_made", noting)

    async def scenario() -> None:
        async with cluster() as c:
            assert (await c.post("/generate", STREAM))[0] == 200
        for seen in delays.values():
            assert seen
            assert all(seen)

    run(scenario)


# a failed pair blames both legs; bad requests open all circuits


@pytest.mark.parametrize("role", [WorkerRole.PREFILL, WorkerRole.DECODE])
def test_only_the_leg_that_fails_is_blamed(
    run: Run, cluster: ClusterMaker, role: WorkerRole
) -> None:
    async def scenario() -> None:
        rules = BreakerRules(failure_threshold=3, cool_down_s=1000, max_cool_down_s=1000)
        async with cluster(1, 1, breaker=rules) as c:
            bad, good = c.prefills[0], c.decodes[0]
            if role is WorkerRole.DECODE:
                bad, good = good, bad
            bad.script = Script(status=500, error={"error": {"message": "broken"}})
            good.script = Script(gates={0: asyncio.Event()})
            for _ in range(rules.failure_threshold):
                assert (await c.post("/generate", {"text": "a"}))[0] == 500
            await c.until_quiet()
            breakers = {w.url: c.fleet.placement.breakers.of(w.id) for w in c.fleet.pool}
            assert breakers[bad.url].phase is BreakerPhase.OPEN
            assert breakers[good.url].phase is BreakerPhase.CLOSED
            assert breakers[good.url].failures_s == ()
            _, _, text = await c.get("/metrics")
            assert f'phase="open",role="{role}"'.encode() in text

    run(scenario)


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {}), (503, {"Retry-After": "1"}), (400, {}), (422, {})]
)
def test_overload_and_clients_errors_cut_nobody_off(
    run: Run, cluster: ClusterMaker, status: int, headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        async with cluster(1, 1, breaker=BreakerRules(failure_threshold=1)) as c:
            c.decodes[0].script = Script(status=status, headers=headers, error={"message": "no"})
            for _ in range(5):
                assert (await c.post("/generate", {"text": "a"}))[0] == status
            c.decodes[0].script = Script()
            assert (await c.post("/generate", {"text": "a"}))[0] == 200

    run(scenario)


# 422, 429 become 500, are retried, and lose their Retry-After


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 422, 429, 500, 503])
def test_decodes_error_keeps_its_status_and_is_not_retried(
    run: Run, cluster: ClusterMaker, status: int, stream: bool
) -> None:
    async def scenario() -> None:
        async with cluster(1, 2) as c:
            c.prefills[0].script = hanging()
            for decode in c.decodes:
                decode.script = Script(
                    status=status, headers={"Retry-After": "7"}, error={"message": "as it was"}
                )
            got, headers, body = await c.post("/generate", {**GENERATE, "stream": stream})
            assert (got, headers["Retry-After"]) == (status, "7")
            assert json.loads(body) == {"message": "as it was"}
            await c.prefills[0].until(lambda w: w.num_hung_up == 1)
            await c.until_quiet()
            assert sum(len(decode.requests) for decode in c.decodes) == 1
            assert all(worker.is_healthy for worker in c.fleet.pool)

    run(scenario)


@pytest.mark.parametrize("status", [400, 422, 429, 503])
def test_prefills_error_cancels_decode_and_keeps_its_status(
    run: Run, cluster: ClusterMaker, status: int
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefills[0].script = Script(status=status, headers={"Retry-After": "3"})
            c.decodes[0].script = hanging()
            got, headers, body = await c.post("/v1/chat/completions", {"messages": []})
            assert (got, headers["Retry-After"]) == (status, "3")
            assert error_of(body)["message"] == f"fake {status} from prefill"
            await c.decodes[0].until(lambda w: w.num_hung_up == 1)
            await c.until_quiet()

    run(scenario)


# the error frame of a stream is invalid JSON, cut to the wrong length


@pytest.mark.parametrize("die_at", [1, 4])
def test_a_stream_that_breaks_ends_with_an_error_event(
    run: Run, cluster: ClusterMaker, die_at: int
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decodes[0].script = Script(die_at=die_at)
            status, _, body = await c.post("/generate", STREAM)
            if die_at == 1:
                assert (status, error_of(body)["code"]) == (503, "decode_failed")
                return
            *tokens, error, done = events_of(body)
            assert (status, len(tokens), done) == (200, die_at - 1, b"data: [DONE]")
            said = error_of(error[6:])
            assert said["code"] == "decode_failed"
            assert c.decodes[0].url in said["message"]
            await c.until_quiet()

    run(scenario)


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_of_a_stream_is_json_of_its_true_length(
    run: Run, cluster: ClusterMaker, status: int
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            error = {"error": {"message": 'long and with "quotes", ' * 40}}
            c.decodes[0].script = Script(status=status, error=error)
            got, headers, body = await c.post("/generate", STREAM)
            assert (got, json.loads(body)) == (status, error)
            assert int(headers["Content-Length"]) == len(body)
            assert headers["Content-Type"].startswith("application/json")

    run(scenario)


# decode dies mid-stream: the body is cut, nobody is told, it counts as a success


def test_a_stream_goes_on_at_another_decode_with_the_same_tokens(
    run: Run, cluster: ClusterMaker
) -> None:
    num_tokens, num_first = 8, 3

    def dying_once(request: Request) -> list[Step]:
        if "resume" not in request.body:
            return [MARKED_HEAD, marked(1, num_first), chunk(event_of(num_first + 1)), Break.RESET]
        return [MARKED_HEAD, marked(num_first + 1, num_tokens), DONE]

    async def scenario() -> None:
        async with (
            ScriptedServer(dying_once).running() as one,
            ScriptedServer(dying_once).running() as other,
            cluster(1, 0, health=NEVER_AGAIN) as c,
        ):
            for decode in (one, other):
                c.fleet.join(WorkerSpec(decode.url, WorkerRole.DECODE))
            await c.until_healthy(3)
            status, headers, body = await c.post("/generate", STREAM)
            whole = b"".join(event_of(num) for num in range(1, num_tokens + 1))
            assert (status, body) == (200, whole + b"data: [DONE]\n\n")
            assert "X-Baton-Marks" not in headers
            assert (len(one.requests), len(other.requests)) == (1, 1)
            (resumed,) = [r for r in one.requests + other.requests if "resume" in r.body]
            assert resumed.body["resume"]["token_ids"] == [1, 2, 3]
            assert len(c.prefills[0].requests) == 2

    run(scenario)


MARKED_HEAD = STREAM_HEAD[:-2] + b"X-Baton-Marks: 7 1 fake\r\n\r\n"


def marked(first: int, last: int) -> bytes:
    """Events as Baton's workers write them, each with a mark behind it."""
    return b"".join(chunk(event_of(num) + b": t %d\n\n" % num) for num in range(first, last + 1))


def event_of(num_tokens: int) -> bytes:
    return b"data: " + json.dumps(generated(num_tokens)).encode() + b"\n\n"


# prefill dead while decode hangs: the client waits for both


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_dies_while_decode_hangs(run: Run, cluster: ClusterMaker, stream: bool) -> None:
    async def scenario() -> None:
        async with cluster(max_resumes=0) as c:
            may_die = asyncio.Event()
            c.prefills[0].script = Script(gates={0: may_die}, die_at=0)
            c.decodes[0].script = hanging()
            asked = asyncio.create_task(c.post("/generate", {**GENERATE, "stream": stream}))
            await c.decodes[0].until(lambda w: len(w.requests) == 1)
            may_die.set()
            async with asyncio.timeout(SOON_S):
                status, headers, body = await asked
                await c.decodes[0].until(lambda w: w.num_hung_up == 1)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert error_of(body)["code"] == "prefill_failed"
            assert f"prefill worker {c.prefills[0].url}" in error_of(body)["message"]
            await c.until_quiet()

    run(scenario)


# the queue refuses although it has room and time


def test_the_queue_refuses_nobody_it_has_room_and_time_for(run: Run, cluster: ClusterMaker) -> None:
    """16 requests, 3 at a time: SGLang's router refused 13 after half a second of five."""

    async def scenario() -> None:
        rules = WaitingRules(max_running=3, max_waiting=16, max_wait_s=60)
        async with cluster(waiting=rules) as c:
            may_answer = asyncio.Event()
            c.decodes[0].script = Script(gates={0: may_answer})
            asked = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(16)]
            await until(lambda: c.generation.num_running == 16)
            await c.decodes[0].until(lambda w: len(w.requests) == 3)
            may_answer.set()
            assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 16
            await c.until_quiet()

    run(scenario)


def test_who_finds_no_room_is_told_at_once_when_to_come_back(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(waiting=WaitingRules(max_running=1, max_waiting=1)) as c:
            may_answer = asyncio.Event()
            c.decodes[0].script = Script(gates={0: may_answer})
            asked = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(2)]
            await until(lambda: c.generation.num_running == 2)
            status, headers, body = await c.post("/generate", GENERATE)
            assert (status, error_of(body)["code"]) == (429, "queue_full")
            assert int(headers["Retry-After"]) >= 1
            may_answer.set()
            assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 2

    run(scenario)


# a client that left is noticed at the next frame


@pytest.mark.parametrize(
    ("prefill", "decode", "body"),
    [
        (Script(), Script(gates={4: asyncio.Event()}), STREAM),
        (Script(gates={0: asyncio.Event()}), Script(gates={0: asyncio.Event()}), GENERATE),
        (Script(gates={0: asyncio.Event()}), Script(gates={3: asyncio.Event()}), STREAM),
    ],
)
def test_a_client_that_leaves_ends_both_legs_before_the_next_token(
    run: Run, cluster: ClusterMaker, prefill: Script, decode: Script, body: Any
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefills[0].script, c.decodes[0].script = of_this_loop(prefill), of_this_loop(decode)
            asked = asyncio.create_task(c.post("/generate", body))
            for worker in c.workers:
                await worker.until(lambda w: len(w.requests) == 1)
            asked.cancel()
            await asyncio.wait({asked})
            async with asyncio.timeout(SOON_S):
                await c.decodes[0].until(lambda w: w.num_hung_up == 1)
                if prefill.gates:
                    await c.prefills[0].until(lambda w: w.num_hung_up == 1)
            await c.until_quiet()
            _, _, metrics = await c.get("/metrics")
            assert b'requests_total{route="/generate",status="499"} 1.0' in metrics
            assert b"baton_router_inflight 0.0" in metrics

    run(scenario)


def of_this_loop(script: Script) -> Script:
    """An event belongs to the loop in which it was first waited for."""
    return dataclasses.replace(script, gates={point: asyncio.Event() for point in script.gates})


# a dead worker is noticed after 180 s


def test_a_dead_worker_is_noticed_within_seconds() -> None:
    """Even one that still takes connections, by as many unanswered questions as the rules say."""
    rules = HealthRules()
    assert rules.failure_threshold * (rules.interval_s + rules.timeout_s) <= 10


def test_as_many_unanswered_questions_as_the_rules_say_are_enough(
    run: Run, cluster: ClusterMaker
) -> None:
    asked: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(4096))
        await reader.read()
        writer.close()

    async def scenario() -> None:
        asked.clear()
        rules = HealthRules(interval_s=0.01, timeout_s=0.05)
        async with cluster(1, 0, health=rules) as c:
            server = await asyncio.start_server(silent, "127.0.0.1", 0)
            async with server:
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                worker = c.fleet.join(WorkerSpec(url, WorkerRole.DECODE))
                c.fleet.pool.note_success(worker, 0.0)
                await c.until_healthy(1)
                assert worker.health.phase is Phase.UNHEALTHY
                assert len(asked) == rules.failure_threshold
                await c.fleet.leave(worker)

    run(scenario)


def test_a_worker_whose_process_died_is_noticed_with_the_first_request(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(1, 2, health=NEVER_AGAIN) as c:
            await c.decodes[0].kill()
            for _ in range(4):
                assert (await c.post("/generate", GENERATE))[0] == 200
            assert not next(w for w in c.fleet.pool if w.url == c.decodes[0].url).is_healthy

    run(scenario)


# `cache_aware` ignores input_ids and later turns of a chat


def test_a_chat_stays_with_its_workers(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster(3, 3, policy="cache_aware") as c:
            turns = [{"role": "user", "content": "Tell me of the sea. " * 30}]
            for _ in range(4):
                assert (await c.post("/v1/chat/completions", {"messages": turns}))[0] == 200
                turns += [{"role": "assistant", "content": "Waves."}]
                turns += [{"role": "user", "content": "More! " * 30}]
            assert sorted(len(worker.requests) for worker in c.decodes) == [0, 0, 4]
            assert sorted(len(worker.requests) for worker in c.prefills) == [0, 0, 4]

    run(scenario)


def test_token_ids_with_one_beginning_stay_with_their_workers(
    run: Run, cluster: ClusterMaker
) -> None:
    async def scenario() -> None:
        async with cluster(3, 3, policy="cache_aware") as c:
            for number in range(4):
                ids = [*range(256), *range(1000 * number, 1000 * number + 32)]
                assert (await c.post("/generate", {"input_ids": ids}))[0] == 200
            for number in range(2):  # nothing in common: these may not all go there, too
                ids = list(range(5000 * (number + 1), 5000 * (number + 1) + 256))
                assert (await c.post("/generate", {"input_ids": ids}))[0] == 200
            for workers in (c.prefills, c.decodes):
                holders = [w for w in workers if any(is_of_the_four(r.body) for r in w.requests)]
                assert len(holders) == 1
                assert len([w for w in workers if w.requests]) > 1

    run(scenario)


def is_of_the_four(body: Any) -> bool:
    return bool(body["input_ids"][:256] == list(range(256)))


# loads are asked for every 30 s, so `power_of_two` herds


@pytest.mark.parametrize(
    ("policy", "unevenness"), [(PolicyName.LEAST_LOADED, 0), (PolicyName.POWER_OF_TWO, 3)]
)
def test_requests_between_two_load_reports_do_not_herd(
    run: Run, cluster: ClusterMaker, policy: PolicyName, unevenness: int
) -> None:
    """Each worker said once, at the start, that it has nothing to do."""

    async def scenario() -> None:
        async with cluster(1, 4, policy=policy, health=NEVER_AGAIN) as c:
            may_answer = asyncio.Event()
            for decode in c.decodes:
                decode.script = Script(gates={0: may_answer})
            asked = [asyncio.create_task(c.post("/generate", GENERATE)) for _ in range(32)]
            await until(lambda: sum(len(decode.requests) for decode in c.decodes) == 32)
            shares = [len(decode.requests) for decode in c.decodes]
            assert max(shares) - min(shares) <= unevenness, shares
            may_answer.set()
            assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 32

    run(scenario)
