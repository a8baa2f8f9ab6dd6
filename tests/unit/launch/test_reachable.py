"""The address that peers are told."""

import pytest

from baton.launch.reachable import first_reachable, reachable_address


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "::1", "worker-7.example"])
def test_a_host_that_was_named_is_told_as_it_is(host: str) -> None:
    assert reachable_address(host) == host


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_a_wildcard_is_never_told(wildcard: str) -> None:
    assert reachable_address(wildcard) not in ("", "0.0.0.0", "::")


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["127.0.0.1", "10.77.1.2", "10.77.1.3"], "10.77.1.2"),
        (["169.254.3.4", "127.0.0.2", "192.168.0.9"], "192.168.0.9"),
        (["::1", "fe80::1", "fd00::2"], "fd00::2"),
        (["127.0.0.1", "::1"], None),
        ([], None),
    ],
)
def test_only_addresses_that_mean_the_same_elsewhere_count(
    addresses: list[str], expected: str | None
) -> None:
    assert first_reachable(addresses) == expected
