"""Every KV transport passes the one suite of baton.testing.transport_conformance."""

from collections.abc import Callable, Iterator

import pytest

from baton.kvcache.storage import SharedSegment
from baton.testing.faulty import FaultConfig, faulty
from baton.testing.network_hosts import NetworkHost, two_hosts, why_no_hosts
from baton.testing.transport_conformance import (
    HOST_CHECKS,
    REMOTE_CHECKS,
    TRANSPORT_CHECKS,
    MakeTransport,
)
from baton.transfer import RoutedTransport, ShmTransport, SimulatedLink, TcpTransport, parse_link
from baton.transfer.registry import BACKENDS as REGISTRY


def over_a_link(make: MakeTransport) -> MakeTransport:
    """The same behind a simulated link that is good enough to change nothing but time."""

    def make_linked(segment: SharedSegment) -> RoutedTransport:
        return RoutedTransport(make(segment), SimulatedLink(parse_link("10Gbps,1ms")))

    return make_linked


def over_a_faulty_way(make: MakeTransport) -> MakeTransport:
    """With the faults that stay within the contract: writes arrive twice, or late."""

    def make_faulty(segment: SharedSegment) -> RoutedTransport:
        faults = FaultConfig(seed=1, duplicate=0.3, overtake=0.2, hold_s=0.001)
        return faulty(make(segment), faults)

    return make_faulty


BACKENDS: dict[str, MakeTransport] = {
    "shm": ShmTransport,
    "tcp": TcpTransport,
    "shm over a link": over_a_link(ShmTransport),
    "tcp over a link": over_a_link(TcpTransport),
    "shm over a faulty way": over_a_faulty_way(ShmTransport),
    "tcp over a faulty way": over_a_faulty_way(TcpTransport),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_in_one_process(check: Callable[[MakeTransport], None], backend: str) -> None:
    check(BACKENDS[backend])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", REMOTE_CHECKS, ids=lambda check: check.__name__)
def test_across_processes(check: Callable[[MakeTransport, str], None], backend: str) -> None:
    check(BACKENDS[backend], backend.partition(" ")[0])


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[NetworkHost, NetworkHost]]:
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as pair:
        yield pair


@pytest.mark.parametrize("backend", REGISTRY)
@pytest.mark.parametrize("check", HOST_CHECKS, ids=lambda check: check.__name__)
def test_between_two_hosts(
    check: Callable[[str, NetworkHost, NetworkHost], None],
    backend: str,
    hosts: tuple[NetworkHost, NetworkHost],
) -> None:
    check(backend, *hosts)
