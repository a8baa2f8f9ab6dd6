"""Every KV transport passes the one suite of baton.testing.transport_conformance."""

from collections.abc import Callable

import pytest

from baton.testing.backends import BACKENDS, why_missing
from baton.testing.transport_conformance import REMOTE_CHECKS, TRANSPORT_CHECKS, MakeTransport


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := why_missing(name):
        pytest.skip(reason)
    return name


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_in_one_process(check: Callable[[MakeTransport], None], backend: str) -> None:
    check(BACKENDS[backend])


@pytest.mark.parametrize("check", REMOTE_CHECKS, ids=lambda check: check.__name__)
def test_across_processes(check: Callable[[MakeTransport, str], None], backend: str) -> None:
    check(BACKENDS[backend], backend)
