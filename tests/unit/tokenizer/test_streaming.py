"""Text that arrives in pieces equals text taken whole: detokenizing and stop strings."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.core.errors import RequestError
from baton.tokenizer import IncrementalDetokenizer, StopStringMatcher

TEXTS = st.text(
    st.sampled_from("ab é日😀\n\u0301 1l")
    | st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"),
    max_size=40,
)
"""Without U+2581, which SentencePiece cannot tell from a space."""


def cut(draw_from: st.DataObject, items: list[int]) -> list[list[int]]:
    bounds = draw_from.draw(st.lists(st.integers(0, len(items)), max_size=6))
    edges = [0, *sorted(bounds), len(items)]
    return [items[start:end] for start, end in itertools.pairwise(edges)]


def run(detokenizer: IncrementalDetokenizer, pieces: list[list[int]]) -> str:
    return "".join(detokenizer.push(piece) for piece in pieces) + detokenizer.flush()


@given(data=st.data())
def test_any_tokens_in_any_pieces_equal_decoding_at_once(byte_level, sentencepiece, data):
    tokenizer = data.draw(st.sampled_from([byte_level, sentencepiece]))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    skip = data.draw(st.booleans())
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    assert run(detokenizer, cut(data, ids)) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(data=st.data(), prompt=TEXTS, answer=TEXTS)
def test_the_answer_is_what_follows_the_prompts_text(
    byte_level, sentencepiece, data, prompt, answer
):
    tokenizer = data.draw(st.sampled_from([byte_level, sentencepiece]))
    ids = tokenizer.encode(prompt + answer)
    at = data.draw(st.integers(0, len(ids)))
    before = tokenizer.decode(ids[:at])
    detokenizer = IncrementalDetokenizer(tokenizer, ids[:at])
    after = run(detokenizer, cut(data, ids[at:]))
    if "\ufffd" not in before:
        assert before + after == tokenizer.decode(ids) == prompt + answer


@given(data=st.data(), text=TEXTS)
def test_nothing_is_shown_that_may_still_change(byte_level, data, text):
    ids = byte_level.encode(text)
    detokenizer = IncrementalDetokenizer(byte_level)
    shown = ""
    for piece in cut(data, ids):
        shown += detokenizer.push(piece)
        assert text.startswith(shown)
    assert shown == text
    assert detokenizer.flush() == ""


def test_a_character_left_open_becomes_a_replacement_at_the_end(byte_level):
    ids = byte_level.encode("日")
    assert len(ids) == 3
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_a_character_the_prompt_broke_off_is_finished(byte_level):
    ids = byte_level.encode("x日y")
    detokenizer = IncrementalDetokenizer(byte_level, ids[:2])
    assert detokenizer.push(ids[2:4]) == "日"
    assert detokenizer.push(ids[4:]) == "y"


def test_an_empty_answer_shows_nothing_of_the_prompt(byte_level):
    detokenizer = IncrementalDetokenizer(byte_level, byte_level.encode("日")[:2])
    assert detokenizer.push([]) == ""
    assert detokenizer.flush() == ""


class CountingTokenizer:
    """Passes through, and counts the tokens it was asked for."""

    strips_leading_space = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.num_joined = 0

    def join_bytes(self, ids, skip_special_tokens):
        self.num_joined += len(ids)
        return self._tokenizer.join_bytes(ids, skip_special_tokens)


def test_work_is_bounded_by_what_is_pushed(byte_level):
    counting = CountingTokenizer(byte_level)
    detokenizer = IncrementalDetokenizer(counting, byte_level.encode("x" * 10_000))
    assert counting.num_joined <= 4
    for _ in range(1000):
        detokenizer.push([5])
    assert counting.num_joined <= 1004


def first_match(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(start, stop) of the match that ends first, the longest of those: by definition."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return end - len(longest), longest
    return None


STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=8),
    stops=STOPS,
    include_stop=st.booleans(),
)
def test_stop_strings_are_found_as_in_the_whole_text(pieces, stops, include_stop):
    matcher = StopStringMatcher(stops, include_stop)
    text = "".join(pieces)
    shown, matched = "", None
    for piece in pieces:
        emitted, matched = matcher.push(piece)
        shown += emitted
        assert text.startswith(shown)
    shown += matcher.flush()
    expected = first_match(text, stops)
    if expected is None:
        assert (shown, matched) == (text, None)
    else:
        start, stop = expected
        assert matched == stop
        assert shown == text[: start + (len(stop) if include_stop else 0)]


@given(text=st.text("abc", max_size=30), stops=STOPS)
def test_no_more_is_held_back_than_may_be_a_stop_string(text, stops):
    matcher = StopStringMatcher(stops)
    shown, matched = matcher.push(text)
    if matched is None:
        held = text[len(shown) :]
        longest = max(
            (size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])),
            default=0,
        )
        assert len(held) == longest


def test_held_text_is_released_when_it_turns_out_harmless():
    matcher = StopStringMatcher(["\n\nUser:"])
    assert matcher.push("Hi\n") == ("Hi", None)
    assert matcher.push("\nUs") == ("", None)
    assert matcher.push("ually\n") == ("\n\nUsually", None)
    assert matcher.flush() == "\n"


def test_after_a_match_everything_is_dropped():
    matcher = StopStringMatcher(["END"])
    assert matcher.push("a EN") == ("a ", None)
    assert matcher.push("D b") == ("", "END")
    assert matcher.push("c") == ("", "END")
    assert matcher.flush() == ""


def test_no_stop_strings_pass_everything():
    matcher = StopStringMatcher([])
    assert matcher.push("abc") == ("abc", None)
    assert matcher.flush() == ""


def test_empty_stop_strings_are_refused():
    with pytest.raises(RequestError) as caught:
        StopStringMatcher(["a", ""])
    assert caught.value.param == "stop"
