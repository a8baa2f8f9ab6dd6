"""`baton serve`: a model, a router and its workers on this machine, with one command.

Elsewhere: which processes (topology.py), keeping them running (supervisor.py).
"""

import argparse
import asyncio
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from baton.checkpoint.embedded import SMOLLM2
from baton.checkpoint.source import default_cache_dir, resolve_model
from baton.engine.config import EngineConfig
from baton.launch.cluster_secret import (
    CLUSTER_SECRET_FILE,
    CLUSTER_SECRET_VARIABLE,
    read_cluster_secret,
)
from baton.launch.engine_spec import TransferBackend
from baton.launch.flags import API_KEY_VARIABLE, add_flags, from_args, given_argv
from baton.launch.narrator import Narrator
from baton.launch.ports import FreePorts, check_port_is_free
from baton.launch.supervisor import Supervisor, SupervisorConfig
from baton.launch.topology import ServeConfig, Topology, plan_topology
from baton.launch.transfer_flags import (
    IB_DEVICE,
    MOONCAKE_PROTOCOL,
    SIMULATE_LINK,
    TRANSFER_BACKEND,
    VERIFY_KV,
    link_of,
    mooncake_of,
)
from baton.launch.tree_profile import join_profiles, prepare_profiles, with_profiles
from baton.obs.profile_config import ProfileConfig

_EXAMPLES = """\
examples:
  baton serve                              the default model, one prefill and one decode worker
  baton serve model.gguf --port 8123       a GGUF file
  baton serve ORG/NAME --workers 2p1d      a model of the Hugging Face hub, two prefill workers
  baton serve --unified 2                  two workers that do both, behind the router
  baton serve --simulate-link 1Gbps,2ms    as if prefill and decode were two hosts apart
  baton serve --log-level debug            everything that every process has to say
"""


_ROUTER_EXIT_S = 1.0  # on top of the time that it gives to running requests
_WORKER_GRACE_S = 2.0  # for what came to a worker past the router, which has ended before


@dataclass(frozen=True)
class WorkerOptions:
    """Options of the worker that mean the same here. Its other ones are the tree's to choose."""

    served_model_name: str | None = field(
        default=None, metadata={"help": "name of the model for clients (default: MODEL)"}
    )
    api_key: str | None = field(
        default=None,
        metadata={
            "help": "clients must send it as a bearer token",
            "metavar": "KEY",
            "env": API_KEY_VARIABLE,
        },
    )
    disaggregation_transfer_backend: TransferBackend = field(
        default="auto", metadata=TRANSFER_BACKEND
    )
    mooncake_protocol: str = field(default="tcp", metadata=MOONCAKE_PROTOCOL)
    disaggregation_ib_device: str = field(default="", metadata=IB_DEVICE)
    simulate_link: str | None = field(default=None, metadata=SIMULATE_LINK)
    verify_kv: bool = field(default=False, metadata=VERIFY_KV)
    cluster_secret_file: str | None = field(default=None, metadata=CLUSTER_SECRET_FILE)
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="warning", metadata={"help": "least level that the processes show"}
    )


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    profile = from_args(ProfileConfig, args)
    config = from_args(ServeConfig, args, environ=os.environ)
    # Checked here too, so that a wrong option is told once and not by every worker.
    from_args(EngineConfig, args, environ=os.environ)
    options = from_args(WorkerOptions, args, environ=os.environ)
    if link_of(options.simulate_link) is not None and config.unified is None:
        config = replace(config, always_split=True)  # as on two hosts, which share no cores
    mooncake_of(
        options.mooncake_protocol,
        options.disaggregation_ib_device,
        options.disaggregation_transfer_backend,
        os.environ,
    )
    secret = read_cluster_secret(options.cluster_secret_file, os.environ) or secrets.token_hex(32)
    config = replace(config, port=check_port_is_free(config.host, config.port))
    wanted = args.model or args.model_path
    model_path = resolve_model(wanted, cache_dir=default_cache_dir(os.environ))
    options = replace(options, served_model_name=_served_name(options, wanted, model_path))
    topology = plan_topology(
        config,
        model_path=str(model_path),
        worker_argv=[*given_argv(args, EngineConfig), *_worker_argv(options)],
        router_argv=_router_argv(config, options),
        num_cores=len(os.sched_getaffinity(0)),
        free_port=FreePorts().take,
    )
    prepare_profiles(profile)
    topology = with_profiles(topology, profile)
    try:
        return asyncio.run(_supervise(topology, config, options, secret))
    finally:
        if join_profiles(profile):
            print(f"trace: {profile.profile_output}", file=sys.stderr)


