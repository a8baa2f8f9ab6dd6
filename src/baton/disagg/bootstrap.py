"""Where decode workers learn how to reach a prefill engine: SGLang's bootstrap service.

A prefill worker runs the server (default port 8998) and registers every rank of its engine; a
decode worker asks it, per request, for the rank that will serve it.
With a cluster secret, what changes state wants `Authorization: Bearer` and `registration_key`: not
the secret itself, which must not travel. Questions stay open, as SGLang's workers ask them.
Invariant: an address is handed out only when all ranks that the registrations speak of are there.
Elsewhere: what the engines then say to each other (messages/handover.py).
"""

import asyncio
import hmac
from collections import OrderedDict
from typing import Annotated, Any, Final, TypeVar

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from baton.core.errors import TransferError
from baton.core.request import DEFAULT_BOOTSTRAP_PORT

MAX_BODY_BYTES: Final = 64 * 1024
MAX_KNOWN_ROOMS: Final = 65536
UNSPECIFIED_ADDRESSES: Final = frozenset({"", "0.0.0.0", "::", "[::]"})

Size = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=1023)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Room = Annotated[int, msgspec.Meta(ge=0)]

T = TypeVar("T")


def registration_key(secret: str) -> str:
    """What proves to a bootstrap server that its caller knows the cluster's secret."""
    return hmac.digest(secret.encode(), b"baton bootstrap registration", "sha256").hex()


