"""What an operator decides about a router, checked once at start.

Invariant: a RouterConfig that exists is consistent; every refusal names flag, value and mend.
Elsewhere: flags (launch/router.py), defaults of health transitions (HealthRules, here).
"""

import enum
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from baton.core.errors import ConfigError
from baton.router.breaker import BreakerRules
from baton.router.keys import Callers
from baton.router.policies import CacheRules, PolicyName
from baton.router.split import SplitRules
from baton.router.tls import TlsFiles
from baton.router.waiting import WaitingRules

MAX_PORT = 65535


class WorkerRole(enum.StrEnum):
    """SGLang's `worker_type`: "regular" is a unified worker."""

    PREFILL = "prefill"
    DECODE = "decode"
    REGULAR = "regular"


@dataclass(frozen=True)
class WorkerSpec:
    """One endpoint as the operator names it. `bootstrap_port` None: the worker's own answer, or
    SGLang's default, decides."""

    url: str
    role: WorkerRole
    bootstrap_port: int | None = None


@dataclass(frozen=True)
class HealthRules:
    """When a worker counts as healthy. A refused connection needs no second opinion."""

    interval_s: float = 1.0
    timeout_s: float = 3.0
    failure_threshold: int = 2
    success_threshold: int = 1


@dataclass(frozen=True)
class RouterConfig:
    """`seed` makes choices and room numbers repeatable; None draws from the system. With an
    `event_id_key`, streams carry ids that clients may come back with. `worker_key` is what the
    router itself sends to workers; None: --api-key, and clients' own keys where there is no file
    of keys."""

    host: str = "127.0.0.1"
    port: int = 30000
    pd_disaggregation: bool = False
    workers: tuple[WorkerSpec, ...] = ()
    policy: PolicyName = PolicyName.LEAST_LOADED
    prefill_policy: PolicyName | None = None
    decode_policy: PolicyName | None = None
    max_payload_bytes: int = 32 * 2**20
    request_timeout_s: float = 1800.0
    worker_startup_timeout_s: float = 1800.0
    shutdown_grace_s: float = 30.0
    connect_timeout_s: float = 3.0
    prefill_drain_limit_s: float = 30.0
    max_attempts: int = 3
    max_resumes: int = 3
    resume_stall_s: float = 30.0
    worker_wait_s: float = 15.0
    health: HealthRules = field(default_factory=HealthRules)
    breaker: BreakerRules = field(default_factory=BreakerRules)
    cache: CacheRules = field(default_factory=CacheRules)
    split: SplitRules = field(default_factory=SplitRules)
    waiting: WaitingRules = field(default_factory=WaitingRules)
    tenant_header: str | None = None
    expose_routing: bool = False
    api_key: str | None = None
    event_id_key: bytes | None = field(default=None, repr=False)
    callers: Callers | None = None
    worker_key: str | None = None
    tls: TlsFiles = field(default_factory=TlsFiles)
    cluster_secret: str = field(default="", repr=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        _in_range("--port", self.port, 0, MAX_PORT)
        _in_range("--max-payload-size", self.max_payload_bytes, 1, None)
        _in_range("--health-failure-threshold", self.health.failure_threshold, 1, None)
        _in_range("--health-success-threshold", self.health.success_threshold, 1, None)
        _in_range("--max-resumes", self.max_resumes, 0, None)
        _positive("--resume-stall-secs", self.resume_stall_s)
        if self.event_id_key is not None and self.max_resumes == 0:
            raise ConfigError(
                "--event-ids needs streams that can be resumed; leave out --disable-resume and "
                "--max-resumes 0"
            )
        if not self.worker_wait_s >= 0:
            raise ConfigError(
                f"--worker-wait-secs {self.worker_wait_s:g} is negative; use 0 or more"
            )
        _positive("--request-timeout-secs", self.request_timeout_s)
        _positive("--worker-startup-timeout-secs", self.worker_startup_timeout_s)
        _positive("--health-check-interval-secs", self.health.interval_s)
        _positive("--health-check-timeout-secs", self.health.timeout_s)
        if self.shutdown_grace_s < 0:
            raise ConfigError(
                f"--shutdown-grace-period-secs {self.shutdown_grace_s:g} is negative; use 0 or more"
            )
        self._check_breaker()
        self._check_placement()
        self._check_waiting()
        self._check_workers()
        if self.callers is not None and self.tenant_header is not None:
            raise ConfigError(
                f"--tenant-header {self.tenant_header} and --api-keys both say who the tenant is; "
                "leave one of them out"
            )

    def _check_breaker(self) -> None:
        rules = self.breaker
        _in_range("--cb-failure-threshold", rules.failure_threshold, 1, None)
        _in_range("--cb-success-threshold", rules.success_threshold, 1, None)
        _positive("--cb-window-duration-secs", rules.window_s)
        _positive("--cb-cool-down-secs", rules.cool_down_s)
        if not rules.max_cool_down_s >= rules.cool_down_s:
            raise ConfigError(
                f"--cb-timeout-duration-secs {rules.max_cool_down_s:g} is below "
                f"--cb-cool-down-secs {rules.cool_down_s:g}; a cool-down grows from this to that"
            )

    def _check_placement(self) -> None:
        _share("--cache-threshold", self.cache.threshold)
        _in_range("--balance-abs-threshold", self.cache.balance_abs, 0, None)
        _in_range("--max-prefix-hashes", self.cache.max_hashes, 1, None)
        if not self.cache.balance_rel >= 1:
            raise ConfigError(
                f"--balance-rel-threshold {self.cache.balance_rel:g} is below 1; "
                "it says how many times as many requests are too many"
            )
        _share("--split-margin", self.split.margin)
        _in_range("--max-whole-tokens", self.split.max_whole_tokens, 0, None)
        if not self.split.max_stall_s >= 0:
            raise ConfigError(
                f"--max-stall-ms {1000 * self.split.max_stall_s:g} is negative; use 0 or more"
            )

    def _check_waiting(self) -> None:
        rules = self.waiting
        if rules.max_running is not None:
            _in_range("--max-concurrent-requests", rules.max_running, 1, None)
        _in_range("--queue-size", rules.max_waiting, 0, None)
        _positive("--queue-timeout-secs", rules.max_wait_s)

    def _check_workers(self) -> None:
        seen: set[str] = set()
        for spec in self.workers:
            check_role(spec.role, self.pd_disaggregation)
            if spec.url in seen:
                raise ConfigError(f"worker {spec.url} is given twice; name each worker once")
            seen.add(spec.url)

    def policy_for(self, role: WorkerRole) -> PolicyName:
        match role:
            case WorkerRole.PREFILL:
                return self.prefill_policy or self.policy
            case WorkerRole.DECODE:
                return self.decode_policy or self.policy
            case WorkerRole.REGULAR:
                return self.policy

    @property
    def authorization_of_workers(self) -> str | None:
        """The header in which workers get the router's key, "" for none, in place of a client's;
        None: clients' own go through, to workers that check them."""
        key = self.worker_key or (self.api_key if self.callers is not None else None)
        if key is not None:
            return f"Bearer {key}"
        return None if self.callers is None else ""

    @property
    def authorization_of_probes(self) -> str:
        """The header that the router's own questions to workers carry, "" for none."""
        key = self.worker_key or self.api_key
        return f"Bearer {key}" if key is not None else ""

    @property
    def roles(self) -> tuple[WorkerRole, ...]:
        """The roles a request needs, in the order it passes them, unless a unified worker in the
        same pool serves it whole."""
        if self.pd_disaggregation:
            return (WorkerRole.PREFILL, WorkerRole.DECODE)
        return (WorkerRole.REGULAR,)


def check_role(role: WorkerRole, pd_disaggregation: bool) -> None:
    """Unified workers may be in any pool; prefill and decode workers need one for pairs."""
    if not pd_disaggregation and role is not WorkerRole.REGULAR:
        raise ConfigError(
            f"a {role} worker needs a router that was started with --pd-disaggregation"
        )


def parse_worker_url(flag: str, text: str) -> str:
    """`http(s)://host[:port]` without a trailing slash; raises ConfigError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"{flag} {text!r} lacks http:// or https://; try http://{text}")
    if not parts.hostname or port == 0:
        raise ConfigError(f"{flag} {text!r} names no host and port; try http://127.0.0.1:30001")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"{flag} {text!r} is more than a host and a port; leave the rest out")
    return f"{parts.scheme}://{parts.netloc}"


def parse_bootstrap_port(flag: str, text: str) -> int | None:
    """A port, or None for "none"; raises ConfigError."""
    if text.lower() == "none":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise ConfigError(
            f"{flag}: bootstrap port {text!r} is neither 'none' nor a number from 1 to {MAX_PORT}"
        )
    return int(text)


def _in_range(flag: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{flag} {value} is out of range; it must be {wanted}")


def _share(flag: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{flag} {value:g} is out of range; it must be from 0 to 1")


def _positive(flag: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{flag} {value:g} is not above 0; use a number of seconds")
