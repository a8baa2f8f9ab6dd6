"""The bootstrap service and its client, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from baton.core.errors import TransferError
from baton.disagg.bootstrap import (
    MAX_BODY_BYTES,
    BootstrapClient,
    BootstrapServer,
    PrefillRank,
    registration_key,
)

ALL = {"prefill_dp_rank": -1, "prefill_cp_rank": -1, "target_tp_rank": -1, "target_pp_rank": -1}
FIRST = dict.fromkeys(ALL, 0)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[BootstrapServer, str, int, aiohttp.ClientSession]]:
    server = BootstrapServer(prefill_http_port=30000)
    port = await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as session:
            yield server, f"http://127.0.0.1:{port}", port, session
    finally:
        await server.stop()


async def ask(
    session: aiohttp.ClientSession, method: str, url: str, **kwargs: Any
) -> tuple[int, str]:
    async with session.request(method, url, **kwargs) as response:
        return response.status, await response.text()


def test_registration_as_sglang_sends_it() -> None:
    async def scenario() -> None:
        async with serving() as (server, url, _, session):
            assert (await ask(session, "GET", f"{url}/health"))[0] == 200
            status, text = await ask(session, "GET", f"{url}/route", params=ALL)
            assert status == 503
            assert "0 prefill ranks" in text
            for tp_rank in range(2):
                registration = {
                    "attn_tp_size": 2, "attn_tp_rank": tp_rank, "attn_cp_size": 1,
                    "attn_cp_rank": 0, "attn_dp_size": 1, "attn_dp_rank": 0, "pp_size": 1,
                    "pp_rank": 0, "system_dp_size": 1, "system_dp_rank": 0,
                    "rank_ip": "10.0.0.1", "rank_port": 7000 + tp_rank, "page_size": 16,
                    "kv_cache_dtype": "bfloat16", "load_balance_method": "ignored",
                }  # fmt: skip
                assert not server.is_complete
                assert await ask(session, "PUT", f"{url}/route", json=registration) == (200, "OK")
            async with session.get(f"{url}/route", params=ALL) as response:
                assert await response.json() == {
                    "attn_tp_size": 2, "attn_cp_size": 1, "dp_size": 1, "pp_size": 1,
                    "page_size": 16, "kv_cache_dtype": "bfloat16",
                    "follow_bootstrap_room": True, "prefill_http_port": 30000,
                }  # fmt: skip
            async with session.get(f"{url}/route", params=FIRST | {"target_tp_rank": 1}) as answer:
                assert await answer.json() == {"rank_ip": "10.0.0.1", "rank_port": 7001}
            params = FIRST | {"target_tp_rank": 2}
            assert (await ask(session, "GET", f"{url}/route", params=params))[0] == 404

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"rank_ip": "a"}', b'{"rank_ip": "a", "rank_port": 0}',
     b'{"rank_ip": "a", "rank_port": 99999}', b'{"rank_ip": 1, "rank_port": 1}',
     b'{"rank_ip": "a", "rank_port": 1, "pp_size": 99999}',
     b'{"rank_ip": "a", "rank_port": 1, "pp_rank": 1}'],
)  # fmt: skip
def test_wrong_registrations(body: bytes) -> None:
    async def scenario() -> None:
        async with serving() as (server, url, _, session):
            assert (await ask(session, "PUT", f"{url}/route", data=body))[0] == 400
            assert not server.is_complete

    asyncio.run(scenario())


def test_requests_that_are_wrong_or_too_large() -> None:
    async def scenario() -> None:
        async with serving() as (_, url, _, session):
            assert (await ask(session, "GET", f"{url}/route"))[0] == 400
            params = FIRST | {"target_pp_rank": "x"}
            assert (await ask(session, "GET", f"{url}/route", params=params))[0] == 400
            data = b" " * (MAX_BODY_BYTES + 1)
            for method, path in (("PUT", "route"), ("POST", "query_dp_ranks")):
                assert (await ask(session, method, f"{url}/{path}", data=data))[0] == 413

    asyncio.run(scenario())


def test_ranks_must_agree_and_a_restart_replaces() -> None:
    server = BootstrapServer(prefill_http_port=1)
    server.register(PrefillRank(rank_ip="a", rank_port=1, pp_size=2))
    with pytest.raises(ValueError, match="sizes"):
        server.register(PrefillRank(rank_ip="a", rank_port=1, pp_size=3, pp_rank=1))
    with pytest.raises(ValueError, match="pp_rank is 2"):
        server.register(PrefillRank(rank_ip="a", rank_port=1, pp_size=2, pp_rank=2))
    server.register(PrefillRank(rank_ip="b", rank_port=2, pp_size=2))
    assert not server.is_complete
    server.register(PrefillRank(rank_ip="b", rank_port=3, pp_size=2, pp_rank=1))
    assert server.is_complete


def test_system_dp_counts_as_dp() -> None:
    rank = PrefillRank(rank_ip="a", rank_port=1, system_dp_size=2, system_dp_rank=1)
    assert (rank.dp_size, rank.dp_rank) == (2, 1)


def test_rooms_remember_their_rank() -> None:
    async def scenario() -> None:
        async with serving() as (_, url, _, session):
            for room in (5, 6):
                body = {"bootstrap_room": room, "dp_rank": room - 5}
                assert (await ask(session, "POST", f"{url}/register_dp_rank", json=body))[0] == 200
            body = {"bootstrap_rooms": [6, 5, 99]}
            async with session.post(f"{url}/query_dp_ranks", json=body) as response:
                assert await response.json() == {"6": 1, "5": 0}
            assert (await ask(session, "POST", f"{url}/register_dp_rank", json={}))[0] == 400

    asyncio.run(scenario())


@asynccontextmanager
async def resolving(timeout_s: float = 5.0) -> AsyncIterator[BootstrapClient]:
    client = BootstrapClient(timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.close()


def test_resolve() -> None:
    async def scenario() -> None:
        async with serving() as (server, _, port, _), resolving() as client:
            server.register(PrefillRank(rank_ip="10.1.2.3", rank_port=7000))
            for _ in range(3):
                assert await client.resolve("127.0.0.1", port, 17) == "10.1.2.3:7000"

    asyncio.run(scenario())


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "", "::"])
def test_an_unspecified_address_means_the_host_that_was_asked(unspecified: str) -> None:
    async def scenario() -> None:
        async with serving() as (server, _, port, _), resolving() as client:
            server.register(PrefillRank(rank_ip=unspecified, rank_port=7000))
            assert await client.resolve("localhost", port, 1) == "localhost:7000"

    asyncio.run(scenario())


def test_an_ipv6_address_gets_brackets() -> None:
    async def scenario() -> None:
        async with serving() as (server, _, port, _), resolving() as client:
            server.register(PrefillRank(rank_ip="fd00::1", rank_port=7000))
            assert await client.resolve("127.0.0.1", port) == "[fd00::1]:7000"

    asyncio.run(scenario())


def check_failure(error: TransferError, port: int, words: str) -> None:
    assert error.stage == "bootstrap"
    assert error.peer == f"127.0.0.1:{port}"
    assert words in str(error)
    assert "bootstrap_room 17" in str(error)


def test_nobody_registered_and_nobody_there() -> None:
    async def scenario() -> None:
        async with resolving() as client:
            async with serving() as (_, _, port, _):
                with pytest.raises(TransferError) as failure:
                    await client.resolve("127.0.0.1", port, 17)
                check_failure(failure.value, port, "answered 503: 0 prefill ranks")
            with pytest.raises(TransferError) as failure:
                await client.resolve("127.0.0.1", port, 17)
            check_failure(failure.value, port, "cannot be used")

    asyncio.run(scenario())


@asynccontextmanager
async def answering(body: bytes, status: int = 200, hangs: bool = False) -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        if hangs:
            await asyncio.Event().wait()
        headers = {"Location": "/elsewhere"} if status == 302 else None
        return web.Response(body=body, status=status, headers=headers)

    app = web.Application()
    app.router.add_get("/route", answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"nonsense", 200, "cannot be used"),
        (b'{"rank_ip": "a"}', 200, "cannot be used"),
        (b'{"rank_ip": "a", "rank_port": 0}', 200, "cannot be used"),
        (b"\xff" * 300, 500, "answered 500"),
        (b"", 302, "answered 302"),
        (b"x" * (MAX_BODY_BYTES + 1), 200, "longer than"),
    ],
)
def test_servers_that_answer_nonsense(body: bytes, status: int, words: str) -> None:
    async def scenario() -> None:
        async with answering(body, status) as port, resolving() as client:
            with pytest.raises(TransferError) as failure:
                await client.resolve("127.0.0.1", port, 17)
            check_failure(failure.value, port, words)

    asyncio.run(scenario())


def test_a_server_that_hangs() -> None:
    async def scenario() -> None:
        async with answering(b"", hangs=True) as port, resolving(timeout_s=0.05) as client:
            with pytest.raises(TransferError) as failure:
                await client.resolve("127.0.0.1", port, 17)
            check_failure(failure.value, port, "no answer within 0.05 s")

    asyncio.run(scenario())


def test_with_a_secret_only_who_proves_it_changes_state() -> None:
    asyncio.run(_only_who_proves_the_secret_changes_state())


async def _only_who_proves_the_secret_changes_state() -> None:
    secret = "the secret of the cluster"
    server = BootstrapServer(prefill_http_port=30000, secret=secret)
    port = await server.start("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    rank = {"rank_ip": "127.0.0.1", "rank_port": 4242}
    room = {"bootstrap_room": 7, "dp_rank": 0}
    good = {"Authorization": f"Bearer {registration_key(secret)}"}
    try:
        async with aiohttp.ClientSession() as session:
            for headers in ({}, {"Authorization": f"Bearer {secret}"}, {"Authorization": "\u00fc"}):
                for call, path, body in (
                    (session.put, "/route", rank),
                    (session.post, "/register_dp_rank", room),
                ):
                    async with call(url + path, json=body, headers=headers) as answer:
                        assert answer.status == 401
            assert not server.is_complete
            async with session.put(url + "/route", json=rank, headers=good) as answer:
                assert answer.status == 200
            async with session.post(url + "/register_dp_rank", json=room, headers=good) as answer:
                assert answer.status == 200
        client = BootstrapClient()
        assert await client.resolve("127.0.0.1", port) == "127.0.0.1:4242"  # questions stay open
        await client.close()
    finally:
        await server.stop()
