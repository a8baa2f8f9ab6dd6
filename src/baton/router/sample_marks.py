"""How far each sample of a stream has come, and the logprobs that its events repeat. Pure.

Marks name their sample, `: t/1 15 27`, and say when it has ended, `: t/1 15 end`. Events of
/generate with `return_logprob` repeat the logprobs of all tokens so far, which another worker does
not have: they are taken from the last event that the client got.
Invariant: as in marks.py, for every sample.
Elsewhere: streams of one sample without such logprobs, which are nearly all (marks.py).
"""

from typing import Final, NamedTuple

import msgspec

from baton.router import sse
from baton.router.marks import MarkedStream

SEVERAL: Final = "samples "
"""Before the rest of the header's value: marks name their samples."""

_MARK: Final = b"\n\n: t"
_END: Final = b"end"
_REPEATED: Final = (
    "input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs"
)  # fmt: skip


class ResumedSample(msgspec.Struct, omit_defaults=True):
    """One sample in a request's `resume` field."""

    index: int
    token_ids: list[int]
    is_done: bool = False
    logprobs: dict[str, msgspec.Raw] | None = None


class SamplesResume(msgspec.Struct, omit_defaults=True):
    """What a request gets added: its `resume` field, of samples that have begun."""

    samples: list[ResumedSample]
    seed: int | None = None
    created: int | None = None
    id: str | None = None


class _Meta(msgspec.Struct):
    meta_info: dict[str, msgspec.Raw]


_decode_meta = msgspec.json.Decoder(_Meta).decode


class _SampleMark(NamedTuple):
    sample: int
    token_ids: list[int]
    is_last: bool


class MarkedSamples(MarkedStream):
    """`keeps_logprobs`: the stream's events repeat them."""

    def __init__(self, header: str, keeps_logprobs: bool):
        super().__init__(header.removeprefix(SEVERAL))
        self._keeps_logprobs = keeps_logprobs
        self._samples: dict[int, ResumedSample] = {}
        self._last_of: dict[int, bytes] = {}

    @property
    def num_tokens(self) -> int:
        return sum(len(sample.token_ids) for sample in self._samples.values())

    @property
    def resume(self) -> SamplesResume:
        for index, events in self._last_of.items():
            self._samples[index].logprobs = _repeated(events)
        self._last_of.clear()
        return SamplesResume(list(self._samples.values()), self._seed, self._created, self._id)

    def feed(self, events: bytes) -> bytes:
        if self._held:
            events, self._held = self._held + events, b""
        steps, marks, start = [], [], 0
        while (mark := events.find(_MARK, start)) >= 0:
            end = events.index(b"\n\n", mark + len(_MARK))
            steps.append(events[start : mark + 2])
            marks.append(_read(events[mark + len(_MARK) : end]))
            start = end + 2
        for step, read in zip(steps, marks, strict=True):  # all or, if one is odd, none
            self._note(read, step)
        self._held = events[start:]
        return b"".join(steps)

    def _note(self, mark: _SampleMark, step: bytes) -> None:
        sample = self._samples.setdefault(mark.sample, ResumedSample(mark.sample, []))
        sample.token_ids += mark.token_ids
        if mark.is_last:
            sample.is_done = True
        if self._keeps_logprobs:
            self._last_of[mark.sample] = step


def _read(mark: bytes) -> _SampleMark:
    name, *words = mark.split(b" ")
    sample, is_last = int(name.removeprefix(b"/") or b"0"), words[-1:] == [_END]
    numbers = words[:-1] if is_last else words
    return _SampleMark(sample, [int(number) for number in numbers if number], is_last)


def _repeated(events: bytes) -> dict[str, msgspec.Raw]:
    """Nothing, of a worker whose events are odd: whoever is told that will say so."""
    try:
        *_, last = sse.payloads(events)
        meta = _decode_meta(last).meta_info
    except (ValueError, msgspec.DecodeError):
        return {}
    return {name: meta[name].copy() for name in _REPEATED if name in meta}
