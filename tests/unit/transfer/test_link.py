"""Descriptions of links, and when writes arrive over one."""

import math

import pytest

from baton.core.errors import ConfigError
from baton.transfer.link import LinkConfig, SimulatedLink, parse_link
from baton.transfer.protocol import Copy
from baton.transfer.routed_peer import Ending


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("10Gbps,1ms", LinkConfig(10e9, 0.001)),
        ("1.5Mbps, 250us", LinkConfig(1.5e6, 250e-6)),
        ("2s,800bps", LinkConfig(800, 2.0)),
        ("64kbps", LinkConfig(64e3)),
        ("5ms", LinkConfig(math.inf, 0.005)),
        ("1Gbps,0ms,loss=0.25,seed=7", LinkConfig(1e9, 0.0, 0.25, 7)),
    ],
)
def test_descriptions(text: str, link: LinkConfig) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is neither a bandwidth (bps, kbps, Mbps, Gbps), nor a delay (us, ms, s)"),
        ("10Gbps,1 ms", "'1 ms' is neither"),
        ("10GBps,1ms", "'10GBps' is neither"),
        ("10Gbps,1ms,2ms", "'2ms' gives the delay again"),
        ("loss=0.1", "no bandwidth and no delay"),
        ("0bps,1ms", "bandwidth 0 bps is not above 0"),
        ("1ms,loss=2", "loss 2 is not between 0 and 1"),
        ("1ms,loss=nan", "loss nan is not between 0 and 1"),
        ("1ms,loss=much", "loss 'much' is not a number"),
        ("1ms,seed=-1", "seed '-1' is not a whole number"),
        ("-1ms", "'-1ms' is neither"),
        ("1ms,jitter=2", "'jitter=2' is neither"),
    ],
)
def test_a_wrong_description_is_told_with_field_value_and_mend(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_link(text)
    message = str(caught.value)
    assert f"--simulate-link {text!r}" in message
    assert told in message
    assert "try " in message


def test_writes_take_the_link_in_turn_and_then_the_delay() -> None:
    link = SimulatedLink(parse_link("8kbps,500ms"))
    first = link.plan("a", [Copy(0, 0, 1000), Copy(0, 0, 1000)], now_s=10.0)
    second = link.plan("b", [Copy(0, 0, 500)], now_s=10.0)
    third = link.plan("a", [Copy(0, 0, 1000)], now_s=20.0)
    assert (first.start_s, first.due_s) == (10.0, 12.5)
    assert (second.start_s, second.due_s) == (12.0, 13.0)
    assert (third.start_s, third.due_s) == (20.0, 21.5)
    assert {passage.ending for passage in (first, second, third)} == {Ending.ARRIVES}


def test_losses_are_those_of_the_seed() -> None:
    def lost(seed: int) -> list[int]:
        link = SimulatedLink(parse_link(f"1ms,loss=0.2,seed={seed}"))
        plans = [link.plan("a", [Copy(0, 0, 1)], 0.0) for _ in range(1000)]
        return [index for index, plan in enumerate(plans) if plan.ending is Ending.FAILS]

    assert lost(1) == lost(1)
    assert lost(1) != lost(2)
    assert 150 < len(lost(1)) < 250
