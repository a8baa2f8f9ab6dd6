"""Ten times as many requests as workers can serve, through the router's own process: who is served,
who is refused, and what is left afterwards.

The worker takes a known time for each request, so what can be served is known. What is asserted are
counts and orders; they hold on a busy machine, too.
Elsewhere: order and fairness without sockets (tests/unit/router/test_waiting.py).
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

NUM_SLOTS = 4
SERVICE_S = 0.1
CAPACITY = NUM_SLOTS / SERVICE_S
QUEUE_SIZE = 80
MAX_WAIT_S = 1.5
OVERLOAD = 10
TENANTS = "aaaabbc"
"""Who sends what part; each sends more than its share of what can be served."""
EVERY_URGENT = 50
"""So many requests apart are those of the higher priority: a fifth of the capacity."""
SLACK_S = 5.0
"""For a machine that has other things to do."""
MAX_GROWTH_BYTES = 24 * 2**20


@dataclass
class Asked:
    """One request. `num_started`: how many the worker had begun when it was sent, and when it
    began itself."""

    tenant: str
    is_urgent: bool
    num_started_when_sent: int = 0
    num_started_when_begun: int = 0
    status: int = 0
    code: str = ""
    retry_after_s: int = 0
    waited_s: float = 0.0


@dataclass
class Worker:
    """Takes SERVICE_S for each request, as many at once as come."""

    started: list[str] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    busy_s: float = 0.0
    asked: dict[str, Asked] = field(default_factory=dict)
    connected: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for writer in self.connected:
                writer.transport.abort()
        while self.connected:  # noqa: ASYNC110 (they end by themselves)
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"POST"):
                    await self._work(json.loads(body)["rid"])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        self.connected.discard(writer)

    async def _work(self, rid: str) -> None:
        self.started.append(rid)
        if rid in self.asked:
            self.asked[rid].num_started_when_begun = len(self.started)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        began_s = asyncio.get_running_loop().time()
        await asyncio.sleep(SERVICE_S)
        self.busy_s += asyncio.get_running_loop().time() - began_s
        self.num_running -= 1


@contextlib.contextmanager
def router_for(worker_url: str) -> Iterator[tuple[int, psutil.Process]]:
    """The port of a router in its own process."""
    argv = [sys.executable, "-m", "baton.launch_router", "--port", "0"]
    argv += ["--worker-urls", worker_url, "--tenant-header", "x-tenant"]
    argv += ["--max-concurrent-requests", str(NUM_SLOTS), "--queue-size", str(QUEUE_SIZE)]
    argv += ["--queue-timeout-secs", str(MAX_WAIT_S), "--log-level", "error"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield int(line.rpartition(":")[2]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


async def ask(port: int, rid: str, asked: Asked, worker: Worker) -> None:
    body = json.dumps({"text": "x", "rid": rid, "priority": int(asked.is_urgent)}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: a\r\nx-tenant: {asked.tenant}\r\n"
    head += f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    sent_s = loop.time()
    asked.num_started_when_sent = len(worker.started)
    writer.write(head.encode() + body)
    answer = await reader.read()
    asked.waited_s = loop.time() - sent_s
    writer.close()
    await writer.wait_closed()
    asked.status = int(answer.split(b" ", 2)[1])
    if asked.status != 200:
        asked.code = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
        retry = re.search(rb"Retry-After: (\d+)", answer)
        asked.retry_after_s = int(retry[1]) if retry else 0


async def overload(port: int, worker: Worker, seconds: float) -> None:
    """Requests at a steady rate, whatever becomes of them."""
    loop = asyncio.get_running_loop()
    began_s, interval_s = loop.time(), 1 / (OVERLOAD * CAPACITY)
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds / interval_s)):
            rid = str(number)
            is_urgent = number % EVERY_URGENT == 0
            asked = Asked(TENANTS[number % len(TENANTS)], is_urgent)
            worker.asked[rid] = asked
            group.create_task(ask(port, rid, asked, worker))
            await asyncio.sleep(max(0.0, began_s + number * interval_s - loop.time()))


async def until_served(port: int, worker: Worker) -> None:
    """A request is answered with 200; before the router knows its worker it is not."""
    probe = Asked("probe", is_urgent=True)
    while probe.status != 200:
        await asyncio.sleep(0.01)
        await ask(port, "probe", probe, worker)


def check(worker: Worker, seconds: float) -> None:
    asked = list(worker.asked.values())
    outcomes = Counter((each.status, each.code) for each in asked)
    assert set(outcomes) == {(200, ""), (429, "queue_full"), (503, "queue_timeout")}, outcomes
    assert all(each.retry_after_s >= 1 for each in asked if each.status != 200)
    check_nothing_is_refused_in_vain(worker, asked, seconds)
    check_the_urgent_go_first(asked)
    check_shares(asked)


def check_nothing_is_refused_in_vain(worker: Worker, asked: list[Asked], seconds: float) -> None:
    """Every slot is used all the time; who waits is given up not before its time is up; and who
    is served was so in time."""
    assert worker.most_running == NUM_SLOTS
    assert worker.busy_s >= 0.8 * NUM_SLOTS * seconds
    for each in asked:
        if each.code == "queue_timeout":
            assert each.waited_s >= MAX_WAIT_S
        elif each.status == 200:
            assert each.waited_s <= MAX_WAIT_S + SERVICE_S + SLACK_S
    served = Counter(worker.started)
    assert max(served.values()) == 1
    assert sum(each.status == 200 for each in asked) == len(worker.asked.keys() & served.keys())


def check_the_urgent_go_first(asked: list[Asked]) -> None:
    """None is refused, and the worker begins no more between than it had begun without our seeing
    it, and than became free while the request was on its way."""
    for each in asked:
        if each.is_urgent:
            assert each.status == 200
            num_before = each.num_started_when_begun - each.num_started_when_sent - 1
            assert num_before <= 3 * NUM_SLOTS, each


def check_shares(asked: list[Asked]) -> None:
    """Though one sends four times as much as another, and neither pays for the urgent ones."""
    served = Counter(each.tenant for each in asked if each.status == 200 and not each.is_urgent)
    fair = sum(served.values()) / len(set(TENANTS))
    assert all(0.9 * fair <= num <= 1.1 * fair for num in served.values()), served


@pytest.mark.parametrize("seconds", [6.0, pytest.param(60.0, marks=pytest.mark.nightly)])
def test_ten_times_what_can_be_served(seconds: float) -> None:
    async def scenario() -> None:
        worker = Worker()
        async with worker.running() as url:
            with router_for(url) as (port, process):
                await until_served(port, worker)
                worker.started.clear()
                await overload(port, Worker(), 1.0)  # whatever it takes in the beginning
                rss_bytes = process.memory_info().rss
                worker.started.clear()
                worker.busy_s = 0.0
                await overload(port, worker, seconds)
                check(worker, seconds)
                assert process.memory_info().rss <= rss_bytes + MAX_GROWTH_BYTES
                async with asyncio.timeout(SLACK_S):
                    await until_served(port, worker)

    asyncio.run(scenario())
