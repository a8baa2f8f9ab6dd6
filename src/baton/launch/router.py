"""`python -m baton.launch_router`, `baton router`: the router's command line.

Flag names are SGLang's, so that its documentation applies; what Baton's router does not do is
not accepted. Elsewhere: what the values mean (router/config.py), running (router/server.py).
"""

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvloop

from baton.core.errors import ConfigError
from baton.core.prompt_waking import ask_for_short_slice
from baton.core.stop_requests import StopRequests
from baton.launch.cluster_secret import (
    CLUSTER_SECRET_FILE,
    CLUSTER_SECRET_VARIABLE,
    read_cluster_secret,
)
from baton.launch.flags import API_KEY_VARIABLE
from baton.launch.router_file import read_args
from baton.obs.logs import configure_logging
from baton.router.breaker import BreakerRules
from baton.router.config import (
    HealthRules,
    RouterConfig,
    WorkerRole,
    WorkerSpec,
    parse_bootstrap_port,
    parse_worker_url,
)
from baton.router.event_ids import derive_key
from baton.router.keys import read_keys
from baton.router.policies import CacheRules, PolicyName
from baton.router.server import run_router
from baton.router.split import SplitRules
from baton.router.tls import TlsFiles
from baton.router.waiting import WaitingRules

__all__ = ["RouterConfig", "StopRequests", "config_from", "main", "make_parser", "run_router"]

_LOG_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning",
               "error": "error"}  # fmt: skip
WORKER_KEY_VARIABLE = "BATON_WORKER_API_KEY"
_EXAMPLES = """examples:
  # prefill and decode workers; the second prefill worker's bootstrap port is not the default
  baton router --pd-disaggregation \\
    --prefill http://127.0.0.1:30001 --prefill http://127.0.0.1:30002 8999 \\
    --decode http://127.0.0.1:30011

  # unified workers
  baton router --worker-urls http://127.0.0.1:30001 http://127.0.0.1:30002
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until SIGTERM or SIGINT; the process's exit status."""
    try:
        args = _read(argv)
        config = config_from(args, environ=os.environ)
        configure_logging(_LOG_LEVELS[args.log_level], "router")
        _collect_seldom()
        ask_for_short_slice()
        uvloop.run(
            run_router(
                config,
                ready=lambda port: _announce(config, port),
                read_again=lambda: config_from(_read(argv), environ=os.environ),
            )
        )
    except ConfigError as error:
        print(f"baton router: {error}", file=sys.stderr)
        return 2
    return 0


