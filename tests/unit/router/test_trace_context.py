"""W3C trace context: what is passed on, what is dropped, and where its id is said."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.trace_context import forwarded_trace, trace_id_of
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize("parent", [PARENT, f"00-{TRACE}-{SPAN}-ff", f"cc-{TRACE}-{SPAN}-01-new"])
def test_a_trace_is_passed_on_as_it_came(parent: str) -> None:
    assert forwarded_trace(parent, "a=1, b=2") == {"traceparent": parent, "tracestate": "a=1, b=2"}
    assert forwarded_trace(parent, None) == {"traceparent": parent}
    assert trace_id_of({"traceparent": parent}) == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "junk",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01more",
        f"{PARENT}, {PARENT}",
        f"{PARENT}\n",
    ],
)
def test_a_malformed_one_is_dropped_with_its_state(parent: str) -> None:
    assert forwarded_trace(parent, "a=1") == {}
    assert trace_id_of({"traceparent": parent}) == ""


def test_of_a_huge_state_the_long_and_the_old_members_go() -> None:
    members = [f"m{number}=x" for number in range(40)]
    kept = forwarded_trace(PARENT, ",".join(members))["tracestate"]
    assert kept == ",".join(members[:32])
    long = f"long={'y' * 500}"
    kept = forwarded_trace(PARENT, f"{long},a=1,b=2")["tracestate"]
    assert kept == "a=1,b=2"
    assert forwarded_trace(PARENT, "a=\u00e9") == {"traceparent": PARENT}


@given(st.text(st.characters(max_codepoint=255), max_size=2000))
def test_a_state_is_bounded_whatever_it_is(state: str) -> None:
    kept = forwarded_trace(PARENT, state).get("tracestate", "")
    assert len(kept) <= 512
    assert kept.count(",") < 512
    assert kept.isascii()


def test_workers_logs_and_errors_know_the_trace(
    run: Run, cluster: ClusterMaker, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            headers = {"traceparent": PARENT, "tracestate": "a=1"}
            await c.post("/generate", {"text": "a"}, headers=headers)
            for worker in c.workers:
                seen = worker.requests[0].headers
                assert (seen["traceparent"], seen["tracestate"]) == (PARENT, "a=1")
            await c.post("/generate", {"text": "a"}, headers={"traceparent": "x"})
            assert "traceparent" not in c.decodes[0].requests[1].headers

            _, _, body = await c.post("/generate", b"no json", headers=headers)
            assert json.loads(body)["error"]["trace_id"] == TRACE
            _, _, body = await c.post("/generate", b"no json")
            assert "trace_id" not in json.loads(body)["error"]
            c.decodes[0].script = Script(num_tokens=4, die_at=2)
            body = {"text": "a", "stream": True}
            _, _, events = await c.post("/generate", body, headers=headers)
            assert TRACE.encode() in events

    with caplog.at_level(logging.INFO, logger="baton"):
        run(scenario)
    failed = [r.__dict__["baton_fields"] for r in caplog.records if "failed" in r.getMessage()]
    assert [f.get("trace_id") for f in failed if "request_id" in f] == [TRACE, None, TRACE]
