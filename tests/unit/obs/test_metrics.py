"""Rates and registries."""

from dataclasses import MISSING, replace

from baton.core.clock import FakeClock
from baton.obs.metrics import EngineSnapshot, RateWindow, WorkerMetrics


def snapshot(**changes: object) -> EngineSnapshot:
    fields: dict[str, object] = {
        name: 0
        for name, field in EngineSnapshot.__dataclass_fields__.items()
        if field.default_factory is MISSING
    }
    return EngineSnapshot(**{**fields, **changes})  # type: ignore[arg-type]


def test_rate_window() -> None:
    clock = FakeClock()
    rate = RateWindow(clock, window_s=10.0)
    assert rate.per_second() == 0
    for _ in range(20):
        rate.add(5)
        clock.advance(0.5)
    assert rate.per_second() == 10.0
    clock.advance(5.0)
    assert 4.0 <= rate.per_second() <= 6.0
    clock.advance(10.0)
    assert rate.per_second() == 0


def test_shares_of_an_idle_engine_are_zero() -> None:
    assert snapshot().token_usage == 0.0
    assert snapshot().cache_hit_rate == 0.0
    assert snapshot(total_prompt_tokens=8, total_cached_tokens=2).cache_hit_rate == 0.25


def test_two_workers_do_not_share_counters() -> None:
    first, second = (
        WorkerMetrics(
            model_name=name, engine_type="prefill", read_engine=snapshot, clock=FakeClock()
        )
        for name in ("one", "two")
    )
    first.request_started()
    line = 'sglang:num_requests_total{{engine_type="prefill",model_name="{}"}} {}'
    assert line.format("one", "1.0") in first.render().decode()
    assert line.format("two", "0.0") in second.render().decode()


def test_damaged_blocks_are_counted() -> None:
    metrics = WorkerMetrics(
        model_name="m",
        engine_type="decode",
        read_engine=lambda: snapshot(total_verified_blocks=8, total_damaged_blocks=2),
        clock=FakeClock(),
    )
    lines = metrics.render().decode().splitlines()
    labels = '{engine_type="decode",model_name="m"}'
    assert f"baton:kv_blocks_verified_total{labels} 8.0" in lines
    assert f"baton:kv_blocks_damaged_total{labels} 2.0" in lines


def test_labels_are_escaped() -> None:
    metrics = WorkerMetrics(
        model_name='a"b\n', engine_type="unified", read_engine=snapshot, clock=FakeClock()
    )
    assert 'model_name="a\\"b\\n"' in metrics.render().decode()


def test_refused_connections_are_told_by_channel_and_reason() -> None:
    refused = {"control": {"malformed": 2, "secret": 3}, "kv": {"malformed": 0, "secret": 1}}
    metrics = WorkerMetrics(
        model_name="m",
        engine_type="decode",
        read_engine=lambda: replace(snapshot(), total_refused=refused),
        clock=FakeClock(),
    )
    text = metrics.render().decode()
    for channel, reasons in refused.items():
        for reason, count in reasons.items():
            line = (
                f'baton:refused_connections_total{{channel="{channel}",engine_type="decode",'
                f'model_name="m",reason="{reason}"}} {count:.1f}'
            )
            assert line in text


def test_hand_overs_are_counted_by_stage() -> None:
    metrics = WorkerMetrics(
        model_name="m",
        engine_type="decode",
        read_engine=lambda: snapshot(
            handover_failures=[("writing", "504", 2)],
            handover_stages={"writing": (3, 1.5)},
            num_quarantined_blocks=7,
        ),
        clock=FakeClock(),
    )
    text = metrics.render().decode()
    assert 'stage="writing",status="504"} 2.0' in text
    assert "baton:handover_stage_seconds_sum" in text
    assert 'baton:quarantined_blocks{engine_type="decode",model_name="m"} 7.0' in text