class PrefillRank(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a prefill engine. `rank_ip` and `rank_port` are its control endpoint; an
    unspecified `rank_ip` (0.0.0.0) means the host under which the server was asked."""

    rank_ip: str
    rank_port: Port
    attn_tp_size: Size = 1
    attn_tp_rank: Rank = 0
    attn_cp_size: Size = 1
    attn_cp_rank: Rank = 0
    attn_dp_size: Size = 1
    attn_dp_rank: Rank = 0
    pp_size: Size = 1
    pp_rank: Rank = 0
    system_dp_size: Size = 1
    system_dp_rank: Rank = 0
    page_size: int | None = None
    kv_cache_dtype: str | None = None

    @property
    def dp_size(self) -> int:
        """Independent engine replicas, however they share attention."""
        return self.attn_dp_size if self.system_dp_size == 1 else self.system_dp_size

    @property
    def dp_rank(self) -> int:
        return self.attn_dp_rank if self.system_dp_size == 1 else self.system_dp_rank

    @property
    def key(self) -> tuple[int, int, int, int]:
        return (self.dp_rank, self.attn_cp_rank, self.attn_tp_rank, self.pp_rank)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (self.dp_size, self.attn_cp_size, self.attn_tp_size, self.pp_size)

    def problem(self) -> str | None:
        """Why this registration contradicts itself, or None."""
        names = ("dp", "attn_cp", "attn_tp", "pp")
        for name, rank, size in zip(names, self.key, self.sizes, strict=True):
            if rank >= size:
                return f"{name}_rank is {rank}; it must be below {name}_size, which is {size}"
        return None


class RankAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a question for one rank."""

    rank_ip: str
    rank_port: Port


class DpRankOfRoom(msgspec.Struct, frozen=True, kw_only=True):
    bootstrap_room: Room
    dp_rank: Rank


class RoomsQuery(msgspec.Struct, frozen=True, kw_only=True):
    bootstrap_rooms: list[Room]


class BootstrapServer:
    """Registrations of one prefill worker, served over HTTP."""

    def __init__(self, *, prefill_http_port: int, secret: str = ""):
        self._key = registration_key(secret) if secret else ""
        self._prefill_http_port = prefill_http_port
        self._ranks: dict[tuple[int, int, int, int], PrefillRank] = {}
        self._dp_rank_of_room: OrderedDict[int, int] = OrderedDict()
        self._runner: web.AppRunner | None = None

    @property
    def is_complete(self) -> bool:
        if not self._ranks:
            return False
        dp, cp, tp, pp = next(iter(self._ranks.values())).sizes
        return len(self._ranks) == dp * cp * tp * pp

    def register(self, rank: PrefillRank) -> None:
        """Add a rank, or replace it after a restart. Raises ValueError for one that cannot be."""
        problem = rank.problem()
        if problem is not None:
            raise ValueError(problem)
        others = [known for key, known in self._ranks.items() if key != rank.key]
        if others and others[0].sizes != rank.sizes:
            raise ValueError(
                f"sizes (dp, cp, tp, pp) are {rank.sizes}; the ranks already registered say "
                f"{others[0].sizes}; restart this bootstrap server with its prefill worker"
            )
        self._ranks[rank.key] = rank

    def make_app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_put("/route", self._put_route)
        app.router.add_get("/route", self._get_route)
        app.router.add_post("/register_dp_rank", self._register_dp_rank)
        app.router.add_post("/query_dp_ranks", self._query_dp_ranks)
        return app

    async def start(self, host: str, port: int = DEFAULT_BOOTSTRAP_PORT) -> int:
        """Listen; port 0 lets the system choose. Returns the port. Raises OSError if taken."""
        self._runner = web.AppRunner(self.make_app(), access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _put_route(self, request: web.Request) -> web.Response:
        self._require_key(request)
        rank = await _read(request, PrefillRank)
        try:
            self.register(rank)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        return web.Response(text="OK")

    async def _get_route(self, request: web.Request) -> web.Response:
        names = ("prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank")
        dp, cp, tp, pp = (_query_number(request, name) for name in names)
        if not self.is_complete:
            raise web.HTTPServiceUnavailable(
                text=f"{len(self._ranks)} prefill ranks are registered, not all; ask again"
            )
        if (dp, cp, tp, pp) == (-1, -1, -1, -1):
            return web.json_response(self._topology())
        rank = self._ranks.get((dp, cp, tp, pp))
        if rank is None:
            raise web.HTTPNotFound(
                text=f"there is no rank dp {dp}, cp {cp}, tp {tp}, pp {pp}; "
                f"sizes are {next(iter(self._ranks.values())).sizes}"
            )
        return web.json_response({"rank_ip": rank.rank_ip, "rank_port": rank.rank_port})

    async def _register_dp_rank(self, request: web.Request) -> web.Response:
        self._require_key(request)
        entry = await _read(request, DpRankOfRoom)
        self._dp_rank_of_room[entry.bootstrap_room] = entry.dp_rank
        self._dp_rank_of_room.move_to_end(entry.bootstrap_room)
        while len(self._dp_rank_of_room) > MAX_KNOWN_ROOMS:
            self._dp_rank_of_room.popitem(last=False)
        return web.Response(text="OK")

    async def _query_dp_ranks(self, request: web.Request) -> web.Response:
        rooms = (await _read(request, RoomsQuery)).bootstrap_rooms
        known = self._dp_rank_of_room
        return web.json_response({str(room): known[room] for room in rooms if room in known})

    def _require_key(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if self._key and not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
            raise web.HTTPUnauthorized(
                text="this changes the cluster: send the key of its secret as a bearer token"
            )

    def _topology(self) -> dict[str, Any]:
        first = next(iter(self._ranks.values()))
        return {
            "attn_tp_size": first.attn_tp_size,
            "attn_cp_size": first.attn_cp_size,
            "dp_size": first.dp_size,
            "pp_size": first.pp_size,
            "page_size": first.page_size,
            "kv_cache_dtype": first.kv_cache_dtype,
            "follow_bootstrap_room": True,
            "prefill_http_port": self._prefill_http_port,
        }


class BootstrapClient:
    """Asks bootstrap servers. One per event loop; connections are kept and reused."""

    def __init__(self, *, timeout_s: float = 5.0):
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def resolve(self, host: str, port: int, room: int = 0, *, dp_rank: int = 0) -> str:
        """Control address "ip:port" of the prefill rank that serves `room`.

        Asks once: whether to try again is the caller's to decide. Raises TransferError (stage
        "bootstrap") naming the server and what went wrong.
        """
        peer = f"{_in_url(host)}:{port}"
        query = {
            "prefill_dp_rank": str(dp_rank),
            "prefill_cp_rank": "0",
            "target_tp_rank": "0",
            "target_pp_rank": "0",
        }
        try:
            url = URL.build(scheme="http", host=host.strip("[]"), port=port, path="/route")
            body = await self._get(url, query)
            address = msgspec.json.decode(body, type=RankAddress)
        except _Refused as error:
            raise _failed(str(error), peer, room) from None
        except TimeoutError:
            raise _failed(f"no answer within {self._timeout_s:g} s", peer, room) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise _failed(f"the server cannot be used: {reason}", peer, room) from error
        ip = host if address.rank_ip in UNSPECIFIED_ADDRESSES else address.rank_ip
        return f"{_in_url(ip)}:{address.rank_port}"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _get(self, url: URL, query: dict[str, str]) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        async with asyncio.timeout(self._timeout_s):
            async with self._session.get(url, params=query, allow_redirects=False) as response:
                body = await _read_bounded(response.content)
                if response.status != 200:
                    text = body.decode("utf-8", "replace")[:200]
                    raise _Refused(f"the server answered {response.status}: {text}")
                return body


class _Refused(Exception):
    """An answer that is not the one asked for."""


async def _read_bounded(content: aiohttp.StreamReader) -> bytes:
    body = b""
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _Refused(f"the answer is longer than {MAX_BODY_BYTES} bytes")
    return body


def _failed(what: str, peer: str, room: int) -> TransferError:
    return TransferError(
        f"the prefill engine of bootstrap_room {room} is unknown: {what}; check bootstrap_host and "
        "bootstrap_port, and that the prefill worker runs",
        stage="bootstrap",
        peer=peer,
    )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _query_number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} is {text!r}; it must be a number") from None


async def _read(request: web.Request, schema: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=schema)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise web.HTTPBadRequest(text=f"the body is wrong: {error}") from None
