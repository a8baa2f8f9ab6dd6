"""Workers are killed and stopped at random while many clients are served, and none can tell.

Two prefill and two decode workers with the embedded model. One fault at a time, of a role of which
another worker runs: SIGKILL, or SIGSTOP and then SIGCONT or SIGKILL; a killed worker is started
again. Every answer is compared with that of an undisturbed run; at the end nothing is held.
Elsewhere: single faults in the middle of a stream (test_resume.py).
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from baton.testing.processes import EventStream, Server, router, running, wait_until, worker

NUM_CLIENTS = 12
Answer = list[dict[str, Any]]


@dataclass(frozen=True)
class Ask:
    path: str
    body: dict[str, Any]
    streams: bool


@dataclass
class Seen:
    """What one client got, and how long it waited at most for the first and for each next event."""

    ask: Ask
    answer: Answer
    first_s: float = 0.0
    gap_s: float = 0.0


@dataclass
class Report:
    seen: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


Cluster = tuple[Server, list[Server], list[Server]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("kills")
    options = ("--max-total-tokens=8192", "--chunked-prefill-size=64")
    prefills = [worker("prefill", None, folder, *options) for _ in range(2)]
    decodes = [worker("decode", None, folder, *options) for _ in range(2)]
    front = router([*prefills, *decodes], folder)
    with running(*prefills, *decodes, front):
        yield front, prefills, decodes


def draw_asks(rng: random.Random, num: int) -> list[Ask]:
    return [KINDS[number % len(KINDS)](rng, number) for number in range(num)]


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randint(20, 40000) for _ in range(rng.randint(3, 90))]


def _sampling(rng: random.Random, number: int, **more: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": rng.randint(24, 48), "ignore_eos": True, **more}
    if number % 2:
        return {**sampling, "temperature": 0.9, "top_p": 0.95, "seed": number}
    return {**sampling, "temperature": 0}


def _generate(rng: random.Random, number: int, streams: bool = True, **more: Any) -> Ask:
    body = {"input_ids": _prompt(rng), "sampling_params": _sampling(rng, number), **more}
    return Ask("/generate", body, streams)


def _penalized(rng: random.Random, number: int) -> Ask:
    sampling = _sampling(rng, 1, frequency_penalty=0.5, repetition_penalty=1.1)
    return Ask("/generate", {"input_ids": _prompt(rng), "sampling_params": sampling}, True)


def _chat(rng: random.Random, number: int, streams: bool = True, **more: Any) -> Ask:
    subject = rng.choice(["the sea", "a bridge", "bread", "the moon", "iron"])
    body = {
        "messages": [{"role": "user", "content": f"Tell me of {subject}, please ({number})."}],
        "max_tokens": rng.randint(24, 48),
        "temperature": 1.0,
        "seed": number,
        **more,
    }
    return Ask("/v1/chat/completions", body, streams)


def _text(rng: random.Random, number: int, **more: Any) -> Ask:
    body = {
        "prompt": f"Once upon a time, {number} sailors",
        "max_tokens": rng.randint(24, 48),
        "temperature": 0.7 * (number % 2),
        "seed": number,
        **more,
    }
    return Ask("/v1/completions", body, True)


KINDS = (
    _generate,
    lambda rng, number: _chat(rng, number, logprobs=True, top_logprobs=2),
    lambda rng, number: _text(rng, number, stop=[" and", "The "]),
    lambda rng, number: _generate(rng, number, streams=False, return_logprob=True),
    _penalized,
    lambda rng, number: _chat(rng, number, streams=False, n=2),
    lambda rng, number: _text(rng, number, logprobs=1),
    lambda rng, number: _generate(rng, number, streams=False),
    lambda rng, number: _generate(rng, number, return_logprob=True, top_logprobs_num=2),
    lambda rng, number: _chat(rng, number, n=2, stop=["."]),
    lambda rng, number: _text(rng, number, echo=True, logprobs=1),
    lambda rng, number: _chat(rng, number, stream_options={"include_usage": True}),
)


def serve(front: Server, ask: Ask) -> Seen:
    return _streamed(front, ask) if ask.streams else _at_once(front, ask)


def _at_once(front: Server, ask: Ask) -> Seen:
    began_s = time.monotonic()
    status, answer = front.post(ask.path, ask.body)
    assert status == 200, answer
    waited_s = time.monotonic() - began_s
    answers = answer if isinstance(answer, list) else [answer]
    return Seen(ask, [shown(each) for each in answers], first_s=waited_s)


def _streamed(front: Server, ask: Ask) -> Seen:
    seen, last_s = Seen(ask, []), time.monotonic()
    with contextlib.closing(EventStream(front, ask.path, ask.body, 120.0)) as stream:
        assert stream.status == 200, stream.body()
        for event in stream.events():
            now_s = time.monotonic()
            if seen.answer:
                seen.gap_s = max(seen.gap_s, now_s - last_s)
            else:
                seen.first_s = now_s - last_s
            last_s = now_s
            assert "error" not in event, (ask, event)
            seen.answer.append(shown(event))
    return seen


def shown(event: dict[str, Any]) -> dict[str, Any]:
    """An answer or event without what names or times one run."""
    event = {key: value for key, value in event.items() if key not in ("id", "created")}
    if event.get("usage"):
        event["usage"].pop("prompt_tokens_details")
    for name in ("e2e_latency", "cached_tokens", "id"):
        event.get("meta_info", {}).pop(name, None)
    return event


def in_order(answer: Answer) -> Answer:
    """Events of several samples come as they come; those of each sample stay in order."""
    return sorted(answer, key=_index)


def _index(event: dict[str, Any]) -> int:
    choices = event.get("choices")
    if choices is None:
        return int(event.get("index", 0))
    return int(choices[0]["index"]) if choices else 1000


class Chaos:
    """One fault after another, each once all workers are in use again."""

    def __init__(self, cluster: Cluster, rng: random.Random, report: Report):
        self._front, self._prefills, self._decodes = cluster
        self._rng = rng
        self._report = report

    def strike(self) -> None:
        role, name = self._rng.choice(
            [(self._decodes, "decode"), (self._decodes, "decode"), (self._prefills, "prefill")]
        )
        victim = self._rng.choice(role)
        what = self._rng.choice(["kill", "kill engine", "stop", "stop engine", "stop, kill"])
        time.sleep(self._rng.uniform(0.2, 1.0))
        began_s = time.monotonic()
        self._do(victim, what)
        wait_until(lambda: num_healthy(self._front) == 4, f"all are used after {what}", 60.0)
        self._report.faults.append(f"{what} of {name}: {time.monotonic() - began_s:.1f} s")

    def _do(self, victim: Server, what: str) -> None:
        match what:
            case "kill":
                self._restart(victim)
            case "kill engine":
                os.kill(victim.engine_pid(), signal.SIGKILL)
                assert victim.process is not None
                victim.process.wait(20.0)
                self._restart(victim)
            case "stop" | "stop engine":
                family = [victim.engine_pid(), *([victim.pid] if what == "stop" else [])]
                _send(family, signal.SIGSTOP)
                time.sleep(self._rng.uniform(1.0, 5.0))
                _send(family, signal.SIGCONT)
            case "stop, kill":
                _send([victim.engine_pid(), victim.pid], signal.SIGSTOP)
                time.sleep(self._rng.uniform(0.5, 3.0))
                self._restart(victim)

    def _restart(self, victim: Server) -> None:
        victim.kill()
        victim.start()


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        psutil.Process(pid).send_signal(number)


def num_healthy(front: Server) -> int:
    return int(front.get("/readiness")[1]["healthy_workers"])


def storm(cluster: Cluster, seed: int, num_asks: int, num_faults: int) -> None:
    rng = random.Random(seed)
    front, prefills, decodes = cluster
    asks, report = draw_asks(rng, num_asks), Report()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        expected = [in_order(seen.answer) for seen in pool.map(lambda a: serve(front, a), asks)]
        numbers, lock, calm = iter(range(10**9)), threading.Lock(), threading.Event()

        def client() -> None:
            """Goes on until every request was served and no fault is to come."""
            while True:
                with lock:
                    number = next(numbers)
                if number >= num_asks and calm.is_set():
                    return
                seen = serve(front, asks[number % num_asks])
                assert in_order(seen.answer) == expected[number % num_asks], seen.ask
                report.seen.append(seen)

        clients = [pool.submit(client) for _ in range(NUM_CLIENTS)]
        try:
            chaos = Chaos(cluster, rng, report)
            for _ in range(num_faults):
                chaos.strike()
                for done in clients:
                    if done.done():
                        done.result()
        finally:
            calm.set()
        for each in clients:
            each.result()
    tell(report, front, seed)
    for server in (*prefills, *decodes):
        wait_until(server.is_at_rest, f"{server.name} at rest", 30.0)
    wait_until(lambda: front.metric("baton_router_worker_inflight") == 0, "no leg is in flight")


def tell(report: Report, front: Server, seed: int) -> None:
    resumes = [
        line
        for line in str(front.get("/metrics")[1]).splitlines()
        if line.startswith(("baton_router_resumes_total{", "baton_router_leg_failures_total{"))
    ]
    figures = {
        "seed": seed,
        "answers": len(report.seen),
        "streams": sum(seen.ask.streams for seen in report.seen),
        "faults": report.faults,
        "largest gap in a stream, s": round(max(seen.gap_s for seen in report.seen), 2),
        "longest wait for a first event, s": round(max(s.first_s for s in report.seen), 2),
        "router": resumes,
    }
    print(json.dumps(figures, indent=1))


@pytest.mark.parametrize("seed", [1])
def test_a_few_faults(cluster: Cluster, seed: int) -> None:
    storm(cluster, seed, num_asks=40, num_faults=2)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [2, 3])
def test_many_faults(cluster: Cluster, seed: int) -> None:
    storm(cluster, seed, num_asks=200, num_faults=25)
