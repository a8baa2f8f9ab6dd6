"""A worker tells its routers that it is there, again and again, until it leaves.

One task per router in the worker's api process. Each announcement is a lease: who falls silent is
forgotten. A router that was restarted, or was not up yet, hears of the worker at the next beat.
Invariant: to one router announcements go one after another, so their numbers arrive in order.
Elsewhere: what is said and how it is proved (messages/announcement.py), the other side
(router/announcements.py), when a worker leaves (launch/departure.py).
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec

from baton.core.request import Role
from baton.messages.announcement import (
    ANNOUNCE_PATH,
    CHALLENGE_HEADER,
    SIGNATURE_HEADER,
    Announcement,
    Intent,
    sign,
)
from baton.obs.logs import event_log

log = event_log("announcer")

BEAT_S: Final = 2.0
LEASE_S: Final = 10.0
ANSWER_LIMIT_S: Final = 3.0
_REASON_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class WorkerAddress:
    """How routers reach this worker."""

    url: str
    role: Role
    bootstrap_port: int | None = None


class Announcer:
    """Between `start` and `leave` all routers are told every `beat_s`."""

    def __init__(
        self,
        router_urls: Sequence[str],
        secret: str,
        address: WorkerAddress,
        *,
        beat_s: float = BEAT_S,
        lease_s: float = LEASE_S,
    ):
        assert secret or not router_urls, "without a secret no router would believe us"
        self._address = address
        self._secret = secret
        self._beat_s = beat_s
        self._lease_s = lease_s
        self._instance = secrets.token_hex(16)
        self._numbers = itertools.count(1)
        self._intent: Intent = "serving"
        self._routers = [_Router(url) for url in router_urls]
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if not self._routers:
            return
        self._session = aiohttp.ClientSession()
        self._tasks = [asyncio.create_task(self._keep_telling(each)) for each in self._routers]

    async def say_draining(self) -> int:
        """Tell every router now. Returns how many know: these send nothing new."""
        return await self._say("draining")

    async def leave(self) -> None:
        """The last word; nothing is said afterwards. May be called again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._session is not None:
            await self._say("gone")
            await self._session.close()
            self._session = None

    async def _say(self, intent: Intent) -> int:
        self._intent = intent
        return sum(await asyncio.gather(*(self._tell(router) for router in self._routers)))

    async def _keep_telling(self, router: "_Router") -> None:
        while True:
            await self._tell(router)
            await asyncio.sleep(self._beat_s)

    async def _tell(self, router: "_Router") -> bool:
        """Whether the router took it."""
        async with router.one_at_a_time:
            reason = await self._try_to_tell(router)
        if reason != router.last_reason:
            router.last_reason = reason
            if reason is None:
                log.info("router knows this worker", router=router.url)
            else:
                log.warning("router does not know this worker", router=router.url, reason=reason)
        return reason is None

    async def _try_to_tell(self, router: "_Router") -> str | None:
        """Why it failed, or None. A challenge that has become old is answered anew, once."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                status, reason = await self._post(router)
                if status == 401:
                    status, reason = await self._post(router)
        except TimeoutError:
            return f"no answer within {ANSWER_LIMIT_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__
        return None if status == 200 else f"it answers {status}: {reason}"

    async def _post(self, router: "_Router") -> tuple[int, str]:
        assert self._session is not None
        body = msgspec.json.encode(self._announcement())
        headers = {
            "Content-Type": "application/json",
            CHALLENGE_HEADER: router.challenge,
            SIGNATURE_HEADER: sign(self._secret, router.challenge, body),
        }
        async with self._session.post(
            router.url + ANNOUNCE_PATH, data=body, headers=headers, allow_redirects=False
        ) as answer:
            router.challenge = answer.headers.get(CHALLENGE_HEADER, router.challenge)
            return answer.status, _message_of(await answer.content.read(_REASON_BYTES))

    def _announcement(self) -> Announcement:
        address = self._address
        return Announcement(
            url=address.url,
            role=address.role,
            bootstrap_port=address.bootstrap_port,
            instance=self._instance,
            number=next(self._numbers),
            intent=self._intent,
            lease_s=self._lease_s,
        )


class _Router:
    """One router as this worker knows it. `last_reason`: why it last did not take our word; "" as
    long as it was never asked."""

    def __init__(self, url: str):
        self.url = url
        self.challenge = ""
        self.one_at_a_time = asyncio.Lock()
        self.last_reason: str | None = ""


def _message_of(body: bytes) -> str:
    """The words of an error of OpenAI's shape, or what there is."""
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        return str(msgspec.json.decode(body)["error"]["message"])
    return body.decode(errors="replace")[:200]
