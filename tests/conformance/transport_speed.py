"""How fast each transport moves scattered KV blocks into another process, beside plain copying.

    python tests/conformance/transport_speed.py [BLOCK_BYTES [NUM_BLOCKS]]

Compare the rows of one run with each other: absolute figures move with the machine. The defaults
are a prompt of 3,000 tokens of the default model.
"""

import multiprocessing
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from baton.kvcache.storage import SharedSegment
from baton.testing.backends import BACKENDS, why_missing
from baton.testing.region_owner import RemoteOwner
from baton.transfer.protocol import Copy, TicketState

REPEATS = 15


def measure(label: str, num_bytes: int, run: Callable[[], None]) -> None:
    seconds, cpu_seconds = [], []
    for _ in range(REPEATS):
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - started_s)
        cpu_seconds.append(time.process_time() - started_cpu_s)
    # The first ones touch pages.
    p50, cpu_p50 = (sorted(each[3:])[(REPEATS - 3) // 2] for each in (seconds, cpu_seconds))
    print(
        f"{label:<14} p50 {p50 * 1e3:8.2f} ms {num_bytes / p50 / 1e9:6.2f} GB/s, "
        f"this side's CPU {cpu_p50 * 1e3:8.2f} ms"
    )


def measure_memcpy(source: memoryview, copies: Sequence[Copy], num_bytes: int) -> None:
    target_segment = SharedSegment(len(source))
    target = target_segment.view()

    def run() -> None:
        for copy in copies:
            end = copy.dst_offset + copy.num_bytes
            piece = source[copy.src_offset : copy.src_offset + copy.num_bytes]
            target[copy.dst_offset : end] = piece

    measure("memcpy", num_bytes, run)


def measure_transport(
    backend: str, segment: SharedSegment, copies: Sequence[Copy], num_bytes: int
) -> None:
    transport = BACKENDS[backend](segment)
    completed = threading.Event()
    transport.set_on_completion(completed.set)
    with RemoteOwner(backend, segment.num_bytes) as owner:
        owner.ask(f"open speed 0 {segment.num_bytes}")
        peer = transport.connect(owner.descriptor, 5.0)

        def write(wanted: Sequence[Copy]) -> None:
            completed.clear()
            ticket = peer.post_write("speed", wanted)
            completed.wait()
            assert ticket.state is TicketState.DONE, ticket.error

        measure(backend, num_bytes, lambda: write(copies))
        measure(f"{backend}, 64 B", 64, lambda: write([Copy(0, 0, 64)]))
        transport.close()


def receive_raw(port_to: Connection, region_bytes: int, copies: Sequence[Copy]) -> None:
    view = SharedSegment(region_bytes).view()
    listener = socket.create_server(("127.0.0.1", 0))
    port_to.send(listener.getsockname()[1])
    connection, _ = listener.accept()
    while True:
        for copy in copies:
            start, end = copy.dst_offset, copy.dst_offset + copy.num_bytes
            while start < end:
                received = connection.recv_into(view[start:end])
                if received == 0:
                    return
                start += received
        connection.sendall(b"k")


def measure_raw_socket(source: memoryview, copies: Sequence[Copy], num_bytes: int) -> None:
    port_from, port_to = multiprocessing.Pipe()
    receiver = multiprocessing.get_context("spawn").Process(
        target=receive_raw, args=(port_to, len(source), copies)
    )
    receiver.start()
    connection = socket.create_connection(("127.0.0.1", port_from.recv()))

    def run() -> None:
        for copy in copies:
            connection.sendall(source[copy.src_offset : copy.src_offset + copy.num_bytes])
        connection.recv(1)

    measure("raw socket", num_bytes, run)
    connection.close()
    receiver.join()


def main() -> None:
    block_bytes = int(sys.argv[1]) if len(sys.argv) > 1 else 368_640
    num_blocks = int(sys.argv[2]) if len(sys.argv) > 2 else 188
    segment = SharedSegment(2 * block_bytes * num_blocks)
    source = segment.view()
    source[:] = random.Random(1).randbytes(len(source))
    order = random.Random(2).sample(range(2 * num_blocks), num_blocks)
    copies = [
        Copy(block * block_bytes, 2 * index * block_bytes, block_bytes)
        for index, block in enumerate(order)
    ]
    num_bytes = block_bytes * num_blocks
    print(f"{num_blocks} scattered blocks of {block_bytes} bytes")
    measure_memcpy(source, copies, num_bytes)
    for backend in BACKENDS:
        if not why_missing(backend):
            measure_transport(backend, segment, copies, num_bytes)
    measure_raw_socket(source, copies, num_bytes)


if __name__ == "__main__":
    main()
