"""Every KV transport passes the one suite of baton.testing.transport_conformance."""

from collections.abc import Callable

import pytest

from baton.kvcache.storage import SharedSegment
from baton.testing.transport_conformance import REMOTE_CHECKS, TRANSPORT_CHECKS, MakeTransport
from baton.transfer import RoutedTransport, ShmTransport, SimulatedLink, TcpTransport, parse_link


def over_a_link(make: MakeTransport) -> MakeTransport:
    """The same behind a simulated link that is good enough to change nothing but time."""

    def make_linked(segment: SharedSegment) -> RoutedTransport:
        return RoutedTransport(make(segment), SimulatedLink(parse_link("10Gbps,1ms")))

    return make_linked


BACKENDS: dict[str, MakeTransport] = {
    "shm": ShmTransport,
    "tcp": TcpTransport,
    "shm over a link": over_a_link(ShmTransport),
    "tcp over a link": over_a_link(TcpTransport),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_in_one_process(check: Callable[[MakeTransport], None], backend: str) -> None:
    check(BACKENDS[backend])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", REMOTE_CHECKS, ids=lambda check: check.__name__)
def test_across_processes(check: Callable[[MakeTransport, str], None], backend: str) -> None:
    check(BACKENDS[backend], backend.partition(" ")[0])
