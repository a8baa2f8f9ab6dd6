"""Which requests run now, by id: duplicates are refused, and any of them can be aborted.

Invariant: an id is known here from admission until its last sample has ended, whatever happens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from baton.core.errors import RequestError


@dataclass
class Claim:
    """The ids of one HTTP request. `suffix`: all of them are held with it, so that a later attempt
    at a request never meets what is left of an earlier one. `is_aborted` is read before its samples
    go to the engine."""

    base_id: str
    sample_ids: list[str]
    suffix: str = ""
    is_aborted: bool = False

    @property
    def keys(self) -> list[str]:
        ids = dict.fromkeys((self.base_id, *self.sample_ids))
        return [f"{id_}{self.suffix}" for id_ in ids]


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
    def claim(self, base_id: str, sample_ids: list[str], suffix: str = "") -> Iterator[Claim]:
        """Hold these ids for the duration. Raises RequestError if one of them runs already."""
        claim = Claim(base_id, sample_ids, suffix)
        keys = claim.keys
        for key in keys:
            if key in self._by_id:
                raise RequestError(
                    f"rid {key!r} is the id of a request that still runs; use a new one",
                    param="rid",
                    code="duplicate_rid",
                )
        self._by_id.update(dict.fromkeys(keys, claim))
        try:
            yield claim
        finally:
            for key in keys:
                del self._by_id[key]

    def abort(self, request_id: str, abort_sample: Callable[[str], bool]) -> int:
        """End a whole request, or one sample of it, in every attempt. Returns how many samples
        were running."""
        num_aborted = 0
        for claim in {id(claim): claim for claim in self._by_id.values()}.values():
            if request_id == claim.base_id:
                targets = claim.sample_ids
                claim.is_aborted = True
            elif request_id in claim.sample_ids:
                targets = [request_id]
                claim.is_aborted = len(claim.sample_ids) == 1
            else:
                continue
            num_aborted += sum(abort_sample(f"{id_}{claim.suffix}") for id_ in targets)
        return num_aborted

    def abort_all(self) -> None:
        """Mark every request, so that those not yet in the engine do not reach it."""
        for claim in self._by_id.values():
            claim.is_aborted = True