def _collect_seldom() -> None:
    """Nearly all that a request makes ends with it, by its count. To look for cycles among all else
    every few requests takes a tenth of the router's time (docs/experiments.md)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    given = sys.argv[1:] if argv is None else argv
    return read_args(lambda parser_type: make_parser(parser_type=parser_type), given)


def _announce(config: RouterConfig, port: int) -> None:
    shown = f"[{config.host}]" if ":" in config.host else config.host
    scheme = "http" if config.tls.certificate is None else "https"
    print(f"baton router listening on {scheme}://{shown}:{port}", flush=True)


def make_parser(
    prog: str = "baton router",
    *,
    parser_type: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    parser = parser_type(
        prog=prog,
        description="Distribute requests over prefill and decode workers, or unified workers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_address(parser.add_argument_group("address"))
    _add_tls(parser.add_argument_group("TLS"))
    _add_workers(parser.add_argument_group("workers"))
    _add_policies(parser.add_argument_group("routing policy"))
    _add_split(parser.add_argument_group("unified workers beside prefill and decode"))
    _add_breaker(parser.add_argument_group("circuit breaker"))
    _add_queue(parser.add_argument_group("queue"))
    _add_limits(parser.add_argument_group("limits"))
    _add_event_ids(parser.add_argument_group("clients that come back"))
    _add_health(parser.add_argument_group("health checks"))
    return parser


def _add_address(group: Any) -> None:
    group.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with these options, by their long names, and 'workers', a list of url, "
        "role and bootstrap-port; the command line goes before it. SIGHUP reads it anew",
    )
    group.add_argument(
        "--host", default=_default("host"), help="address to listen on (default: %(default)s)"
    )
    group.add_argument(
        "--port",
        type=int,
        default=_default("port"),
        help="port to listen on; 0 takes any free one and prints it (default: %(default)s)",
    )
    group.add_argument(
        "--api-key",
        help="key that clients must send as 'Authorization: Bearer KEY', and that the router "
        "sends to workers with its own probes (default: none asked for; environment: "
        f"{API_KEY_VARIABLE})",
    )
    group.add_argument(
        "--api-keys",
        metavar="FILE",
        help="YAML list of keys with their tenants and limits: key or key_sha256, tenant, weight, "
        "max_concurrent, requests_per_minute, tokens_per_minute, max_priority, admin. --api-key is "
        "then one key more, of an administrator without limits",
    )
    group.add_argument(
        "--worker-api-key",
        help="key that the router sends to workers, in place of clients' (default: --api-key; "
        f"environment: {WORKER_KEY_VARIABLE})",
    )
    group.add_argument(
        "--log-level",
        choices=sorted(_LOG_LEVELS),
        default="info",
        help="least important events that are logged (default: %(default)s)",
    )


def _add_tls(group: Any) -> None:
    group.add_argument(
        "--ssl-certfile",
        "--tls-cert-path",
        metavar="FILE",
        help="PEM certificate, with those that signed it; clients then come over https only",
    )
    group.add_argument(
        "--ssl-keyfile",
        "--tls-key-path",
        metavar="FILE",
        help="its private key (default: in the same file)",
    )
    group.add_argument(
        "--ca-cert-paths",
        nargs="*",
        default=[],
        metavar="FILE",
        help="certificates that https workers must be signed by (default: the system's)",
    )
    group.add_argument(
        "--client-cert-path", metavar="FILE", help="certificate shown to https workers that ask"
    )
    group.add_argument("--client-key-path", metavar="FILE", help="its private key")


def _add_workers(group: Any) -> None:
    group.add_argument(
        "--pd-disaggregation",
        action="store_true",
        help="requests go to a prefill and a decode worker; unified workers may be in the same "
        "pool. Without it all workers are unified",
    )
    group.add_argument(
        "--prefill",
        action="append",
        nargs="+",
        default=[],
        metavar=("URL", "BOOTSTRAP_PORT"),
        help="a prefill worker, and its bootstrap port: a number, or 'none' to use what the "
        "worker says of itself (the default); may be given several times",
    )
    group.add_argument(
        "--decode",
        action="append",
        default=[],
        metavar="URL",
        help="a decode worker; may be given several times",
    )
    group.add_argument(
        "--worker-urls",
        nargs="*",
        default=[],
        metavar="URL",
        help="unified workers. Workers of any kind need not be up when the router starts, and "
        "can be added and removed later by POST and DELETE /workers, or announce themselves "
        "(a worker's --router-url)",
    )
    group.add_argument("--cluster-secret-file", **CLUSTER_SECRET_FILE)
    group.add_argument(
        "--worker-startup-timeout-secs",
        type=float,
        default=_default("worker_startup_timeout_s"),
        metavar="SECONDS",
        help="a worker that never answered for so long is reported as an error in the log; it "
        "is asked further on (default: %(default)g)",
    )


def _add_policies(group: Any) -> None:
    names = [name.value for name in PolicyName]
    group.add_argument(
        "--policy",
        "--routing-policy",
        choices=names,
        default=_default("policy").value,
        help="how to choose a worker. random; round_robin: the one longest unused; least_loaded: "
        "fewest tokens, by the router's own count and the workers' reports; power_of_two: the less "
        "loaded of two drawn ones; cache_aware: the one that was sent the longest beginning of the "
        "prompt; consistent_hash: the same one for a session; slo_aware: the soonest first token "
        "by what was measured (default: %(default)s)",
    )
    for role in ("prefill", "decode"):
        group.add_argument(
            f"--{role}-policy",
            choices=names,
            help=f"how to choose {role} workers (default: as --policy)",
        )
    _add_cache_rules(group)
    _add_exposure(group)


def _add_exposure(group: Any) -> None:
    group.add_argument(
        "--expose-routing",
        action="store_true",
        help="answers say in X-Baton-Route which workers served them and why, with their URLs",
    )


def _add_cache_rules(group: Any) -> None:
    rules = CacheRules()
    group.add_argument(
        "--cache-threshold",
        type=float,
        default=rules.threshold,
        metavar="SHARE",
        help="cache_aware: share of the prompt that a worker must have been sent before to be "
        "preferred (default: %(default)g)",
    )
    group.add_argument(
        "--balance-abs-threshold",
        type=int,
        default=rules.balance_abs,
        metavar="N",
        help="cache_aware: the least loaded worker is taken instead if the preferred one has more "
        "than N requests more (default: %(default)s) ...",
    )
    group.add_argument(
        "--balance-rel-threshold",
        type=float,
        default=rules.balance_rel,
        metavar="FACTOR",
        help="... and more than FACTOR times as many (default: %(default)g)",
    )
    group.add_argument(
        "--max-prefix-hashes",
        type=int,
        default=rules.max_hashes,
        metavar="N",
        help="beginnings of prompts remembered per role, about 250 bytes each "
        "(default: %(default)s)",
    )


def _add_split(group: Any) -> None:
    rules = SplitRules()
    group.add_argument(
        "--always-split",
        action="store_true",
        help="send every request to a prefill and a decode worker, even where a unified worker of "
        "the same pool would have the first token sooner",
    )
    group.add_argument(
        "--split-margin",
        type=float,
        default=rules.margin,
        metavar="SHARE",
        help="a way, once taken, is kept until the other is better by this share "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--max-stall-ms",
        type=float,
        default=1000 * rules.max_stall_s,
        metavar="MS",
        help="longest that a whole prompt may stall the running streams of its worker; longer ones "
        "are split (default: %(default)g)",
    )
    group.add_argument(
        "--max-whole-tokens",
        type=int,
        default=rules.max_whole_tokens,
        metavar="N",
        help="longest uncached prompt that a decode worker on prefill's cores reads itself while "
        "it has streams; longer ones are split (default: %(default)s)",
    )


def _add_breaker(group: Any) -> None:
    rules = BreakerRules()
    group.add_argument(
        "--disable-circuit-breaker", action="store_true", help="never keep a healthy worker out"
    )
    group.add_argument(
        "--cb-failure-threshold",
        type=int,
        default=rules.failure_threshold,
        metavar="N",
        help="failures of a worker's own after which it gets no requests; a success makes up for "
        "one; overload and clients' errors do not count (default: %(default)s)",
    )
    group.add_argument(
        "--cb-success-threshold",
        type=int,
        default=rules.success_threshold,
        metavar="N",
        help="single requests that must succeed before it gets all again (default: %(default)s)",
    )
    group.add_argument(
        "--cb-window-duration-secs",
        type=float,
        default=rules.window_s,
        metavar="SECONDS",
        help="older failures are forgotten (default: %(default)g)",
    )
    group.add_argument(
        "--cb-cool-down-secs",
        type=float,
        default=rules.cool_down_s,
        metavar="SECONDS",
        help="pause before the first trial request; it doubles with every one that fails "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--cb-timeout-duration-secs",
        type=float,
        default=rules.max_cool_down_s,
        metavar="SECONDS",
        help="longest such pause (default: %(default)g)",
    )


def _add_queue(group: Any) -> None:
    rules = WaitingRules()
    group.add_argument(
        "--max-concurrent-requests",
        type=int,
        default=-1,
        metavar="N",
        help="requests that run at the same time; others wait for their turn (default: -1, no "
        "limit)",
    )
    group.add_argument(
        "--queue-size",
        type=int,
        default=rules.max_waiting,
        metavar="N",
        help="requests that may wait; then the least important one is answered 429 with "
        "Retry-After (default: %(default)s)",
    )
    group.add_argument(
        "--queue-timeout-secs",
        type=float,
        default=rules.max_wait_s,
        metavar="SECONDS",
        help="longest wait; then a request is answered 503 with Retry-After (default: %(default)g)",
    )
    group.add_argument(
        "--schedule-low-priority-values-first",
        action="store_true",
        help="a request's `priority` 0 goes before 1 (default: higher values first)",
    )
    group.add_argument(
        "--tenant-header",
        metavar="NAME",
        help="request header that names the tenant among which turns are shared; set it only where "
        "a gateway sets that header (default: the API key tells tenants apart)",
    )


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--max-payload-size",
        type=int,
        default=_default("max_payload_bytes"),
        metavar="BYTES",
        help="largest request body; larger ones are answered 413 (default: %(default)s)",
    )
    group.add_argument(
        "--request-timeout-secs",
        type=float,
        default=_default("request_timeout_s"),
        metavar="SECONDS",
        help="longest life of a request; then it is answered 504, or its stream ends with an "
        "error (default: %(default)g)",
    )
    group.add_argument(
        "--max-resumes",
        type=int,
        default=_default("max_resumes"),
        metavar="N",
        help="how often a request whose worker died goes on at another one (default: %(default)s)",
    )
    group.add_argument(
        "--resume-stall-secs",
        type=float,
        default=_default("resume_stall_s"),
        metavar="SECONDS",
        help="a stream without an event for so long goes on at another worker, if there is one "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--worker-wait-secs",
        type=float,
        default=_default("worker_wait_s"),
        metavar="SECONDS",
        help="how long a request waits for a worker if all are away, or died under it; 0: not at "
        "all (default: %(default)g)",
    )
    group.add_argument(
        "--disable-resume",
        action="store_true",
        help="a request whose worker died ends with an error",
    )
    group.add_argument(
        "--shutdown-grace-period-secs",
        type=float,
        default=_default("shutdown_grace_s"),
        metavar="SECONDS",
        help="time for running requests after SIGTERM or SIGINT; a second signal ends it "
        "(default: %(default)g)",
    )


def _add_event_ids(group: Any) -> None:
    group.add_argument(
        "--event-ids",
        action="store_true",
        help="events of streams carry ids; a client whose connection broke, or whose router died, "
        "sends its request again with the header Last-Event-ID, to this router or another one "
        "with the same secret, and gets the rest",
    )


def _add_health(group: Any) -> None:
    rules = HealthRules()
    group.add_argument(
        "--health-check-interval-secs",
        type=float,
        default=rules.interval_s,
        metavar="SECONDS",
        help="pause between two GET /health of one worker (default: %(default)g)",
    )
    group.add_argument(
        "--health-check-timeout-secs",
        type=float,
        default=rules.timeout_s,
        metavar="SECONDS",
        help="longest wait for its answer (default: %(default)g)",
    )
    group.add_argument(
        "--health-failure-threshold",
        type=int,
        default=rules.failure_threshold,
        metavar="N",
        help="failures in a row after which a worker is not used; a refused connection is "
        "enough by itself (default: %(default)s)",
    )
    group.add_argument(
        "--health-success-threshold",
        type=int,
        default=rules.success_threshold,
        metavar="N",
        help="successes in a row after which it is used again (default: %(default)s)",
    )


def config_from(
    args: argparse.Namespace, *, environ: Mapping[str, str] | None = None
) -> RouterConfig:
    """The configuration that the flags, and then `environ`, ask for; raises ConfigError."""
    return RouterConfig(
        host=args.host,
        port=args.port,
        pd_disaggregation=args.pd_disaggregation,
        workers=tuple(_workers(args)),
        policy=PolicyName(args.policy),
        prefill_policy=PolicyName(args.prefill_policy) if args.prefill_policy else None,
        decode_policy=PolicyName(args.decode_policy) if args.decode_policy else None,
        max_payload_bytes=args.max_payload_size,
        request_timeout_s=args.request_timeout_secs,
        worker_startup_timeout_s=args.worker_startup_timeout_secs,
        shutdown_grace_s=args.shutdown_grace_period_secs,
        resume_stall_s=args.resume_stall_secs,
        worker_wait_s=args.worker_wait_secs,
        max_resumes=0 if args.disable_resume else args.max_resumes,
        health=HealthRules(
            interval_s=args.health_check_interval_secs,
            timeout_s=args.health_check_timeout_secs,
            failure_threshold=args.health_failure_threshold,
            success_threshold=args.health_success_threshold,
        ),
        cache=CacheRules(
            threshold=args.cache_threshold,
            balance_abs=args.balance_abs_threshold,
            balance_rel=args.balance_rel_threshold,
            max_hashes=args.max_prefix_hashes,
        ),
        split=SplitRules(
            is_conditional=not args.always_split,
            margin=args.split_margin,
            max_stall_s=args.max_stall_ms / 1000,
            max_whole_tokens=args.max_whole_tokens,
        ),
        breaker=_breaker_rules(args),
        waiting=WaitingRules(
            max_running=_max_running(args),
            max_waiting=args.queue_size,
            max_wait_s=args.queue_timeout_secs,
            low_values_first=args.schedule_low_priority_values_first,
        ),
        tenant_header=args.tenant_header,
        expose_routing=args.expose_routing,
        api_key=_api_key(args, environ or {}),
        event_id_key=_event_id_key(args, environ or {}),
        callers=read_keys(Path(args.api_keys)) if args.api_keys else None,
        tls=TlsFiles(
            certificate=args.ssl_certfile,
            key=args.ssl_keyfile,
            worker_cas=tuple(args.ca_cert_paths),
            client_certificate=args.client_cert_path,
            client_key=args.client_key_path,
        ),
        worker_key=args.worker_api_key or (environ or {}).get(WORKER_KEY_VARIABLE),
        cluster_secret=read_cluster_secret(args.cluster_secret_file, environ or {}),
    )


def _max_running(args: argparse.Namespace) -> int | None:
    given: int = args.max_concurrent_requests
    return None if given == -1 else given


def _breaker_rules(args: argparse.Namespace) -> BreakerRules:
    return BreakerRules(
        is_enabled=not args.disable_circuit_breaker,
        failure_threshold=args.cb_failure_threshold,
        success_threshold=args.cb_success_threshold,
        window_s=args.cb_window_duration_secs,
        cool_down_s=args.cb_cool_down_secs,
        max_cool_down_s=args.cb_timeout_duration_secs,
    )


def _api_key(args: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    given: str | None = args.api_key
    return environ.get(API_KEY_VARIABLE) if given is None else given


def _event_id_key(args: argparse.Namespace, environ: Mapping[str, str]) -> bytes | None:
    if not args.event_ids:
        return None
    secret = read_cluster_secret(args.cluster_secret_file, environ)
    if not secret:
        raise ConfigError(
            "--event-ids needs a secret that all routers share; set "
            f"{CLUSTER_SECRET_VARIABLE} or --cluster-secret-file"
        )
    return derive_key(secret)


def _workers(args: argparse.Namespace) -> list[WorkerSpec]:
    specs = [_prefill(values) for values in args.prefill]
    for flag, role, urls in (
        ("--decode", WorkerRole.DECODE, args.decode),
        ("--worker-urls", WorkerRole.REGULAR, args.worker_urls),
    ):
        specs += [WorkerSpec(parse_worker_url(flag, url), role) for url in urls]
    return specs


def _prefill(values: list[str]) -> WorkerSpec:
    if len(values) > 2:
        raise ConfigError(
            f"--prefill {' '.join(values)} has more than a URL and a bootstrap port; "
            "repeat --prefill for each worker"
        )
    url = parse_worker_url("--prefill", values[0])
    port = parse_bootstrap_port("--prefill", values[1]) if len(values) == 2 else None
    return WorkerSpec(url, WorkerRole.PREFILL, port)


def _default(name: str) -> Any:
    return next(field.default for field in fields(RouterConfig) if field.name == name)


if __name__ == "__main__":
    raise SystemExit(main())
