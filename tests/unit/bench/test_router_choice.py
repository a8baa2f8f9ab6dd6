"""The benchmark of choices runs, covers every policy, and a choice does not look at all workers."""

from baton.bench.router_choice import choice_cost, shape_cost
from baton.router.policies import PolicyName


def test_covers_every_policy() -> None:
    costs = choice_cost(num_workers=8, num_choices=50)
    assert [cost.what for cost in costs] == [*PolicyName, "slo_aware, pairs"]
    assert all(0 < cost.p50_us <= cost.p99_us for cost in costs)
    assert all(cost.counting_p50_us > 0 for cost in costs)


def test_reads_bodies() -> None:
    assert all(0 < cost.p50_us <= cost.p99_us for cost in shape_cost(num_choices=20))


def test_a_hundred_times_the_workers_does_not_cost_ten_times_as_much() -> None:
    """Looking at all of 1,000 workers would; measured, it is less than three times."""
    few = {cost.what: cost.p50_us for cost in choice_cost(num_workers=10, num_choices=500)}
    many = {cost.what: cost.p50_us for cost in choice_cost(num_workers=1000, num_choices=500)}
    assert all(many[what] < 10 * few[what] for what in few)
