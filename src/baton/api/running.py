"""Which requests run now, by id: duplicates are refused, and any of them can be aborted.

Invariant: an id is known here from admission until its last sample has ended, whatever happens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from baton.core.errors import RequestError


@dataclass
class Claim:
    """The ids of one HTTP request. `is_aborted` is read before its samples go to the engine."""

    base_id: str
    sample_ids: list[str]
    is_aborted: bool = False


class RunningRequests:
    """Ids of all HTTP requests that are being served."""

    def __init__(self) -> None:
        self._by_id: dict[str, Claim] = {}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._by_id

    @property
    def num_requests(self) -> int:
        return len({id(claim) for claim in self._by_id.values()})

    @contextmanager
    def claim(self, base_id: str, sample_ids: list[str]) -> Iterator[Claim]:
        """Hold these ids for the duration. Raises RequestError if one of them runs already."""
        keys = dict.fromkeys([base_id, *sample_ids])
        for key in keys:
            if key in self._by_id:
                raise RequestError(
                    f"rid {key!r} is the id of a request that still runs; use a new one",
                    param="rid",
                    code="duplicate_rid",
                )
        claim = Claim(base_id, sample_ids)
        self._by_id.update(dict.fromkeys(keys, claim))
        try:
            yield claim
        finally:
            for key in keys:
                del self._by_id[key]

    def abort(self, request_id: str, abort_sample: Callable[[str], bool]) -> int:
        """End a whole request, or one sample of it. Returns how many samples were running."""
        claim = self._by_id.get(request_id)
        if claim is None:
            return 0
        if request_id == claim.base_id:
            targets = claim.sample_ids
            claim.is_aborted = True
        else:
            targets = [request_id]
            claim.is_aborted = len(claim.sample_ids) == 1
        return sum(abort_sample(sample_id) for sample_id in targets)

    def abort_all(self) -> None:
        """Mark every request, so that those not yet in the engine do not reach it."""
        for claim in self._by_id.values():
            claim.is_aborted = True
