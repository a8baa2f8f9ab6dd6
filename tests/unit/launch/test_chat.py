"""`baton chat` against a small server in a thread."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from baton.core.errors import ConfigError
from baton.launch import chat
from baton.launch.chat_stream import ChatClient


def _event(text: str, finish: str | None = None) -> str:
    choice = {"delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice]})


class _ChatHandler(BaseHTTPRequestHandler):
    """Answers every question with `events`; keeps the bodies it got."""

    events: ClassVar[list[str]] = []
    status: ClassVar[int] = 200
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.bodies.append(json.loads(body))
        if self.status != 200:
            self._answer(self.status, json.dumps({"error": {"message": "too long"}}))
        else:
            self._answer(200, "".join(f"data: {event}\n\n" for event in self.events))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _server(*events: str, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(url, the list that request bodies are put on)"""
    bodies: list[dict[str, Any]] = []
    members = {"events": list(events), "status": status, "bodies": bodies}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_ChatHandler,), members))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _chat(monkeypatch: pytest.MonkeyPatch, url: str, typed: str, *options: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return chat.main(["--url", url, *options])


def test_piped_questions_are_one_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _server(_event("Ray"), _event("leigh", "stop"), "[DONE]") as (url, bodies):
        options = ("--system", "Be brief.", "--temperature", "0")
        assert _chat(monkeypatch, url, "Why?\n\nWhat else?\n", *options) == 0
    assert capsys.readouterr().out == "Rayleigh\nRayleigh\n"
    assert bodies[0]["temperature"] == 0
    assert bodies[0]["model"] == "tiny"
    said = [(message["role"], message["content"]) for message in bodies[1]["messages"]]
    assert said == [
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "Rayleigh"),
        ("user", "What else?"),
    ]


def test_reset_forgets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with _server(_event("A", "stop"), "[DONE]") as (url, bodies):
        _chat(monkeypatch, url, "one\n/reset\ntwo\n")
    assert [message["content"] for message in bodies[1]["messages"]] == ["two"]


@pytest.mark.parametrize(
    ("events", "status", "message"),
    [
        ((), 400, "answered 400: too long"),
        ((_event("half"),), 200, "cut off before its end"),
        ((json.dumps({"error": {"message": "worker died"}}),), 200, "worker died"),
    ],
)
def test_failures_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    events: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    with _server(*events, status=status) as (url, _):
        assert _chat(monkeypatch, url, "Why?\n") == 1
    assert message in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with _server(_event("A"), _event("B", "stop"), "[DONE]") as (url, _):
        chatting = subprocess.Popen(
            [sys.executable, "-m", "baton.launch.cli", "chat", "--url", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert chatting.stdout is not None
        chatting.stdout.close()
        chatting.stdout = None
        _, complaints = chatting.communicate(b"Why?\n", timeout=30)
    assert (chatting.returncode, complaints) == (0, b"")


def test_no_server_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _server() as (url, _):
        pass
    assert _chat(monkeypatch, url, "Why?\n") == 1
    assert "start a server with `baton serve`" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://a:99999"])
def test_a_wrong_url_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        ChatClient(url)
