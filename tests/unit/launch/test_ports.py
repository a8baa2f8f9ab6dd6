"""Finding ports that are free."""

import socket

import pytest

from baton.core.errors import ConfigError
from baton.launch.ports import FreePorts, check_port_is_free


def test_no_port_is_given_twice() -> None:
    ports = FreePorts()
    taken = [ports.take() for _ in range(50)]
    assert len(set(taken)) == 50


def test_a_taken_port_is_refused_with_a_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"--port {port}: cannot listen there .*try --port"
        ) as e:
            check_port_is_free("127.0.0.1", port)
        assert "(Address already in use)" in str(e.value)


def test_zero_becomes_a_port() -> None:
    port = check_port_is_free("127.0.0.1", 0)
    assert port != 0
    assert check_port_is_free("127.0.0.1", port) == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 .*give --host an"):
        check_port_is_free("192.0.2.1", 0)


def test_a_name_that_nobody_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no host of that name.*give --host an address"):
        check_port_is_free("nowhere.invalid", 0)
