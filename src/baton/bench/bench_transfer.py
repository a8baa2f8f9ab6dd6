"""`baton bench transfer`: KV blocks into another process, against what copying costs at least.

Per backend: GB/s and latency of writes of several sizes, processor time idle and per GB, and the
hand-over besides the copy: from posting a last block to the moment when the receiving engine can
know of it, over the engines' own control link.

Elsewhere: the ways that are compared (transfer_ways.py), the other process (transfer_far.py).
"""

import contextlib
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from baton.bench.config import TransferBenchConfig
from baton.bench.machine import OtherLoad, describe_machine
from baton.bench.report import Findings, Report
from baton.bench.timing import Sample, interleave
from baton.bench.transfer_far import new_link, next_message
from baton.bench.transfer_ways import (
    Memcpy,
    Payload,
    PlainSocket,
    Transport,
    Way,
    make_payloads,
    region_bytes,
)
from baton.core.clock import Clock, MonotonicClock
from baton.core.errors import ConfigError, TransferError
from baton.ipc.peer_link import PeerEvent
from baton.kernels.native import open_kernels
from baton.kvcache.storage import SharedSegment
from baton.messages.handover import KvDelivered
from baton.transfer.registry import BACKENDS

_GIGA: Final = 1e9
_WARM_UPS: Final = 2
_HOPS: Final = 10
_COPY_FLOOR: Final = 0.9
_LIMIT_MS: Final = 1.0
_IDLE_LIMIT: Final = 0.02
_LEAST_IDLE: Final = 1e-4  # what a few seconds can tell from nothing
_SETTLE_S: Final = 0.2
_RIVALS: Final = {"shm": "memcpy", "tcp": "socket"}
"""What each backend is held against: the least that its bytes cost."""
_COMPARED: Final = ("16MiB", "128MiB")
"""Smaller writes are bound by waking threads: they have figures, but no floor."""


def bench_transfer(
    config: TransferBenchConfig, backends: Sequence[str] = tuple(BACKENDS)
) -> Report:
    """About a minute of work. A backend that cannot run here is skipped with the reason."""
    clock, findings = MonotonicClock(), Findings()
    others = OtherLoad(clock)
    payloads = make_payloads(config.block_bytes, config.max_mib)
    source = SharedSegment(region_bytes(payloads))
    _fill(source)
    try:
        usable = _measure_idle(findings, source, backends, config.idle_s)
        with _open_ways(source, usable) as ways:
            _measure_sizes(findings, ways, payloads, config.rounds, clock)
            _measure_cpu(findings, ways, payloads[-1], config.rounds)
            _check_bytes(ways)
            _measure_handover(findings, ways, payloads[1], config.rounds)
        _compare(findings, usable, payloads)
    finally:
        source.close()
    return Report(
        benchmark="transfer",
        machine=describe_machine(open_kernels(1).isa, others),
        settings={"rounds": config.rounds, "block_bytes": config.block_bytes},
        figures=findings.figures,
        ratios=findings.ratios,
        skipped=findings.skipped,
    )


def _fill(source: SharedSegment) -> None:
    """Bytes that differ from place to place: what is written elsewhere is found by its checksum."""
    words = np.frombuffer(source.map, dtype=np.uint32)
    words[:] = np.arange(len(words), dtype=np.uint32) * np.uint32(2654435761)


def _measure_idle(
    findings: Findings, source: SharedSegment, backends: Sequence[str], idle_s: float
) -> list[str]:
    """Share of a core that each backend alone, connected and warm, burns in both processes. The
    backends that can run."""
    usable = []
    for backend in backends:
        try:
            way = Transport(backend, source)
        except (ConfigError, TransferError) as error:
            findings.skipped[backend] = str(error)
            continue
        usable.append(backend)
        _settle(way)
        before_s, started_s = way.cpu_s(), time.monotonic()
        threading.Event().wait(idle_s)
        used_s = way.cpu_s() - before_s
        share = used_s / (time.monotonic() - started_s)
        way.close()
        findings.add(f"{backend}_idle", [share], "cores")
        findings.claim(
            f"{backend}_idle_under_2_percent",
            _IDLE_LIMIT / max(share, _LEAST_IDLE),
            1.0,
            f"2 % of a core / what {backend} burns in both processes while nothing is written",
        )
    return usable


def _settle(way: Way) -> None:
    """Wait until what is done once after connecting is over, such as mapping pages; at most 5 s."""
    deadline_s, pause = time.monotonic() + 5.0, threading.Event()
    last_s = way.cpu_s()
    while time.monotonic() < deadline_s:
        pause.wait(_SETTLE_S)
        now_s = way.cpu_s()
        if now_s - last_s < _SETTLE_S * _IDLE_LIMIT:
            return
        last_s = now_s


@contextlib.contextmanager
def _open_ways(source: SharedSegment, backends: Sequence[str]) -> Iterator[dict[str, Way]]:
    with contextlib.ExitStack() as stack:
        ways: dict[str, Way] = {}

        def add(name: str, make: Callable[[], Way]) -> None:
            ways[name] = make()
            stack.callback(ways[name].close)

        add("memcpy", lambda: Memcpy(source))
        add("socket", lambda: PlainSocket(source))
        for backend in backends:
            add(backend, lambda backend=backend: Transport(backend, source))  # type: ignore[misc]
        yield ways


