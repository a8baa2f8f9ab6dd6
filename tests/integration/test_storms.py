"""Storms on real processes: many clients of which some leave, engines that are stopped in the
middle of transfers and go on, and engines that are killed and started again.

After each: every request has ended once, what was answered is what an undisturbed worker that does
both says, no block is held, reserved or in quarantine, and no process or descriptor is left.
Elsewhere: single faults (test_faults.py), faults between transports (tests/conformance).
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from baton.testing.footprint import footprint
from baton.testing.processes import Server, router, running, wait_until, worker
from baton.testing.visits import Outcome, Visit, draw_visits, prompt_of, visit_all
from baton.transfer.registry import why_missing

NOTICED_S = 8.0
"""Three heartbeats of 1 s; the rest is for a loaded machine."""

AT_REST_S = 20.0
"""A transfer library counts a dead writer as alive for 5 s; the rest is for a loaded machine."""

KEPT_FOR_THE_DEAD = {"mooncake": 8}
"""Connections that the library keeps to an engine that is gone, and has no call to close."""

SLOW = ("--max-total-tokens=4096", "--chunked-prefill-size=8", "--kernel-backend=torch")
"""Small chunks through the slow reference ops: a long prompt is under way for seconds."""

LONG = [Visit(prompt_of(600, start=start), 4) for start in range(4)]
SHORT = [Visit(prompt_of(70 + 8 * start, start=50 + start), 6) for start in range(8)]


@dataclass
class Deployment:
    """One prefill and one decode worker of one backend; `spare` is another prefill worker of the
    same decode worker, behind a router of its own."""

    prefill: Server
    decode: Server
    front: Server
    spare: Server | None = None
    spare_front: Server | None = None

    @property
    def workers(self) -> list[Server]:
        return [self.prefill, self.decode, *([self.spare] if self.spare else [])]

    @property
    def servers(self) -> list[Server]:
        return [*self.workers, self.front, *([self.spare_front] if self.spare_front else [])]

    @property
    def fronts(self) -> list[Server]:
        return [self.front, *([self.spare_front] if self.spare_front else [])]


@pytest.fixture(scope="module")
def unified(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("undisturbed")
    server = worker("null", tiny_model, folder, "--kernel-backend=torch")
    with running(server):
        yield server


_known: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}


def undisturbed(unified: Server, visits: Sequence[Visit]) -> list[tuple[int, ...]]:
    keys = [(visit.prompt, visit.num_new) for visit in visits]
    missing = [key for key in dict.fromkeys(keys) if key not in _known]
    if missing:
        outcomes = visit_all(unified, [Visit(*key) for key in missing])
        for key, outcome in zip(missing, outcomes, strict=True):
            assert outcome.token_ids is not None, outcome
            _known[key] = outcome.token_ids
    return [_known[key] for key in keys]


@contextlib.contextmanager
def deployed(
    backend: str, model: Path, folder: Path, *options: str, with_spare: bool = False
) -> Iterator[Deployment]:
    options = (*options, f"--disaggregation-transfer-backend={backend}")
    roles = ["prefill", "decode", *(["prefill"] if with_spare else [])]
    prefill, decode, *spares = [worker(role, model, folder, *options) for role in roles]
    fronts = [router([each, decode], folder, "--worker-wait-secs=0") for each in (prefill, *spares)]
    made = Deployment(prefill, decode, fronts[0], *spares, *fronts[1:])
    with running(*made.servers):
        yield made


@pytest.fixture(scope="module", params=["shm", "tcp"])
def deployment(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp(f"storms-{request.param}")
    with deployed(request.param, tiny_model, folder, *SLOW, with_spare=True) as made:
        yield made


def expect_calm(deployment: Deployment, unified: Server) -> None:
    """Nothing is left of what happened, and the next requests are answered as ever."""
    for server in deployment.workers:
        wait_until(server.is_at_rest, f"{server.name} at rest", AT_REST_S)
    for front in deployment.fronts:
        wait_until(lambda f=front: f.get("/readiness")[0] == 200, "the router is ready again")
        expect_all_right(visit_all(front, SHORT), SHORT, unified)
    assert deployment.decode.metric("baton:kv_blocks_damaged_total") == 0
    assert deployment.decode.metric("baton:kv_blocks_verified_total") > 0
    for server in deployment.workers:
        wait_until(server.is_at_rest, f"{server.name} at rest", AT_REST_S)


@contextlib.contextmanager
def nothing_left(deployment: Deployment, num_kept: int = 0) -> Iterator[None]:
    """As many processes as before, and no more descriptors but `num_kept`. Each router is used
    before, so that every connection that stays is there."""
    for front in deployment.fronts:
        visit_all(front, SHORT)
    for server in deployment.workers:
        wait_until(server.is_at_rest, f"{server.name} at rest", AT_REST_S)
    before = footprint(deployment.servers)
    before = replace(before, num_descriptors=before.num_descriptors + num_kept)
    yield
    wait_until(
        lambda: footprint(deployment.servers).is_within(before),
        f"processes and descriptors as before ({before})",
        AT_REST_S,
    )


def expect_all_right(outcomes: Sequence[Outcome], visits: Sequence[Visit], unified: Server) -> None:
    got = [outcome.token_ids for outcome in outcomes]
    assert got == undisturbed(unified, visits), [each for each in outcomes if each.error]


def expect_right_or_failed(
    outcomes: Sequence[Outcome], visits: Sequence[Visit], unified: Server
) -> None:
    for outcome, wanted in zip(outcomes, undisturbed(unified, visits), strict=True):
        assert outcome.token_ids == wanted or outcome.error, outcome
        assert outcome.status in (200, 502, 503, 504), outcome


def num_written(server: Server) -> float:
    return server.metric("baton:transfer_bytes_total")


@contextlib.contextmanager
def under_way(deployment: Deployment, visits: Sequence[Visit]) -> Iterator[Future[list[Outcome]]]:
    """Entered once their KV is being written, none of which any worker had before."""
    for server in deployment.workers:
        server.post("/flush_cache", {})
    before = num_written(deployment.prefill)
    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(visit_all, deployment.front, visits)
        wait_until(
            lambda: num_written(deployment.prefill) > before or outcomes.done(),
            "blocks are being written",
        )
        assert not outcomes.done(), outcomes.result()
        yield outcomes


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine, signal.SIGCONT)


def test_a_prefill_engine_that_is_stopped_and_goes_on(
    deployment: Deployment, unified: Server
) -> None:
    """What another prefill worker writes meanwhile to blocks that were given up stays as it is."""
    spare, spare_front = deployment.spare, deployment.spare_front
    assert spare is not None
    assert spare_front is not None
    others = [Visit(prompt_of(300, start=100 + start), 4) for start in range(3)]
    undisturbed(unified, others)
    with nothing_left(deployment):
        with under_way(deployment, LONG) as outcomes:
            with stopped(deployment.prefill):
                expect_right_or_failed(outcomes.result(3 * NOTICED_S), LONG, unified)
                assert any(outcome.error for outcome in outcomes.result())
                before = num_written(spare)
                with ThreadPoolExecutor(1) as pool:
                    got = pool.submit(visit_all, spare_front, others)
                    wait_until(lambda: num_written(spare) > before, "the other one writes")
                    os.kill(deployment.prefill.engine_pid(), signal.SIGCONT)
                    expect_all_right(got.result(), others, unified)
        expect_calm(deployment, unified)


def test_a_decode_engine_that_is_stopped_and_goes_on(
    deployment: Deployment, unified: Server
) -> None:
    with nothing_left(deployment):
        with under_way(deployment, LONG) as outcomes:
            with stopped(deployment.decode):
                time.sleep(NOTICED_S / 2)  # long enough that its peers give it up
            expect_right_or_failed(outcomes.result(), LONG, unified)
        expect_calm(deployment, unified)


@pytest.mark.parametrize("seed", [1])
def test_a_hundred_clients_of_which_some_leave(
    deployment: Deployment, unified: Server, seed: int
) -> None:
    storm_of_visits(deployment, unified, seed, num_visits=100)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_clients_of_which_some_leave(
    deployment: Deployment, unified: Server, seed: int
) -> None:
    storm_of_visits(deployment, unified, seed, num_visits=400)


def storm_of_visits(deployment: Deployment, unified: Server, seed: int, num_visits: int) -> None:
    visits = draw_visits(seed, num_visits, max_prompt=120, max_new=8, share_leaving=0.4)
    undisturbed(unified, visits)
    with nothing_left(deployment):
        outcomes = visit_all(deployment.front, visits)
        stayed = [
            (outcome, visit)
            for outcome, visit in zip(outcomes, visits, strict=True)
            if not outcome.has_left
        ]
        assert num_visits // 2 < len(stayed) < num_visits
        expect_all_right([o for o, _ in stayed], [v for _, v in stayed], unified)
        expect_calm(deployment, unified)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("shm", marks=pytest.mark.nightly),  # so done in test_faults.py every time
        "tcp",
        "mooncake",
        pytest.param("nixl", marks=pytest.mark.nightly),  # 20 s
    ],
)
def test_an_engine_that_is_killed_and_started_again(
    backend: str, unified: Server, tiny_model: Path, tmp_path: Path
) -> None:
    """First the prefill engine, then the decode engine, each in the middle of transfers; the worker
    comes back under its address."""
    if reason := why_missing(backend):
        pytest.skip(reason)
    with deployed(backend, tiny_model, tmp_path, *SLOW) as deployment:
        for victim in (deployment.prefill, deployment.decode):
            num_kept = KEPT_FOR_THE_DEAD.get(backend, 0)
            with nothing_left(deployment, num_kept):
                with under_way(deployment, LONG) as outcomes:
                    os.kill(victim.engine_pid(), signal.SIGKILL)
                    assert victim.process is not None
                    assert victim.process.wait(NOTICED_S) == 1
                    expect_right_or_failed(outcomes.result(3 * NOTICED_S), LONG, unified)
                assert any(outcome.error for outcome in outcomes.result())
                survivor = deployment.workers[victim is deployment.prefill]
                wait_until(survivor.is_at_rest, "the other one gives up", AT_REST_S)
                victim.start()
                expect_calm(deployment, unified)