def _served_name(options: WorkerOptions, wanted: str | None, model_path: Path) -> str:
    """As asked for; else a hub model's name as it is, and a file's without folders and suffix."""
    if options.served_model_name is not None:
        return options.served_model_name
    if wanted is None:
        return SMOLLM2.title
    return model_path.stem if Path(wanted).expanduser().exists() else wanted


def _worker_argv(options: WorkerOptions) -> list[str]:
    """The key is not among them: a command line is for every user of the machine to see."""
    argv = [
        f"--served-model-name={options.served_model_name}",
        f"--disaggregation-transfer-backend={options.disaggregation_transfer_backend}",
        f"--mooncake-protocol={options.mooncake_protocol}",
        f"--disaggregation-ib-device={options.disaggregation_ib_device}",
        f"--log-level={options.log_level}",
        f"--shutdown-grace-period-secs={_WORKER_GRACE_S}",
    ]
    if options.simulate_link is not None:
        argv.append(f"--simulate-link={options.simulate_link}")
    return [*argv, "--verify-kv"] if options.verify_kv else argv


def _router_argv(config: ServeConfig, options: WorkerOptions) -> list[str]:
    return [
        f"--log-level={options.log_level}",
        f"--shutdown-grace-period-secs={config.drain_timeout}",
    ]


def _environ(options: WorkerOptions, secret: str) -> dict[str, str]:
    key = {} if options.api_key is None else {API_KEY_VARIABLE: options.api_key}
    own = {CLUSTER_SECRET_VARIABLE: secret, "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **key, **own}


async def _supervise(
    topology: Topology, config: ServeConfig, options: WorkerOptions, secret: str
) -> int:
    narrator = Narrator(is_verbose=options.log_level in ("debug", "info"))
    narrator.say(f"loading {options.served_model_name} into {_count_workers(config)}")
    supervisor = Supervisor(
        topology,
        narrator=narrator,
        announce=_announcement(topology, needs_key=options.api_key is not None),
        config=SupervisorConfig(drain_s=config.drain_timeout + _ROUTER_EXIT_S),
        environ=_environ(options, secret),
    )
    return await supervisor.run()


def _count_workers(config: ServeConfig) -> str:
    if config.unified is not None:
        return f"{config.unified} unified"
    num_prefill, num_decode = config.num_pairs
    return f"{num_prefill} prefill and {num_decode} decode"


def _announcement(
    topology: Topology, *, needs_key: bool
) -> Callable[[Mapping[str, int], float], str]:
    """What is printed when everything serves."""

    def announce(pids: Mapping[str, int], took_s: float) -> str:
        url = topology.router.url
        body = (
            '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0}'
        )
        key = " -H 'authorization: Bearer KEY'" if needs_key else ""
        curl = (
            f"curl {url}/v1/chat/completions -H 'content-type: application/json'{key} "
            f"-d {shlex.quote(body)}"
        )
        chat = shlex.join([_own_command(), "chat", "--url", url])
        width = max(len(spec.name) for spec in topology.children)
        places = [
            f"  {spec.name:{width}}  {spec.url}  pid {pids[spec.name]}"
            for spec in topology.children
            if spec.name in pids
        ]
        return "\n".join(
            [
                f"ready in {took_s:.1f} s: {url}",
                *places,
                *("Try:", f"  {curl}", f"  {chat}"),
                "Ctrl-C stops everything.",
            ]
        )

    return announce


def _own_command() -> str:
    """How the reader can run `baton` from where they are."""
    if shutil.which("baton"):
        return "baton"
    own = Path(sys.argv[0])
    if own.name != "baton":
        return "baton"
    here = Path.cwd()
    return str(own.relative_to(here)) if own.is_relative_to(here) else str(own)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baton serve",
        description="Serve a model on this machine: a router, and prefill and decode workers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=".gguf file, Hugging Face folder, or hub name (default: the embedded model)",
    )
    model.add_argument("--model-path", metavar="MODEL", help="the same, spelled as an option")
    add_flags(parser.add_argument_group("the tree"), ServeConfig)
    add_flags(parser.add_argument_group("every worker"), EngineConfig, WorkerOptions)
    add_flags(parser.add_argument_group("a profile, until Ctrl-C"), ProfileConfig)
    return parser
