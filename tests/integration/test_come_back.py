"""A router dies in the middle of a stream, and its client goes on at another one.

The client is the one that docs/router.md shows. What it gets in all is compared, event by event,
with an undisturbed run.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from baton.testing.processes import Server, router, running, wait_until, worker

DOCS = Path(__file__).parents[2] / "docs" / "router.md"
NUM_SEEN = 15
"""Events that the client has when its router is killed; many are still to come."""

Cluster = tuple[list[Server], list[Server]]
Event = dict[str, Any]
Events = Iterator[tuple[str, Event]]


def documented_client() -> Callable[..., Events]:
    (code,) = re.findall(r"```python\n(.*?def events.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    return names["events"]  # type: ignore[no-any-return]


events = documented_client()


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """1p1d behind two routers, on the slow reference ops, so that there is time to break one."""
    folder = tmp_path_factory.mktemp("come_back")
    options = ["--max-total-tokens=4096", "--kernel-backend=torch"]
    workers = [worker(role, tiny_model, folder, *options) for role in ("prefill", "decode")]
    routers = [router(workers, folder, "--event-ids") for _ in range(2)]
    for server in routers:
        server.environ["BATON_CLUSTER_SECRET"] = "the secret of this cluster"
    with running(*workers, *routers):
        yield routers, workers


@pytest.fixture(autouse=True)
def leaves_nothing_behind(cluster: Cluster) -> Iterator[None]:
    yield
    _, workers = cluster
    for server in workers:
        wait_until(lambda server=server: server.num_blocks_in_use() == 0, f"{server.name} at rest")


def hosts_of(routers: list[Server]) -> list[str]:
    return [f"{server.host}:{server.port}" for server in routers]


PROMPT = [5 + i % 200 for i in range(40)]
LENGTH = {"max_new_tokens": 200, "ignore_eos": True}
CHAT = {
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "max_tokens": 200,
    "ignore_eos": True,
    "temperature": 0,
    "logprobs": True,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
}
REQUESTS = {
    "greedy": ("/v1/chat/completions", CHAT),
    "seeded": (
        "/generate",
        {
            "input_ids": PROMPT,
            "rid": "r",
            "sampling_params": {**LENGTH, "seed": 7, "top_p": 0.95, "frequency_penalty": 0.5},
        },
    ),
}


def timeless(event: Event) -> Event:
    """An event without what differs between workers that have more or less in their caches."""
    event = json.loads(json.dumps(event))
    if event.get("usage"):
        del event["usage"]["prompt_tokens_details"]
    for name in ("e2e_latency", "cached_tokens"):
        event.get("meta_info", {}).pop(name, None)
    return event


def shown(event: Event) -> Event:
    """What two requests have in common if they ask for the same."""
    return {name: value for name, value in timeless(event).items() if name not in ("id", "created")}


def split(stream: Events) -> tuple[list[str], list[Event]]:
    """Ids, and events."""
    both = list(stream)
    return [id_ for id_, _ in both], [event for _, event in both]


def undisturbed(server: Server, path: str, body: Event) -> tuple[list[str], list[Event]]:
    return split(events(hosts_of([server]), path, body))


def disturbed(routers: list[Server], path: str, body: Event) -> tuple[list[str], list[Event]]:
    """All events of a client whose router is killed; it is there again afterwards."""
    before = num_came_back(routers[1])
    stream = events(hosts_of(routers), path, body)
    seen = list(islice(stream, NUM_SEEN))
    routers[0].kill()
    try:
        seen += stream
    finally:
        routers[0].start()
    assert num_came_back(routers[1]) == before + 1
    return split(iter(seen))


def num_came_back(server: Server) -> float:
    line = 'baton_router_resumes_total{outcome="came_back"} '
    lines = str(server.get("/metrics")[1]).splitlines()
    return sum(float(each.split()[-1]) for each in lines if each.startswith(line))


@pytest.mark.parametrize("name", REQUESTS)
def test_the_client_has_every_event_once(cluster: Cluster, name: str) -> None:
    routers, _ = cluster
    path, body = REQUESTS[name]
    _, expected = undisturbed(routers[1], path, body)
    ids, got = disturbed(routers, path, body)
    assert [shown(event) for event in got] == [shown(event) for event in expected]
    assert len(set(ids)) == len(ids)
    assert len({(event.get("id"), event.get("created")) for event in got}) == 1
    assert len({event.get("meta_info", {}).get("id") for event in got}) == 1


def test_a_stop_string_is_found_across_the_cut(cluster: Cluster) -> None:
    """It ends the stream soon behind the cut, and half of it comes before."""
    routers, _ = cluster
    path, body = REQUESTS["greedy"]
    _, whole = undisturbed(routers[1], path, body)
    texts = [event["choices"][0]["delta"].get("content", "") for event in whole if event["choices"]]
    before, behind = "".join(texts[:NUM_SEEN]), "".join(texts[NUM_SEEN:])
    body = {**body, "stop": [before[-3:] + behind[:3]]}
    _, expected = undisturbed(routers[1], path, body)
    assert len(expected) < len(whole)
    assert expected[-2]["choices"][0]["matched_stop"] == body["stop"][0]
    _, got = disturbed(routers, path, body)
    assert [shown(event) for event in got] == [shown(event) for event in expected]


def test_unseeded_sampling_goes_on_with_its_seed(cluster: Cluster) -> None:
    """Nobody could run it again but for the id: with that of its first event, it is."""
    routers, _ = cluster
    body = {"input_ids": PROMPT, "sampling_params": {**LENGTH, "temperature": 1.0}}
    (first_id, *_), got = disturbed(routers, "/generate", body)
    assert [len(event["output_ids"]) for event in got] == list(range(1, 201))
    _, other = undisturbed(routers[1], "/generate", body)
    assert other[-1]["output_ids"] != got[-1]["output_ids"]
    again = events(hosts_of(routers), "/generate", body, first_id)
    assert [timeless(event) for _, event in again] == [timeless(event) for event in got[1:]]
