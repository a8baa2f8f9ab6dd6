"""The engine process: loads the model, builds one rank's engine and its role, runs the loop.

Started by the worker (server.py) with an inherited socket; ends when that socket does. Its options
come as one JSON argument, so that the api process, which parsed the command line, is the only one
that reads flags and environment; the cluster's secret comes over the socket, before anything else.
"""

import os
import secrets
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import cast

import msgspec
import psutil

from baton.checkpoint import read_model_card
from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import BatonError, ConfigError
from baton.core.model_card import ModelCard
from baton.disagg.core_sharing import CoreSharing
from baton.disagg.decode import DecodeRole
from baton.disagg.loop import EngineLoop
from baton.disagg.prefill import PrefillRole
from baton.disagg.role import EngineRole, UnifiedRole
from baton.disagg.terms import terms_of
from baton.disagg.writers import DecodePeers
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore
from baton.engine.runner import ModelRunner
from baton.engine.step_pace import StepTarget
from baton.ipc.engine_socket import ApiGone, EngineSocket
from baton.ipc.peer_link import PeerEvent, PeerLink
from baton.kernels import _native
from baton.kvcache.block_pool import BlockPool
from baton.kvcache.checksum import BlockChecksums
from baton.kvcache.layout import KvLayout
from baton.kvcache.storage import SharedSegment
from baton.launch.child import arm_parent_death_signal
from baton.launch.cluster_secret import receive_secret
from baton.launch.engine_spec import EngineSpec
from baton.launch.reachable import reachable_address
from baton.messages.codec import Codec
from baton.messages.engine import EngineFailed, EngineReady
from baton.messages.handover import EngineHello, HandoverMessage
from baton.models.registry import KernelBackend, LoadOptions, Quantization, load_model
from baton.obs.logs import configure_logging, event_log
from baton.transfer.link import SimulatedLink
from baton.transfer.protocol import KvTransport
from baton.transfer.registry import open_transport
from baton.transfer.routed import RoutedTransport

log = event_log("engine")

_AUTO_BACKENDS = ("shm", "tcp")


