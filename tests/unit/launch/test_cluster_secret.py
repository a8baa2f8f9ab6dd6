import socket
from pathlib import Path

import pytest

from baton.core.errors import ConfigError
from baton.launch.cluster_secret import (
    CLUSTER_SECRET_VARIABLE,
    is_loopback,
    read_cluster_secret,
    receive_secret,
    send_secret,
    without_secret,
)

SECRET = "sixteen letters!"


def test_a_file_wins_over_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    environ = {CLUSTER_SECRET_VARIABLE: "another one of enough length"}
    assert read_cluster_secret(str(path), environ) == SECRET
    assert read_cluster_secret(None, environ) == "another one of enough length"
    assert read_cluster_secret(None, {}) == ""
    assert without_secret({**environ, "HOME": "/"}) == {"HOME": "/"}


def test_a_short_or_missing_one_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2")
    for file, environ in ((None, {CLUSTER_SECRET_VARIABLE: "hunter2"}), (str(path), {})):
        with pytest.raises(ConfigError, match="openssl rand") as caught:
            read_cluster_secret(file, environ)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cluster_secret(str(tmp_path / "nothing"), {})
    path.write_text("\n")
    with pytest.raises(ConfigError, match="0 characters"):
        read_cluster_secret(str(path), {})


def test_the_engine_gets_it_over_its_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_secret(ours, SECRET)
        send_secret(ours, "")
        assert (receive_secret(theirs), receive_secret(theirs)) == (SECRET, "")
        ours.close()
        with pytest.raises(EOFError):
            receive_secret(theirs)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
