"""One question to a running server over HTTP, for commands that ask and print.

Elsewhere: conversations (chat_stream.py), load (bench/serve).
"""

import json
import urllib.error
import urllib.request
from typing import Any, Final

from baton.core.errors import BatonError

_TIMEOUT_S: Final = 90.0


class AskError(BatonError, RuntimeError):
    """The server cannot be reached, or answered with an error."""


def ask(
    url: str, path: str, *, api_key: str | None, body: dict[str, Any] | None = None
) -> tuple[int, bytes]:
    """Status and body of a GET, or of a POST where there is a body. Raises AskError when nobody
    answers."""
    payload = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    if not url.startswith(("http://", "https://")):
        raise AskError(f"--url {url} is no web address; try http://127.0.0.1:8000")
    request = urllib.request.Request(url.rstrip("/") + path, payload, headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, ValueError) as error:
        raise AskError(
            f"cannot reach {url} ({error}); start a server with `baton serve`, or say where it is "
            "with --url"
        ) from error


def reason_of(body: bytes) -> str:
    """Why an answer is an error, in the server's words."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body[:200].decode(errors="replace").strip() or "no reason given"
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
