"""Every KV transport passes one suite; a new backend is one more entry of the registry."""

import functools
import os
from collections.abc import Callable, Iterator

import pytest

from baton.kvcache.storage import SharedSegment
from baton.testing.faulty import FaultConfig, faulty
from baton.testing.network_hosts import NetworkHost, two_hosts, why_no_hosts
from baton.testing.transport_checks.sides import MakeTransport
from baton.testing.transport_checks.storm import check_a_storm
from baton.testing.transport_conformance import (
    BROKEN_WAY_CHECKS,
    HOST_CHECKS,
    REMOTE_CHECKS,
    TRANSPORT_CHECKS,
)
from baton.transfer import RoutedTransport, SimulatedLink, parse_link
from baton.transfer.mooncake import MooncakeTransport
from baton.transfer.nixl import NixlTransport
from baton.transfer.registry import BACKENDS, open_transport, why_missing

ROUTES = ("a link", "a faulty way")
ROUTED = (
    *(f"{backend} over {route}" for backend in ("shm", "tcp") for route in ROUTES),
    *(
        pytest.param(f"{backend} over a faulty way", marks=pytest.mark.nightly)  # a minute
        for backend in ("mooncake", "nixl")
    ),
)
DRAIN_S = 1.0
"""All writers are on this machine, so what a dead one left behind arrives at once."""
MAKERS: dict[str, MakeTransport] = {
    **{backend: functools.partial(open_transport, backend) for backend in BACKENDS},
    "mooncake": functools.partial(MooncakeTransport, drain_s=DRAIN_S),
    "nixl": functools.partial(NixlTransport, drain_s=DRAIN_S),
}


def maker_of(name: str) -> MakeTransport:
    """A backend; or one behind a simulated link that changes nothing but time; or behind faults
    that stay within the contract: writes arrive twice, or late."""
    backend, _, route = name.partition(" over ")
    make = MAKERS[backend]

    def make_routed(segment: SharedSegment) -> RoutedTransport:
        if route == "a link":
            return RoutedTransport(make(segment), SimulatedLink(parse_link("1000Gbps,1ms")))
        faults = FaultConfig(seed=1, duplicate=0.3, overtake=0.2, hold_s=0.001)
        return faulty(make(segment), faults)

    return make_routed if route else make


@functools.cache
def reason_against(backend: str) -> str:
    return why_missing(backend)


def skip_if_missing(backend: str) -> None:
    if reason := reason_against(backend):
        pytest.skip(reason)


@pytest.fixture(params=[*BACKENDS, *ROUTED])
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    skip_if_missing(name.partition(" ")[0])
    return name


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_in_one_process(check: Callable[[MakeTransport], None], name: str) -> None:
    check(maker_of(name))


@pytest.mark.parametrize("check", REMOTE_CHECKS, ids=lambda check: check.__name__)
def test_across_processes(check: Callable[[MakeTransport, str], None], name: str) -> None:
    check(maker_of(name), name.partition(" ")[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", BROKEN_WAY_CHECKS, ids=lambda check: check.__name__)
def test_over_a_broken_way(check: Callable[[MakeTransport], None], backend: str) -> None:
    skip_if_missing(backend)
    check(MAKERS[backend])


@pytest.mark.parametrize("seed", range(3))
def test_a_storm(name: str, seed: int) -> None:
    check_a_storm(maker_of(name), seed, num_operations=200)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_long_storm(name: str, seed: int) -> None:
    check_a_storm(maker_of(name), seed, num_operations=10_000)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[NetworkHost, NetworkHost]]:
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as pair:
        yield pair


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "shm"])
@pytest.mark.parametrize("check", HOST_CHECKS, ids=lambda check: check.__name__)
def test_between_two_hosts(
    check: Callable[[str, NetworkHost, NetworkHost], None],
    backend: str,
    hosts: tuple[NetworkHost, NetworkHost],
) -> None:
    skip_if_missing(backend)
    check(backend, *hosts)


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere the libraries are a choice")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_skipped_in_ci(backend: str) -> None:
    assert reason_against(backend) == ""