def main() -> None:
    """`python -m baton.launch.engine_process FD SPEC_JSON`"""
    connection = socket.socket(fileno=int(sys.argv[1]))
    spec = msgspec.json.decode(sys.argv[2], type=EngineSpec)
    arm_parent_death_signal(spec.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the api process decides when we end
    configure_logging(spec.log_level, f"engine-{spec.role}")
    os.nice(spec.nice)
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    try:
        secret = receive_secret(connection)
    except EOFError:
        return
    api = EngineSocket(connection)
    try:
        _run(spec, secret, api)
    except ApiGone:
        return
    except BatonError as error:
        api.send(EngineFailed(message=str(error)))
        sys.exit(1)
    except Exception as error:
        log.error("engine failed", exc=error)
        api.send(EngineFailed(message=f"the engine met a bug: {type(error).__name__}: {error}"))
        sys.exit(1)


def _run(spec: EngineSpec, secret: str, api: EngineSocket) -> None:
    clock, card = MonotonicClock(), read_model_card(Path(spec.model_path))
    model = load_model(card, _load_options(spec))
    dtype = "bfloat16" if spec.engine.kv_cache_dtype == "auto" else spec.engine.kv_cache_dtype
    layout = model.kv_layout(_model_id(spec, card), dtype, spec.engine.page_size)
    context_length = _context_length(spec, card)
    num_blocks = _num_blocks(spec, layout, context_length)
    segment = SharedSegment(num_blocks * layout.block_bytes)
    runner = ModelRunner(
        model, model.kv_view(segment.view(), layout, num_blocks), layout.block_size
    )
    runner.warm_up(num_blocks, context_length)
    pool = BlockPool(num_blocks, enable_prefix_cache=not spec.engine.disable_radix_cache)
    core = EngineCore(
        spec.engine,
        runner,
        pool,
        context_length=context_length,
        vocab_size=card.vocab_size,
        clock=clock,
        kernels=model.kernels,
        op_seconds=model.stage_seconds,
    )
    engine_id = secrets.token_hex(8)
    events: deque[PeerEvent] = deque()
    transports = _transports(spec, segment)
    link = _link(spec, secret, engine_id, layout, transports, events, api)
    checksums = BlockChecksums(segment.view(), layout.block_bytes)
    role = _role(spec, core, layout, checksums, transports, link, engine_id, api, clock)
    sharing = _sharing(spec, model.kernels)
    target = _step_target(spec.engine)
    loop = EngineLoop(core, role, api, events, transports, clock, link, sharing, target)
    api.send(loop.stats())
    api.send(
        EngineReady(
            engine_id=engine_id,
            pid=os.getpid(),
            role=spec.role,
            architecture=card.architecture,
            vocab_size=card.vocab_size,
            context_length=context_length,
            block_size=layout.block_size,
            num_blocks=num_blocks,
            max_running_requests=spec.engine.max_running_requests,
            kv_cache_dtype=dtype,
            layout_hash=layout.layout_hash,
            control_port=link.port if link is not None else 0,
            transfer_backends=[transport.name for transport in transports],
        )
    )
    try:
        loop.run()
    finally:
        # A transfer library whose threads are still there at the interpreter's end aborts it.
        for transport in transports:
            transport.close()


def _load_options(spec: EngineSpec) -> LoadOptions:
    cores = sorted(os.sched_getaffinity(0))
    num_threads = spec.engine.num_threads or len(cores)
    # A thread per core stays on its core; where the cores are shared out, the system places them.
    is_own = num_threads == len(spec.cores)
    return LoadOptions(
        backend=cast(KernelBackend, spec.engine.kernel_backend),
        quantization=cast(Quantization, spec.engine.quantization),
        num_threads=num_threads,
        cores=tuple(spec.cores[1:]) if is_own else (),
    )


def _model_id(spec: EngineSpec, card: ModelCard) -> str:
    """KV of quantized weights is not that of the weights as they are."""
    if spec.engine.quantization == "none":
        return card.model_id
    return f"{card.model_id}:{spec.engine.quantization}"


def _context_length(spec: EngineSpec, card: ModelCard) -> int:
    wanted = spec.engine.context_length
    if wanted is None:
        return card.context_length
    if wanted > card.context_length:
        raise ConfigError(
            f"--context-length {wanted} is above what the model was trained for; "
            f"use at most {card.context_length}"
        )
    return wanted


def _num_blocks(spec: EngineSpec, layout: KvLayout, context_length: int) -> int:
    """Blocks of the pool: as asked, else a share of the machine's memory, but no more than
    all running sequences could use at full length."""
    size = layout.block_size
    if spec.engine.max_total_tokens is not None:
        return spec.engine.max_total_tokens // size
    budget_bytes = int(psutil.virtual_memory().total * spec.engine.mem_fraction_static)
    most_blocks = spec.engine.max_running_requests * -(-context_length // size)
    num_blocks = min(budget_bytes // layout.block_bytes, most_blocks)
    if num_blocks < 1:
        raise ConfigError(
            f"--mem-fraction-static {spec.engine.mem_fraction_static} leaves no room for a single "
            f"KV block of {layout.block_bytes} bytes; raise it"
        )
    return num_blocks


def _transports(spec: EngineSpec, segment: SharedSegment) -> list[KvTransport]:
    if spec.role == "null":
        return []
    names = _AUTO_BACKENDS if spec.transfer_backend == "auto" else (spec.transfer_backend,)
    reachable = reachable_address(spec.host)
    transports = [
        open_transport(
            name, segment, host=spec.host, advertised_host=reachable, config=spec.transfer
        )
        for name in names
    ]
    if spec.link is None:
        return transports
    link = SimulatedLink(spec.link)  # one for all, as a host has one way out
    return [RoutedTransport(transport, link) for transport in transports]


def _link(
    spec: EngineSpec,
    secret: str,
    engine_id: str,
    layout: KvLayout,
    transports: list[KvTransport],
    events: deque[PeerEvent],
    api: EngineSocket,
) -> PeerLink | None:
    if spec.role == "null":
        return None

    def on_event(event: PeerEvent) -> None:
        events.append(event)
        api.wake()

    for transport in transports:
        transport.set_on_completion(api.wake)
    hello = EngineHello(
        engine_id=engine_id,
        role=spec.role,
        layout=terms_of(layout),
    )
    codec: Codec[HandoverMessage] = Codec(HandoverMessage)
    return PeerLink(
        codec,
        hello,
        on_event,
        bind_host=spec.host,
        secret=secret.encode(),
        heartbeat_interval_s=spec.disagg.heartbeat_interval_s,
        max_missed=spec.disagg.heartbeat_max_failure,
    )


def _step_target(config: EngineConfig) -> StepTarget | None:
    if config.step_target_ms is None:
        return None
    smooth_ms = config.smooth_step_target_ms or config.step_target_ms
    return StepTarget(config.step_target_ms / 1000, smooth_ms / 1000, config.chunked_prefill_size)


def _sharing(spec: EngineSpec, kernels: _native.Kernels | None) -> CoreSharing | None:
    if spec.role != "decode":
        return None
    if kernels is None:
        return CoreSharing(spec.sharing, 1, None)
    return CoreSharing(spec.sharing, kernels.num_threads, kernels.limit_threads)


def _role(
    spec: EngineSpec,
    core: EngineCore,
    layout: KvLayout,
    checksums: BlockChecksums,
    transports: list[KvTransport],
    link: PeerLink | None,
    engine_id: str,
    api: EngineSocket,
    clock: Clock,
) -> EngineRole:
    if link is None:
        return UnifiedRole(core)
    if spec.role == "prefill":
        peers = DecodePeers(transports, api.wake, spec.disagg.connect_timeout_s)
        return PrefillRole(core, layout, checksums, peers, link.send, spec.disagg, clock)
    return DecodeRole(
        core,
        layout,
        checksums if spec.verify_kv else None,
        transports,
        link.send,
        link.acknowledge_loss,
        engine_id,
        spec.disagg,
        clock,
    )


if __name__ == "__main__":
    main()
