"""What a server's processes hold: how many they are, and what each has open.

The HTTP connections that the api and router processes keep for the next request come and go; those
whose other end has left must not stay.
Elsewhere: starting and ending them (processes.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from baton.testing.processes import Server


@dataclass(frozen=True)
class Footprint:
    """`num_descriptors`: all of the engines', and of the other processes all but TCP connections.
    `num_deserted`: TCP connections that this side has not closed, but the other has."""

    num_processes: int
    num_descriptors: int
    num_deserted: int

    def is_within(self, other: "Footprint") -> bool:
        return (
            self.num_processes == other.num_processes
            and self.num_descriptors <= other.num_descriptors
            and self.num_deserted == 0
        )


def footprint(servers: Sequence[Server]) -> Footprint:
    mains = [psutil.Process(server.pid) for server in servers]
    engines = [child for main in mains for child in main.children(recursive=True)]
    connections = [connection for main in mains for connection in main.net_connections("tcp")]
    num_lasting = sum(main.num_fds() for main in mains) - len(connections)
    return Footprint(
        num_processes=len(mains) + len(engines),
        num_descriptors=num_lasting + sum(engine.num_fds() for engine in engines),
        num_deserted=sum(each.status == psutil.CONN_CLOSE_WAIT for each in connections),
    )
