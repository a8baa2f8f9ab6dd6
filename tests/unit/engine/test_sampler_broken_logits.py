"""A request whose logits are no numbers ends with an error that says so; the others go on, and no
block stays in use."""

from typing import Any

import numpy as np
import pytest

from baton.core.clock import FakeClock
from baton.core.request import EngineRequest, Finish, FinishReason
from baton.core.sampling import SamplingParams
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore
from baton.engine.runner import ModelRunner
from baton.kernels.interface import ForwardBatch, Logits
from baton.kvcache.block_pool import BlockPool
from baton.kvcache.storage import SharedSegment
from baton.messages.engine import TokenOutput
from baton.testing.handover_world import HandoverWorld
from baton.testing.hash_model import HashModel

POISON = 96
BROKEN, GOOD = [1, 2, 3, 4, 5, POISON], [1, 2, 3, 4, 5, 6]
BLOCK_SIZE = 4


@pytest.fixture(autouse=True)
def _poisoned_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model breaks at each POISON token."""
    forward = HashModel.forward

    def poisoned(model: HashModel, batch: ForwardBatch, kv_pool: Any) -> Logits:
        logits = forward(model, batch, kv_pool).copy()
        logits[batch.token_ids_T[batch.logit_rows] == POISON, 7] = np.nan
        return logits

    monkeypatch.setattr(HashModel, "forward", poisoned)


def finish_of(outputs: list[TokenOutput], name: str) -> Finish:
    finishes = [each.finish for each in outputs if each.request_id == name and each.finish]
    assert len(finishes) == 1
    return finishes[0]


def test_a_broken_request_ends_and_the_others_go_on() -> None:
    model, num_blocks = HashModel(), 16
    layout = model.kv_layout(BLOCK_SIZE)
    segment = SharedSegment(num_blocks * layout.block_bytes)
    core = EngineCore(
        EngineConfig(page_size=BLOCK_SIZE),
        ModelRunner(model, model.kv_view(segment.view(), layout, num_blocks), BLOCK_SIZE),
        BlockPool(num_blocks),
        context_length=100,
        vocab_size=model.vocab_size,
        clock=FakeClock(),
    )
    sampling = SamplingParams(max_new_tokens=4, temperature=0.0, num_top_logprobs=1)
    for name, prompt in (("broken", BROKEN), ("good", GOOD)):
        core.submit(EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling))
    outputs: list[TokenOutput] = []
    for _ in range(20):
        core.step()
        outputs += core.take_outputs()
    broken = finish_of(outputs, "broken")
    assert broken.reason is FinishReason.ERROR
    assert broken.message is not None
    assert "NaN" in broken.message
    assert finish_of(outputs, "good").reason is FinishReason.LENGTH
    assert core.pool.num_in_use == 0
    assert not core.has_work


def test_both_legs_of_a_broken_request_end() -> None:
    world = HandoverWorld(can_fence=True)
    world.submit(BROKEN, 3, prefill=True, decode=True)
    world.submit(GOOD, 3, prefill=True, decode=True)
    world.settle()
    assert finish_of(world.prefill.outputs, "p0").reason is FinishReason.ERROR
    decode = finish_of(world.decode.outputs, "d0")
    assert decode.reason is FinishReason.ERROR
    assert decode.message is not None
    assert "NaN" in decode.message
    assert finish_of(world.decode.outputs, "d1").reason is FinishReason.LENGTH
    for side in (world.prefill, world.decode):
        assert side.core.pool.num_in_use == 0
        assert side.role.num_handovers == 0
    world.close()
