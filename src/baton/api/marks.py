"""Comments behind a stream's events, from which another worker can go on. Pure.

`: t 15 27`: the output tokens that brought a stream of one sample where it is. Its last piece gets
no mark: [DONE] is its own, and where a stream breaks between the two, that piece is made again.
`: t/1 15 27`: those of sample 1 of several, which have an `end` of their own, `: t/1 8 end`.
Elsewhere: what a router does with them (router/marks.py, router/sample_marks.py).
"""

from collections.abc import Sequence
from typing import Final

from baton.api.sample_stream import Piece
from baton.api.spec import GenerationSpec, Sample
from baton.core.sampling import MAX_SEED

MARKS_HEADER: Final = "X-Baton-Marks"
"""A router asks for marks with it; the answer has what `resume` needs beside the token ids: seed,
time of creation, id; before them `samples` where marks name theirs."""


class Marks:
    """Of one stream. `shown_id`: what clients know the request by."""

    def __init__(
        self, spec: GenerationSpec, samples: Sequence[Sample], created: int, shown_id: str
    ):
        self._is_one = len(samples) == 1
        kind = "" if self._is_one else "samples "
        self.header = f"{kind}{_base_seed(spec, samples)} {created} {shown_id}"
        self._unmarked: list[list[int]] = [[] for _ in samples]

    def behind(self, piece: Piece, events: Sequence[bytes]) -> bytes:
        """The mark behind a piece's events; what shows nothing is marked with what follows."""
        unmarked = self._unmarked[piece.index]
        unmarked += piece.token_ids
        if not events or (self._is_one and piece.finish is not None):
            return b""
        words = [b"%d" % token_id for token_id in unmarked]
        unmarked.clear()
        if self._is_one:
            return b": t %b\n\n" % b" ".join(words) if words else b""
        if piece.finish is not None:
            words.append(b"end")
        return b": t/%d %b\n\n" % (piece.index, b" ".join(words))


def _base_seed(spec: GenerationSpec, samples: Sequence[Sample]) -> int:
    """Of the samples without a seed of their own; where all have one, the first one's."""
    without = (sample for sample in samples if spec.prompts[sample.prompt_index].seed is None)
    sample = next(without, samples[0])
    return (sample.request.sampling.seed - sample.index) & MAX_SEED
