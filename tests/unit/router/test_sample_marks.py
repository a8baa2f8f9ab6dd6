"""What a client gets of marked streams of several samples, and what another worker is told."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.sample_marks import MarkedSamples

FRAMES = [
    b'data: {"index": 1}\n\n',
    b": t/1 5\n\n",
    b'data: {"index": 0}\n\n',
    b": t/0 6 7\n\n",
    b'data: {"index": 1, "x": ": t/9 9"}\n\n',
    b": t/1 8 end\n\n",
    b'data: {"index": 0}\n\n',
    b": t/0 end\n\n",
    b"data: [DONE]\n\n",
]


def resume_of(marked: MarkedSamples) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(msgspec.json.encode(marked.resume))
    return found


@given(st.sets(st.integers(1, len(FRAMES) - 1)), st.integers(0, len(FRAMES)))
def test_however_it_is_cut_and_wherever_it_breaks(cuts: set[int], num_frames: int) -> None:
    marked, passed = MarkedSamples("samples 7 17 an id", keeps_logprobs=False), b""
    bounds = [0, *sorted(cut for cut in cuts if cut < num_frames), num_frames]
    for start, end in itertools.pairwise(bounds):
        passed += marked.feed(b"".join(FRAMES[start:end]))
    num_marked = num_frames // 2
    assert passed == b"".join(FRAMES[0 : 2 * num_marked : 2])
    tokens: dict[int, list[int]] = {0: [], 1: []}
    done = set()
    for index, ids, is_done in [(1, [5], 0), (0, [6, 7], 0), (1, [8], 1), (0, [], 1)][:num_marked]:
        tokens[index] += ids
        if is_done:
            done.add(index)
    begun = (1, 0)[:num_marked]
    assert resume_of(marked) == {
        "samples": [
            {"index": index, "token_ids": tokens[index]}
            | ({"is_done": True} if index in done else {})
            for index in begun
        ],
        "seed": 7,
        "created": 17,
        "id": "an id",
    }
    assert marked.num_tokens == sum(map(len, tokens.values()))


def test_repeated_logprobs_are_those_of_the_last_event_that_was_passed_on() -> None:
    marked = MarkedSamples("7 17 id", keeps_logprobs=True)
    first, second, third = (
        b'data: {"meta_info": {"output_token_logprobs": [[-0.%d, 5, null]], "id": "r"}}\n\n' % n
        for n in (1, 2, 3)
    )
    marked.feed(first + b": t 5\n\n" + second + b": t 6\n\n" + third)
    marked.drop_held()
    (sample,) = resume_of(marked)["samples"]  # type: ignore[misc]
    assert sample == {
        "index": 0,
        "token_ids": [5, 6],
        "logprobs": {"output_token_logprobs": [[-0.2, 5, None]]},
    }
    assert resume_of(marked)["samples"] == [sample]


@pytest.mark.parametrize("event", [b": nothing", b"data: [DONE]", b"data: {}", b"data: {x"])
def test_odd_events_repeat_nothing(event: bytes) -> None:
    marked = MarkedSamples("7 17 id", keeps_logprobs=True)
    marked.feed(event + b"\n\n: t 5\n\n")
    assert resume_of(marked)["samples"] == [{"index": 0, "token_ids": [5], "logprobs": {}}]


@pytest.mark.parametrize("mark", [b": t/x 1", b": t/1 one", b": t/1 end 2", b": tx 1"])
def test_a_mark_that_makes_no_sense(mark: bytes) -> None:
    marked = MarkedSamples("samples 7 1 id", keeps_logprobs=False)
    with pytest.raises(ValueError, match="invalid literal"):
        marked.feed(FRAMES[0] + FRAMES[1] + FRAMES[2] + mark + b"\n\n")
    assert marked.num_tokens == 0, "nobody saw any of it"
