"""Text of a sample, whatever the grouping of its tokens."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from baton.api.text import SampleText
from baton.testing.byte_tokenizer import make_byte_tokenizer

TOKENIZER = make_byte_tokenizer()


def read(
    groups: list[list[int]], stops: tuple[str, ...], keep_stop: bool
) -> tuple[str, int, str | None]:
    text = SampleText(
        TOKENIZER,
        [],
        stops=stops,
        keep_stop=keep_stop,
        skip_special_tokens=True,
        min_new_tokens=0,
    )
    shown, num_tokens = "", 0
    for group in groups:
        step = text.push(group)
        shown, num_tokens = shown + step.text, num_tokens + step.num_tokens
        if step.matched is not None:
            return shown, num_tokens, step.matched
    rest = text.flush()
    return shown + rest.text, num_tokens, rest.matched


tokens = st.lists(st.sampled_from([*b"ab \xc3\xa9\xe2\x82\xac", 257, 258]), max_size=30)
stops = st.lists(st.text("ab é", min_size=1, max_size=3), max_size=3).map(tuple)


@given(tokens, stops, st.booleans(), st.data())
def test_grouping_does_not_matter(
    token_ids: list[int], stop_strings: tuple[str, ...], keep_stop: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(token_ids)), max_size=5)))
    edges = [0, *cuts, len(token_ids)]
    groups = [token_ids[a:b] for a, b in itertools.pairwise(edges)]
    one_by_one = [[token_id] for token_id in token_ids]
    assert read(groups, stop_strings, keep_stop) == read(one_by_one, stop_strings, keep_stop)


@given(tokens)
def test_without_stops_it_is_the_decoded_text(token_ids: list[int]) -> None:
    text, num_tokens, matched = read([token_ids], (), False)
    assert text == TOKENIZER.decode(token_ids)
    assert (num_tokens, matched) == (len(token_ids), None)
