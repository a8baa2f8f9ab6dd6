"""How often a server was asked to stop: the second time means at once.

Elsewhere: what it does then (router/server.py, launch/departure.py).
"""

import asyncio


class StopRequests:
    """From signals, or from the program around it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.asked_again = asyncio.Event()

    def ask(self) -> None:
        (self.asked_again if self.asked.is_set() else self.asked).set()
