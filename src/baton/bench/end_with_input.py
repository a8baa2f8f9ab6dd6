"""A helper process lives as long as its standard input: it ends with its parent, however that ends.

Elsewhere: starting such processes (router_processes.py).
"""

import asyncio
import os


async def ends_with_input() -> None:
    """Return when standard input is closed."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            closed.set()

    loop.add_reader(0, read)
    await closed.wait()
