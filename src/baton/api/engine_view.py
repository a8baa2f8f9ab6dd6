"""The engine's own report, in the terms of the metrics."""

from baton.api.engine_client import EngineClient
from baton.obs.metrics import EngineSnapshot


def snapshot(engine: EngineClient) -> EngineSnapshot:
    ready, stats = engine.ready, engine.stats
    return EngineSnapshot(
        is_alive=engine.is_alive,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        num_handover=stats.num_handover,
        num_blocks_free=stats.ledger.num_free,
        num_blocks_cached=stats.ledger.num_cached,
        num_blocks_in_use=stats.ledger.num_in_use,
        num_tokens_in_use=stats.num_tokens_in_use,
        max_total_num_tokens=ready.num_blocks * ready.block_size,
        total_prompt_tokens=stats.total_prompt_tokens,
        total_cached_tokens=stats.total_cached_tokens,
        total_generated_tokens=stats.total_generated_tokens,
        total_preemptions=stats.total_preemptions,
        total_steps=stats.total_steps,
        total_step_seconds=stats.total_step_seconds,
        total_transfers=stats.total_transfers,
        total_transfer_failures=stats.total_transfer_failures,
        total_transferred_bytes=stats.total_transferred_bytes,
        total_transfer_seconds=stats.total_transfer_seconds,
        total_verified_blocks=stats.total_verified_blocks,
        total_damaged_blocks=stats.total_damaged_blocks,
        total_finished=stats.total_finished,
        total_refused=stats.total_refused,
        handover_failures=stats.handover.total_failures,
        handover_stages={
            stage: (spent.count, spent.seconds)
            for stage, spent in stats.handover.total_stages.items()
        },
        handover_overdue=stats.handover.total_overdue,
        num_draining=stats.handover.num_draining,
        num_quarantined_blocks=stats.handover.num_quarantined_blocks,
        oldest_quarantine_s=stats.handover.oldest_quarantine_s,
    )
