"""Many limits with one timer: each expires in order, once, unless it was taken back."""

import asyncio
from collections.abc import Callable
from typing import Any

from baton.router.deadlines import Deadlines

from .conftest import until

Run = Callable[[Callable[[], Any]], None]


def test_what_is_not_taken_back_expires_in_order(run: Run) -> None:
    async def scenario() -> None:
        expired: list[str] = []
        last = asyncio.Event()

        def expire(item: str) -> None:
            expired.append(item)
            if item == "d":
                last.set()

        deadlines = Deadlines[str](0.01, expire)
        for item in "abc":
            deadlines.add(item)
        deadlines.discard("b")
        deadlines.discard("b")
        deadlines.add("d")
        assert deadlines.items() == ["a", "c", "d"]
        await last.wait()
        assert (expired, len(deadlines)) == (["a", "c", "d"], 0)

    run(scenario)


def test_an_item_may_be_taken_back_while_another_expires(run: Run) -> None:
    async def scenario() -> None:
        expired: list[str] = []

        def expire(item: str) -> None:
            expired.append(item)
            deadlines.discard("b")

        deadlines = Deadlines[str](0.001, expire)
        for item in "ab":
            deadlines.add(item)
        await until(lambda: not len(deadlines))
        assert expired == ["a"]

    run(scenario)


def test_nothing_expires_after_the_end(run: Run) -> None:
    async def scenario() -> None:
        expired: list[str] = []
        deadlines = Deadlines[str](0.001, expired.append)
        deadlines.add("a")
        deadlines.close()
        await asyncio.sleep(0.01)
        assert expired == []

    run(scenario)
