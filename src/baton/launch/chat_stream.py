"""The chat API over plain HTTP, one request at a time: enough for a terminal, quick to import.

Invariant: closing the iterator of `stream` closes the connection, which stops the server's work.
Elsewhere: the conversation (chat.py).
"""

import http.client
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import urlsplit

from baton.core.errors import BatonError, ConfigError

_CONNECT_TIMEOUT_S = 10.0


class ChatError(BatonError, RuntimeError):
    """The server cannot be reached, or answered with an error."""


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Piece:
    """Some text of an answer; the last one says why it ended."""

    text: str
    finish_reason: str | None = None


class ChatClient:
    """`url` is the server's, with or without the `/v1` that other clients ask for."""

    def __init__(self, url: str, *, api_key: str | None = None):
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(f"--url {url}: the port is not a number up to 65535") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url {url} is no web address; try http://127.0.0.1:8000")
        self._url = url
        self._is_encrypted = parts.scheme == "https"
        self._host, self._port = parts.hostname, port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        """Name of the first model that the server lists."""
        with closing(self._connect()) as connection:
            answer = self._request(connection, "GET", "/v1/models", None)
            try:
                model: str = json.load(answer)["data"][0]["id"]
            except (ValueError, LookupError, TypeError) as error:
                raise ChatError(
                    f"{self._url} does not answer like a chat server; check --url"
                ) from error
            return model

    def stream(self, body: dict[str, object]) -> Generator[Piece, None, None]:
        """The answer to `body`, piece by piece. Raises ChatError."""
        with closing(self._connect()) as connection:
            answer = self._request(connection, "POST", "/v1/chat/completions", json.dumps(body))
            try:
                yield from _pieces(answer)
            except (OSError, http.client.HTTPException) as error:
                raise ChatError(f"the connection to {self._url} broke: {error!r}") from error

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_encrypted else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a long prompt may take its time
            connection.request(method, self._base + path, body, self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ChatError(f"{self._url} answered {answer.status}: {_reason(answer.read())}")
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(
                f"cannot reach {self._url} ({error}); start a server with `baton serve`, "
                "or say where it is with --url"
            ) from error
        return answer


def _pieces(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[Piece]:
    """The text in a stream of server-sent events."""
    for line in lines:
        name, _, content = line.decode(errors="replace").strip().partition(":")
        if name != "data":
            continue
        if content.strip() == "[DONE]":
            return
        event = json.loads(content)
        if "error" in event:
            raise ChatError(_message(event))
        for choice in event.get("choices", []):
            text = choice.get("delta", {}).get("content") or ""
            yield Piece(text, choice.get("finish_reason"))
    raise ChatError("the answer was cut off before its end")


def _reason(body: bytes) -> str:
    try:
        return _message(json.loads(body))
    except ValueError:
        return body.decode(errors="replace").strip()[:200] or "no reason given"


def _message(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