def _measure_sizes(
    findings: Findings,
    ways: dict[str, Way],
    payloads: Sequence[Payload],
    rounds: int,
    clock: Clock,
) -> None:
    for payload in payloads:
        latencies_s: dict[str, list[float]] = {name: [] for name in ways}
        cases = {
            name: _write_case(way, payload, latencies_s[name], clock) for name, way in ways.items()
        }
        for name, samples in interleave(cases, rounds, _WARM_UPS).items():
            findings.add(f"{name}_{payload.name}", samples, "GB/s")
        for name, taken in latencies_s.items():
            kept = taken[_WARM_UPS * payload.num_repeats :]
            _add_latency(findings, f"{name}_{payload.name}", [1e3 * each for each in kept])


def _write_case(way: Way, payload: Payload, latencies_s: list[float], clock: Clock) -> Sample:
    def sample() -> float:
        taken = []
        for _ in range(payload.num_repeats):
            started_s = clock.now_s()
            way.write(payload)
            taken.append(clock.now_s() - started_s)
        latencies_s.extend(taken)
        return payload.num_bytes / statistics.median(taken) / _GIGA

    return sample


def _add_latency(findings: Findings, name: str, taken_ms: Sequence[float]) -> None:
    findings.add(f"{name}_p50", [statistics.median(taken_ms)], "ms")
    findings.add(f"{name}_p99", [percentile(taken_ms, 0.99)], "ms")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _measure_cpu(findings: Findings, ways: dict[str, Way], payload: Payload, rounds: int) -> None:
    """Processor seconds that a GB costs both processes together."""

    def case(way: Way) -> Sample:
        def sample() -> float:
            before_s = way.cpu_s()
            way.write(payload)
            return (way.cpu_s() - before_s) / (payload.num_bytes / _GIGA)

        return sample

    cases = {name: case(way) for name, way in ways.items()}
    for name, samples in interleave(cases, rounds, warm_ups=1).items():
        findings.add(f"{name}_cpu_per_gb", samples, "core s/GB")


def _check_bytes(ways: dict[str, Way]) -> None:
    """All have written the same by now: what is fast must also be right."""
    checksums = {name: way.checksum() for name, way in ways.items()}
    assert len(set(checksums.values())) == 1, f"the regions differ: {checksums}"


def _measure_handover(
    findings: Findings, ways: dict[str, Way], block: Payload, rounds: int
) -> None:
    """Milliseconds from posting one block to the receiver's event. Both read one clock: that of
    the machine."""
    with contextlib.ExitStack() as stack:
        taken_ms: dict[str, list[float]] = {}
        cases: dict[str, Sample] = {}
        for name, way in ways.items():
            if isinstance(way, Transport):
                taken_ms[name] = []
                cases[name] = _handover_case(stack, way, block, taken_ms[name])
        for name, samples in interleave(cases, rounds, _WARM_UPS).items():
            findings.add(f"{name}_handover", samples, "ms")
            kept = taken_ms[name][_WARM_UPS * _HOPS :]
            findings.add(f"{name}_handover_p99", [percentile(kept, 0.99)], "ms")


def _handover_case(
    stack: contextlib.ExitStack, way: Transport, block: Payload, taken_ms: list[float]
) -> Sample:
    events: queue.SimpleQueue[tuple[int, PeerEvent]] = queue.SimpleQueue()
    link = new_link(events)
    stack.callback(link.close)
    way.far.ask(f"link 127.0.0.1:{link.port}")
    key = next_message(events)[1].key
    delivered = KvDelivered(transfer_id="bench", token_id=1, num_blocks=1, num_cached_tokens=0)

    def sample() -> float:
        taken = []
        for _ in range(_HOPS):
            posted_ns = time.monotonic_ns()
            way.write(block)
            link.send(key, delivered)
            taken.append((int(way.far.ask("delivered")) - posted_ns) / 1e6)
        taken_ms.extend(taken)
        return statistics.median(taken)

    return sample


def _compare(findings: Findings, backends: Sequence[str], payloads: Sequence[Payload]) -> None:
    for backend in backends:
        rival = _RIVALS.get(backend)
        for payload in payloads if rival is not None else ():
            if payload.name in _COMPARED:
                name = f"{backend}_vs_{rival}_{payload.name}"
                reference = f"a plain {rival} of the same {len(payload.copies)} scattered blocks"
                ours, theirs = f"{backend}_{payload.name}", f"{rival}_{payload.name}"
                findings.compare(name, ours, theirs, _COPY_FLOOR, reference)
    if "shm" in backends:
        findings.claim(
            "shm_handover_under_1_ms",
            _LIMIT_MS / findings.figures["shm_handover"].median,
            1.0,
            "1 ms / from posting the last block to the receiver's event on the control link",
        )
