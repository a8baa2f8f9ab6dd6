"""Open and closed loops against a real server that answers when the test lets it."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

from baton.bench.serve.backends import make_backend
from baton.bench.serve.config import TargetConfig
from baton.bench.serve.exchange import Sender
from baton.bench.serve.http_client import HttpClient
from baton.bench.serve.load import Load, Plan
from baton.bench.serve.records import NOT_SENT, Record
from baton.bench.serve.sessions import Session, Turn
from baton.testing.scripted_server import (
    DONE,
    STREAM_HEAD,
    Request,
    ScriptedServer,
    Step,
    event,
    generated,
    whole,
)

LIMIT_S = 20.0


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await coroutine

    asyncio.run(limited())


def stream_of(text: str) -> list[Step]:
    return [STREAM_HEAD, event(generated(1, text)), event(generated(2, text, is_end=True)), DONE]


def load_on(
    server: ScriptedServer,
    sessions: Sequence[Session],
    *,
    arrivals_s: Sequence[float] | None = None,
    max_concurrency: int | None = None,
    **hooks: Callable[..., None],
) -> Load:
    plan = Plan(
        sessions,
        arrivals_s or [0.0] * len(sessions),
        [[0.0] * (len(session.turns) - 1) for session in sessions],
        max_concurrency,
    )
    config = TargetConfig(base_url=server.url)
    sender = Sender(
        HttpClient(server.url, {}), make_backend(config, "m"), timeout_s=LIMIT_S, tokenizer=None
    )
    return Load(plan, sender, **hooks)


def single(number: int) -> list[Session]:
    return [Session((Turn(f"q{each}", 1, 2),)) for each in range(number)]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """The server answers nobody until all have asked: a client that waited would never end."""

    async def go() -> None:
        all_asked = asyncio.Event()

        def script(_request: Request) -> list[Step]:
            if len(server.requests) == 12:
                all_asked.set()
            return [all_asked, *stream_of("a")]

        server = ScriptedServer(script)
        async with server.running():
            records = await load_on(server, single(12)).run()
        assert [record.error for record in records] == [None] * 12
        assert [record.session for record in records] == list(range(12))
        assert server.most_running == 12

    run(go())


def test_a_closed_loop_keeps_its_places_full_and_no_more() -> None:
    """Each answer waits until three have asked, or until none is left to ask."""

    async def go() -> None:
        batches = [asyncio.Event() for _ in range(4)]

        def script(_request: Request) -> list[Step]:
            asked = len(server.requests)
            if asked % 3 == 0:
                batches[asked // 3 - 1].set()
            return [batches[(asked - 1) // 3], *stream_of("a")]

        server = ScriptedServer(script)
        async with server.running():
            records = await load_on(server, single(12), max_concurrency=3).run()
        assert all(record.is_ok for record in records)
        assert server.most_running == 3
        assert len(server.requests) == 12
        # What is planned for the fourth on is when the place that it got became free.
        ends_s = sorted(record.ended_s for record in records)
        assert [record.planned_s for record in records[:3]] == [0.0] * 3
        assert all(
            end_s <= record.planned_s <= record.sent_s
            for end_s, record in zip(ends_s, records[3:], strict=False)
        )

    run(go())


def test_waiting_for_a_place_is_not_sending_late() -> None:
    """What is planned then is when the place became free: never before the request that had it
    ended."""

    async def go() -> None:
        server = ScriptedServer(lambda _request: stream_of("a"))
        async with server.running():
            first, second = await load_on(server, single(2), max_concurrency=1).run()
        assert second.planned_s >= first.ended_s
        assert second.sent_s >= second.planned_s

    run(go())


def test_sessions_arrive_in_the_order_of_their_times() -> None:
    async def go() -> None:
        server = ScriptedServer(lambda _request: stream_of("a"))
        async with server.running():
            records = await load_on(
                server, single(3), arrivals_s=[0.04, 0.02, 0.0], max_concurrency=1
            ).run()
        assert [request.body["text"] for request in server.requests] == ["q2", "q1", "q0"]
        due_s = [0.04, 0.02, 0.0]
        assert all(each.planned_s >= at_s for each, at_s in zip(records, due_s, strict=True))

    run(go())


def test_a_session_sends_each_turn_with_all_before_it() -> None:
    async def go() -> None:
        server = ScriptedServer(lambda request: stream_of(f"<{request.body['text'][-1]}>"))
        session = Session((Turn("a", 1, 2), Turn("b", 1, 2), Turn("c", 1, 2)))
        async with server.running():
            records = await load_on(server, [session], max_concurrency=1).run()
        assert [request.body["text"] for request in server.requests] == [
            "a",
            "a<a>b",
            "a<a>b<b>c",
        ]
        assert [record.turn for record in records] == [0, 1, 2]
        for before, after in pairwise(records):
            assert after.planned_s >= before.ended_s

    run(go())


def test_turns_after_one_that_failed_are_not_sent_but_recorded() -> None:
    async def go() -> None:
        def script(request: Request) -> list[Step]:
            is_second = request.body["text"].endswith("b")
            return [whole({"error": "no"}, "500 x")] if is_second else stream_of("t")

        server = ScriptedServer(script)
        session = Session(tuple(Turn(text, 1, 2) for text in "abcd"))
        ended: list[Record] = []
        async with server.running():
            records = await load_on(server, [session], on_end=ended.append).run()
        assert len(server.requests) == 2
        assert [record.error for record in records] == [None, "HTTP 500: no", NOT_SENT, NOT_SENT]
        assert ended == records[:2]
        assert all(record.late_s == 0 for record in records[2:])

    run(go())
