"""Several streams as one: order, errors, leaving."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from baton.api.fan_out import merge
from baton.api.sample_stream import Piece


class Streams:
    """Streams of pieces that record how they end."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    async def stream(
        self, index: int, num_pieces: int, error: Exception | None = None
    ) -> AsyncGenerator[Piece, None]:
        try:
            for number in range(num_pieces):
                await asyncio.sleep(0)
                yield Piece(index=index, text=str(number))
            if error is not None:
                raise error
        finally:
            self.ended.append(index)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_pieces_in_order(count: int) -> None:
    async def scenario() -> None:
        streams = Streams()
        texts = [""] * count
        async for piece in merge([streams.stream(i, 9) for i in range(count)]):
            texts[piece.index] += piece.text
        assert texts == ["012345678"] * count
        assert sorted(streams.ended) == list(range(count))

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_ends_all(count: int) -> None:
    async def scenario() -> None:
        streams = Streams()
        error = ValueError("broken")
        sources = [streams.stream(i, 10**9) for i in range(1, count)]
        with pytest.raises(ValueError, match="broken"):
            async for _ in merge([streams.stream(0, 3, error), *sources]):
                pass
        assert sorted(streams.ended) == list(range(count))

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_ends_all(count: int) -> None:
    async def scenario() -> None:
        streams = Streams()
        async with aclosing(merge([streams.stream(i, 10**9) for i in range(count)])) as pieces:
            seen = set()
            async for piece in pieces:
                seen.add(piece.index)
                if len(seen) == count:
                    break
        assert sorted(streams.ended) == list(range(count))

    asyncio.run(scenario())


def test_cancelling_ends_all() -> None:
    async def consume(streams: Streams, started: asyncio.Event) -> None:
        async with aclosing(merge([streams.stream(i, 10**9) for i in range(3)])) as pieces:
            async for _ in pieces:
                started.set()

    async def scenario() -> None:
        streams, started = Streams(), asyncio.Event()
        task = asyncio.create_task(consume(streams, started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(streams.ended) == [0, 1, 2]

    asyncio.run(scenario())
