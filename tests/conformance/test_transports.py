"""Every KV transport passes one suite; a new backend is one more entry."""

import functools
import os
from collections.abc import Callable

import pytest

from baton.kvcache.storage import SharedSegment
from baton.testing.transport_conformance import REMOTE_CHECKS, TRANSPORT_CHECKS, MakeTransport
from baton.transfer import RoutedTransport, SimulatedLink, parse_link
from baton.transfer.registry import BACKENDS, open_transport, why_missing

LINKED = ("shm over a link", "tcp over a link")


def maker_of(name: str) -> MakeTransport:
    """A backend, or the same behind a simulated link that changes nothing but time."""
    backend, _, is_linked = name.partition(" over ")
    make = functools.partial(open_transport, backend)
    if not is_linked:
        return make

    def make_linked(segment: SharedSegment) -> RoutedTransport:
        return RoutedTransport(make(segment), SimulatedLink(parse_link("10Gbps,1ms")))

    return make_linked


@functools.cache
def reason_against(backend: str) -> str:
    return why_missing(backend)


@pytest.fixture(params=[*BACKENDS, *LINKED])
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := reason_against(name.partition(" ")[0]):
        pytest.skip(reason)
    return name


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_in_one_process(check: Callable[[MakeTransport], None], name: str) -> None:
    check(maker_of(name))


@pytest.mark.parametrize("check", REMOTE_CHECKS, ids=lambda check: check.__name__)
def test_across_processes(check: Callable[[MakeTransport, str], None], name: str) -> None:
    check(maker_of(name), name.partition(" ")[0])


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere the libraries are a choice")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_skipped_in_ci(backend: str) -> None:
    assert reason_against(backend) == ""
