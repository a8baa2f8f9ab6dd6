"""How long hand-overs take, from a prefill worker's header to what policies know."""

from collections.abc import Callable
from typing import Any

import pytest

from baton.router.policies import PolicyName
from baton.router.transfer_report import Transfer, transfer_in
from baton.testing.fake_worker import Script

from .conftest import ClusterMaker

Run = Callable[[Callable[[], Any]], None]


@pytest.mark.parametrize(
    ("said", "transfer"),
    [
        (b"64 0.5", Transfer(64, 0.5)),
        (b"16 0.000000", Transfer(16, 0.0)),
        (b"", None),
        (b"64", None),
        (b"x 1", None),
        (b"0 1", None),
        (b"-5 1", None),
        (b"5 -1", None),
        (b"5 nan", None),
        (b"5 inf", None),
        (b"1" * 40 + b" 1", None),
        (b"9" * 6000 + b" 1", None),
    ],
)
def test_reports_are_read_or_left_out(said: bytes, transfer: Transfer | None) -> None:
    assert transfer_in([(b"date", b"x"), (b"x-baton-transfer", said)]) == transfer
    assert transfer_in([]) is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_pair_is_measured_by_what_its_prefill_worker_says(
    run: Run, cluster: ClusterMaker, stream: bool
) -> None:
    async def scenario() -> None:
        async with cluster(1, 2, policy=PolicyName.SLO_AWARE) as c:
            c.prefills[0].script = Script(headers={"X-Baton-Transfer": "100 0.5"})
            status, headers, _ = await c.post("/generate", {"text": "a", "stream": stream})
            assert status == 200
            assert "X-Baton-Transfer" not in headers
            await c.until_quiet()
            (used,) = [worker for worker in c.decodes if worker.requests]
            ids = {worker.url: worker.id for worker in c.fleet.pool}
            speeds = c.fleet.placement.speeds
            prefill_id = ids[c.prefills[0].url]
            assert speeds.transfer_s(prefill_id, ids[used.url], 100) == pytest.approx(0.5)
            assert speeds.has_links

    run(scenario)


def test_nobody_reads_reports_that_no_policy_asks_for(run: Run, cluster: ClusterMaker) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefills[0].script = Script(headers={"X-Baton-Transfer": "100 0.5"})
            await c.post("/generate", {"text": "a"})
            await c.until_quiet()
            assert not c.fleet.placement.speeds.has_links

    run(scenario)
