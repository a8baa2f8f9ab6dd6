"""OrderedIds against the plainest thing that could work: a dict, sorted each time."""

from hypothesis import given
from hypothesis import strategies as st

from baton.router.policies.ordered import OrderedIds

ids = st.sampled_from("abcdef")
steps = st.lists(
    st.one_of(st.tuples(st.just("put"), ids, st.integers(0, 4)), st.tuples(st.just("drop"), ids)),
    max_size=200,
)


@given(steps, st.sets(ids), st.integers(0, 7))
def test_orders_as_a_sorted_dict_would(
    history: list[tuple[str, str, int] | tuple[str, str]], excluded: set[str], num: int
) -> None:
    ordered, model = OrderedIds(), dict[str, int]()
    for step in history:
        if len(step) == 3:
            ordered.put(step[1], step[2])
            model[step[1]] = step[2]
        else:
            ordered.discard(step[1])
            model.pop(step[1], None)
        ordered.check_invariants()
        in_order = sorted(model, key=lambda id_: (model[id_], id_))
        assert ordered.first() == next(iter(in_order), None)
    allowed = [id_ for id_ in in_order if id_ not in excluded] if history else []
    assert ordered.first(excluded) == next(iter(allowed), None)
    assert ordered.first_few(num, excluded) == allowed[:num]
    assert len(ordered) == len(model)


def test_outdated_entries_do_not_pile_up() -> None:
    ordered = OrderedIds()
    for i in range(10_000):
        ordered.put("a", i)
        ordered.put("b", -i)
        ordered.check_invariants()
    assert ordered.first() == "b"
