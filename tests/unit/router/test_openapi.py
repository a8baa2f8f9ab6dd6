"""The router's OpenAPI document: it is served, it names what is there, and Schemathesis, which
reads it, finds no answer that it does not tell of.

Elsewhere: bytes that are no requests (test_fuzz_http.py).
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from baton.router.app import RouterApp
from baton.router.config import RouterConfig
from baton.router.http.messages import Request
from baton.router.http.routes import NoRoute
from baton.router.openapi import PATH, openapi

from .conftest import ClusterMaker, make_cluster

Run = Callable[[Callable[[], Any]], None]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
schema = schemathesis.openapi.from_dict(openapi()).exclude(method="POST", path="/workers")
"""An invented URL of a worker would be connected to."""


def limited(num_examples: int) -> settings:
    return settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def test_the_document_is_served(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            status, headers, body = await c.get(PATH)
            assert (status, headers["Content-Type"]) == (200, "application/json")
            assert json.loads(body) == openapi()

    run(scenario)


def test_every_route_in_it_is_there_with_its_methods(run: Run) -> None:
    async def scenario() -> None:
        app = RouterApp(RouterConfig())
        for path, operations in openapi()["paths"].items():
            for method in operations:
                real = path.replace("{worker_id}", "w")
                try:
                    app._routes.find(Request(None, method.upper(), real, {}))  # type: ignore[arg-type]
                except NoRoute:
                    pytest.fail(f"{path} is in the document, not in the router")

    run(scenario)


@pytest.fixture(scope="module")
def router_url() -> Iterator[str]:
    """A router with its workers in a thread: Schemathesis asks and waits."""
    found: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    is_ready = threading.Event()

    async def serve() -> None:
        is_over = asyncio.Event()
        async with make_cluster() as c:
            found.append((c.url, asyncio.get_running_loop(), is_over))
            is_ready.set()
            await is_over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    is_ready.wait()
    url, loop, is_over = found[0]
    try:
        yield url
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(is_over.set)
        thread.join()


@schema.parametrize()
@limited(8)
def test_what_the_document_allows_and_forbids(case: schemathesis.Case, router_url: str) -> None:
    case.call_and_validate(base_url=router_url, checks=CHECKS, timeout=10)


@pytest.mark.nightly
@schema.parametrize()
@limited(400)
def test_much_of_what_the_document_allows_and_forbids(
    case: schemathesis.Case, router_url: str
) -> None:
    case.call_and_validate(base_url=router_url, checks=CHECKS, timeout=10)
