"""What a failed request leaves in the router's log: one line when a worker is to blame, none that
is loud when the client is."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from baton.router.config import HealthRules
from baton.router.exchange import forwarded_headers, request_id_of
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def fields_of(self, event: str) -> list[tuple[str, dict[str, Any]]]:
        """(level, fields) of the lines about `event`."""
        return [
            (record.levelname, record.__dict__["baton_fields"])
            for record in self.records
            if record.getMessage() == event
        ]

    @property
    def loud(self) -> list[str]:
        return [r.getMessage() for r in self.records if r.levelno >= logging.WARNING]


@pytest.fixture
def kept() -> Iterator[_Kept]:
    logger, handler = logging.getLogger("baton.router"), _Kept()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.mark.parametrize("status", [400, 404, 429, 499])
def test_a_clients_mistake_is_no_warning_and_no_failed_leg(
    run: Run, cluster: ClusterMaker, kept: _Kept, status: int
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefills[0].script = c.decodes[0].script = Script(status=status)
            assert (await c.post("/generate", {"text": "a"}))[0] == status
            assert (await c.post("/generate", b"{"))[0] == 400
            await c.until_quiet()
            _, _, metrics = await c.get("/metrics")
            assert b"baton_router_leg_failures_total{" not in metrics

    run(scenario)
    assert kept.loud == []
    assert len(kept.fields_of("request failed")) == 2


def test_a_workers_failure_is_one_warning_with_the_request_id(
    run: Run, cluster: ClusterMaker, kept: _Kept
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefills[0].script = c.decodes[0].script = Script(status=500)
            status, _, _ = await c.post("/generate", {"text": "a"}, headers={"X-Request-ID": "r1"})
            assert status == 500
            await c.until_quiet()

    run(scenario)
    assert kept.loud == ["request failed"]
    ((level, fields),) = kept.fields_of("request failed")
    assert (level, fields["request_id"], fields["status"]) == ("WARNING", "r1", 500)
    assert fields["reason"].endswith(("fake 500 from prefill", "fake 500 from decode"))


def test_a_stream_that_breaks_is_one_warning(run: Run, cluster: ClusterMaker, kept: _Kept) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decodes[0].script = Script(die_at=2)
            status, _, _ = await c.post("/generate", {"text": "a", "stream": True})
            assert status == 200
            await c.until_quiet()

    run(scenario)
    ((level, fields),) = kept.fields_of("request failed")
    assert (level, fields["status"]) == ("WARNING", 503)
    assert "failed during the request" in fields["reason"]


@pytest.mark.parametrize(
    ("code", "status", "loud"), [("engine_error", 500, ["request failed"]), ("aborted", 499, [])]
)
def test_an_error_inside_a_stream_counts_as_a_failed_request(
    run: Run, cluster: ClusterMaker, kept: _Kept, code: str, status: int, loud: list[str]
) -> None:
    async def scenario() -> None:
        async with cluster(0, 0, 1) as c:
            error = {"error": {"message": "it is over", "type": "server_error", "code": code}}
            c.regulars[0].script = Script(error_event=error)
            _, _, body = await c.post("/generate", {"text": "a", "stream": True})
            assert body.count(b"it is over") == 1
            await c.until_quiet()
            _, _, metrics = await c.get("/metrics")
            assert f'requests_total{{route="/generate",status="{status}"}} 1.0'.encode() in metrics

    run(scenario)
    ((_, fields),) = kept.fields_of("request failed")
    assert fields["reason"].endswith(f"answered {status}: it is over")
    assert kept.loud == loud


def test_a_worker_that_refuses_is_named_once(run: Run, cluster: ClusterMaker, kept: _Kept) -> None:
    async def scenario() -> None:
        rules = HealthRules(interval_s=60)
        async with cluster(0, 0, 1, health=rules, worker_wait_s=0.0) as c:
            await c.regulars[0].stop()
            for _ in range(2):
                assert (await c.post("/generate", {"text": "a"}))[0] == 503
            await c.until_quiet()

    run(scenario)
    ((level, fields),) = kept.fields_of("worker unhealthy")
    assert (level, fields["reason"].endswith("Connection refused")) == ("WARNING", True)


def test_workers_get_the_one_request_id_that_the_router_logs() -> None:
    for asked in ("my id", "a" * 2000, "é", ""):
        assert request_id_of({"x-request-id": asked}).startswith("req-")
    assert request_id_of({"x-request-id": "trace/7:a=b"}) == "trace/7:a=b"
    sent = forwarded_headers({"x-request-id": "my id", "x-request-id-parent": "p"}, "req-1")
    ids = {name: value for name, value in sent.items() if name.lower().startswith("x-request-id")}
    assert ids == {"X-Request-ID": "req-1", "x-request-id-parent": "p"}
