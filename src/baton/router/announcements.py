"""Workers that come by themselves: whom the router believes, and what follows.

Without the cluster's secret it believes nobody. A worker that falls silent is forgotten when its
lease ends, if it came by itself; what the operator named stays and is probed on.
Invariant: nothing changes by an announcement that is unsigned, old or repeated.
Elsewhere: challenges (proofs.py), leases (leases.py), what is said (messages/announcement.py).
"""

import asyncio

import msgspec

from baton.core.clock import Clock
from baton.core.errors import ConfigError, RequestError
from baton.messages.announcement import (
    CHALLENGE_HEADER,
    SIGNATURE_HEADER,
    Announcement,
    is_signed,
)
from baton.obs.logs import EventLog
from baton.router.config import (
    RouterConfig,
    WorkerRole,
    WorkerSpec,
    check_role,
    parse_worker_url,
)
from baton.router.fleet import Fleet
from baton.router.http.messages import Request, Response
from baton.router.leases import Lease, Leases
from baton.router.proofs import Proofs
from baton.router.workers import Drainer, Worker

MAX_ANNOUNCEMENT_BYTES = 4096
_log = EventLog("baton.router")
_ROLES = {
    "prefill": WorkerRole.PREFILL,
    "decode": WorkerRole.DECODE,
    "null": WorkerRole.REGULAR,
}


def is_small(request: Request) -> bool:
    """Announcements carry no API key; strangers' bodies are read only if they could be one."""
    length = request.headers.get("content-length", "")
    return length.isdecimal() and int(length) <= MAX_ANNOUNCEMENT_BYTES


class Announcements:
    def __init__(self, config: RouterConfig, fleet: Fleet, clock: Clock):
        self._config = config
        self._fleet = fleet
        self._clock = clock
        self._proofs = Proofs(clock.now_s())
        self._leases = Leases()
        self._timer: asyncio.TimerHandle | None = None

    async def handle(self, request: Request) -> Response:
        """POST /workers/announce."""
        now_s = self._clock.now_s()
        if not self._config.cluster_secret:
            raise RequestError(
                "this router takes no announcements: it has no cluster secret; give it the "
                "workers' BATON_CLUSTER_SECRET",
                status=403,
                code="announcements_off",
            )
        if not self._proofs.is_ours(request.headers.get(CHALLENGE_HEADER.lower(), ""), now_s):
            return self._answer(401, {"error": _CHALLENGE}, now_s)
        worker = await self._take(self._believed(request, now_s), now_s)
        worker_id = worker.id if worker is not None else None
        return self._answer(200, {"worker_id": worker_id}, now_s)

    def is_leased(self, url: str) -> bool:
        """Whether the worker there announces itself."""
        return self._leases.find(url) is not None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answer(self, status: int, answer: dict[str, object], now_s: float) -> Response:
        headers = {
            "Content-Type": "application/json",
            CHALLENGE_HEADER: self._proofs.challenge(now_s),
        }
        return Response(status, msgspec.json.encode(answer), headers)

    def _believed(self, request: Request, now_s: float) -> Announcement:
        """What a worker of this cluster says for the first time; raises RequestError."""
        challenge = request.headers[CHALLENGE_HEADER.lower()]
        signature = request.headers.get(SIGNATURE_HEADER.lower(), "")
        if not is_signed(self._config.cluster_secret, challenge, request.body, signature):
            raise RequestError(
                "the announcement is signed with another secret; set the same "
                "BATON_CLUSTER_SECRET on worker and router",
                status=403,
                code="wrong_secret",
            )
        try:
            said = msgspec.json.decode(request.body, type=Announcement)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"the body is no announcement: {error}") from error
        if not self._proofs.is_new(said.instance, said.number, now_s):
            raise RequestError(
                f"number is {said.number}; this process has said that, or more, before",
                param="number",
                status=409,
                code="repeated",
            )
        return said

    async def _take(self, said: Announcement, now_s: float) -> Worker | None:
        spec = self._spec_of(said)
        if said.intent == "gone":
            lease = self._leases.end(spec.url, said.instance)
            if lease is not None:
                await self._let_go(lease, "it said good-bye")
            return None
        worker = await self._known(spec)
        expires_s = now_s + said.lease_s
        if self._leases.renew(Lease(spec.url, worker.id, said.instance, expires_s)):
            self._fleet.doubt(worker)
        self._fleet.drain(worker, Drainer.ANNOUNCEMENT, said.intent == "draining")
        self._set_timer()
        return worker

    def _spec_of(self, said: Announcement) -> WorkerSpec:
        role = _ROLES[said.role]
        try:
            check_role(role, self._config.pd_disaggregation)
            return WorkerSpec(parse_worker_url("url", said.url), role, said.bootstrap_port)
        except ConfigError as error:
            raise RequestError(str(error)) from error

    async def _known(self, spec: WorkerSpec) -> Worker:
        """The worker at this address, which joins if it is new. The operator's word on its role
        stands against its own."""
        lease = self._leases.find(spec.url)
        worker = self._fleet.pool.get(lease.worker_id) if lease is not None else None
        worker = worker or self._fleet.pool.find(spec.url)
        if worker is not None and worker.is_announced and worker.spec != spec:
            await self._fleet.leave(worker)
            worker = None
        if worker is None:
            _log.info("worker announced itself", worker=spec.url, role=spec.role)
            return self._fleet.join(spec, is_announced=True)
        if worker.role is not spec.role:
            raise RequestError(
                f"url {spec.url} was given to this router as a {worker.role} worker; "
                "mend the router's configuration, or this worker's --disaggregation-mode",
                param="url",
                status=409,
                code="worker_exists",
            )
        return worker

    async def _let_go(self, lease: Lease, reason: str) -> None:
        worker = self._fleet.pool.get(lease.worker_id)
        if worker is None:
            return
        if worker.is_announced:
            _log.info("worker has left", worker=worker.url, role=worker.role, reason=reason)
            await self._fleet.leave(worker)
        else:
            self._fleet.doubt(worker)
            self._fleet.drain(worker, Drainer.ANNOUNCEMENT, False)

    def _set_timer(self) -> None:
        """One timer; renewals only make it come too early, which costs a look."""
        expiry_s = self._leases.next_expiry_s() if self._timer is None else None
        if expiry_s is not None:
            delay_s = max(0.0, expiry_s - self._clock.now_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        for lease in self._leases.take_expired(self._clock.now_s()):
            self._fleet.spawn(self._let_go(lease, "it fell silent"))
        self._set_timer()


_CHALLENGE = {
    "message": f"answer the challenge of the header {CHALLENGE_HEADER}",
    "type": "authentication_error",
    "param": None,
    "code": "challenge",
}
