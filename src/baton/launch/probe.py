"""One small HTTP question to a server that is starting: does it serve yet?

Elsewhere: real HTTP clients (router/). This one needs no library: supervising costs nothing.
"""

import asyncio
from urllib.parse import urlsplit


async def http_status(url: str, *, timeout_s: float) -> int | None:
    """Status of `GET url`, or None when nobody answers HTTP there within `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(url)
    except (OSError, TimeoutError):
        return None


async def _ask(url: str) -> int | None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        question = f"GET {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n"
        writer.write(question.encode("ascii"))
        words = (await reader.readline()).split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else None
    finally:
        writer.close()
