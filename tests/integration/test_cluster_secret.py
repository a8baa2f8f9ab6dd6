"""Workers with and without the right cluster secret, and strangers at their ports."""

import contextlib
import os
import re
import socket
import time
from pathlib import Path

import psutil
import pytest

from baton.testing.processes import Server, router, running, wait_until, worker

SECRET = "the secret of this cluster"
REFUSED = re.compile(r'baton:refused_connections_total\{channel="(\w+)".*reason="(\w+)"\} (\S+)')
CLEAR_S = 8.0


def with_secret(server: Server, secret: str) -> Server:
    server.environ["BATON_CLUSTER_SECRET"] = secret
    return server


def refused(server: Server) -> dict[tuple[str, str], int]:
    found = REFUSED.findall(str(server.get("/metrics")[1]))
    return {(channel, reason): int(float(count)) for channel, reason, count in found}


def listening_ports(pid: int) -> set[int]:
    listening = psutil.Process(pid).net_connections("tcp")
    return {each.laddr.port for each in listening if each.status == psutil.CONN_LISTEN}


BODY = {
    "input_ids": list(range(5, 60)),
    "sampling_params": {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True},
}


def test_a_wrong_secret_is_told_and_harms_nobody(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BATON_CLUSTER_SECRET", raising=False)
    small = ("--max-total-tokens=4096", "--kernel-backend=torch")
    prefill = with_secret(worker("prefill", tiny_model, tmp_path, *small), SECRET)
    good = with_secret(worker("decode", tiny_model, tmp_path, *small), SECRET)
    bad = with_secret(worker("decode", tiny_model, tmp_path, *small), "some other secret")
    none = worker("decode", tiny_model, tmp_path, *small)
    fronts = [router([prefill, decode], tmp_path) for decode in (good, bad, none)]
    with running(prefill, good, bad, none, *fronts):
        status, expected = fronts[0].post("/generate", BODY)
        assert status == 200
        for front in fronts[1:]:
            began_s = time.monotonic()
            status, answer = front.post("/generate", BODY)
            assert status == 503
            assert "wrong cluster secret" in str(answer)
            assert "BATON_CLUSTER_SECRET" in str(answer)
            assert time.monotonic() - began_s < CLEAR_S
        wait_until(lambda: refused(prefill)["control", "secret"] >= 2, "the wrong ones counted")
        assert refused(prefill)["control", "malformed"] == 0
        for port in listening_ports(prefill.engine_pid()) | listening_ports(good.engine_pid()):
            for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 10, os.urandom(4096)):
                with socket.create_connection(("127.0.0.1", port), 5) as stranger:
                    with contextlib.suppress(OSError):  # it may be turned away at any moment
                        stranger.sendall(garbage)
                        while stranger.recv(4096):
                            pass
        for server in (prefill, good):
            for channel in ("control", "kv"):
                wait_until(
                    lambda s=server, c=channel: refused(s)[c, "malformed"] == 2, "garbage counted"
                )
        status, answer = fronts[0].post("/generate", BODY)
        assert (status, answer["output_ids"]) == (200, expected["output_ids"])
        shown = prefill.log() + good.log() + bad.log() + none.log()
        for server in (prefill, good, bad):
            engine = psutil.Process(server.engine_pid())
            shown += " ".join(engine.cmdline())
            assert "BATON_CLUSTER_SECRET" not in engine.environ()
        assert SECRET not in shown
        assert "some other secret" not in shown
