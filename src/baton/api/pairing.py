"""Finding the prefill engine of every paired sample on a decode worker.

Elsewhere: the bootstrap protocol (disagg/bootstrap.py).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from baton.api.spec import Pairing, Sample
from baton.api.state import PrefillResolver
from baton.core.request import Handover, Role


async def attach_peers(
    samples: Sequence[Sample], role: Role, resolve: PrefillResolver
) -> list[Sample]:
    """Samples whose hand-over names the prefill engine. Each room is asked for once.

    Raises TransferError when a bootstrap server cannot be reached or knows no prefill engine.
    """
    pairings = list(dict.fromkeys(s.pairing for s in samples if s.pairing is not None))
    if role != "decode" or not pairings:
        return list(samples)
    addresses = await _all_or_first_error(pairings, resolve)
    address_of = dict(zip(pairings, addresses, strict=True))
    return [
        sample if sample.pairing is None else _with_peer(sample, address_of[sample.pairing])
        for sample in samples
    ]


async def _all_or_first_error(pairings: list[Pairing], resolve: PrefillResolver) -> list[str]:
    if len(pairings) == 1:
        only = pairings[0]
        return [await resolve(only.host, only.port, only.room)]
    tasks = [
        asyncio.ensure_future(resolve(pairing.host, pairing.port, pairing.room))
        for pairing in pairings
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _with_peer(sample: Sample, address: str) -> Sample:
    handover = sample.request.handover
    assert handover is not None, "a paired sample has a hand-over"
    paired = Handover(room=handover.room, sample_index=handover.sample_index, peer_address=address)
    return replace(sample, request=msgspec.structs.replace(sample.request, handover=paired))
