"""The exactness contract from end to end: whatever serves a request, its answer has the same bits.

Random requests to the embedded model, greedy and sampled, are first answered by one worker one at a
time and without a prefix cache. Then workers of every other kind answer all of them in another
order, many at once: token ids, text, and all logprobs must be equal, as the floats that they are.
The seed is printed; BATON_EXACTNESS_SEED repeats a run.

Elsewhere: the whole surface of the API on a few prompts (test_same_answer.py), the kernels
(tests/kernels), the model (tests/unit/models).
"""

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from baton.checkpoint import default_cache_dir, resolve_model
from baton.kernels import _native
from baton.kernels.native import ISA_VARIABLE
from baton.testing.processes import Server, router, running, wait_until, worker
from baton.tokenizer import load_tokenizer

SEED = int(os.environ.get("BATON_EXACTNESS_SEED") or time.time_ns() % 2**32)

KINDS = {
    "long answer": 24,
    "tiny": 20,
    "fresh": 172,
    "shared prefix": 50,
    "long": 3,
    "longest": 1,
    "repeated": 30,
}
"""How many requests of which kind. Long answers are asked for first: they outgrow a small pool. The
tiny ones also run on slow instruction sets."""

NO_CACHE = "--disable-radix-cache"

Body = dict[str, Any]


@dataclass(frozen=True)
class Request:
    kind: str
    body: Body


@dataclass(frozen=True)
class Configuration:
    """Workers, and how many clients ask them at once. `pool_tokens` of the worker that decodes:
    too few for all clients, so that sequences give way to each other and are computed again;
    requests that are longer are left out. `max_whole_tokens`: decode has prompts whole that are no
    longer, while streams run."""

    num_clients: int
    unified: tuple[str, ...] | None = None
    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()
    max_whole_tokens: int | None = None
    has_cache: bool = True
    pool_tokens: int | None = None
    environ: dict[str, str] = field(default_factory=dict)


CONFIGURATIONS = {
    "unified, chunks of 32, 32 clients": Configuration(
        32, unified=("--chunked-prefill-size=32", "--num-threads=2")
    ),
    "unified, chunks of 2048, no cache, small pool, 24 clients": Configuration(
        24,
        unified=("--chunked-prefill-size=2048", NO_CACHE, "--num-threads=1"),
        has_cache=False,
        pool_tokens=1280,
    ),
    "unified, chunks of 200, cache in a small pool, 12 clients": Configuration(
        12,
        unified=("--chunked-prefill-size=200", "--num-threads=2"),
        pool_tokens=768,
    ),
    "PD over shm, 16 clients": Configuration(
        16,
        prefill=("--disaggregation-transfer-backend=shm", "--chunked-prefill-size=64"),
        decode=("--disaggregation-transfer-backend=shm", "--num-threads=1"),
    ),
    "decode with whole requests beside handed-over ones, small steps, 6 clients": Configuration(
        6,
        decode=("--takes-whole-requests", "--step-target-ms=5", "--num-threads=2"),
        max_whole_tokens=60,
    ),
    "PD over tcp, no cache, decode with a small pool, 24 clients": Configuration(
        24,
        prefill=("--disaggregation-transfer-backend=tcp", NO_CACHE, "--num-threads=1"),
        decode=("--disaggregation-transfer-backend=tcp", NO_CACHE),
        has_cache=False,
        pool_tokens=1280,
    ),
}


class Maker:
    """Makes random requests of real prose (the topics of Python's own manual)."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        tokenizer = load_tokenizer(resolve_model(None, cache_dir=default_cache_dir(os.environ)))
        self._prose = tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)))
        self._prefixes = [self._text(40, 160) for _ in range(5)]

    def all(self) -> list[Request]:
        requests = []
        for kind, count in KINDS.items():
            for _ in range(count):
                requests.append(Request(kind, self._body(kind, requests)))
        return requests

    def _body(self, kind: str, before: list[Request]) -> Body:
        match kind:
            case "long answer":
                body = self._around(self._text(3, 16), 1)
                body["sampling_params"] |= {"max_new_tokens": 64, "ignore_eos": True}
                return body
            case "tiny":
                return self._around(self._text(1, 6), 3)
            case "fresh":
                return self._around(self._text(3, 90), 10)
            case "shared prefix":
                prefix = self._prefixes[self._random.integers(len(self._prefixes))]
                return self._around([*prefix, *self._text(1, 30)], 20)
            case "long":
                return self._around(self._text(400, 1200), 40)
            case "longest":
                return self._around(self._text(2900, 3000), 40)
            case _:
                twin = before[self._random.integers(len(before))].body
                return self._around(twin["input_ids"], 10)

    def _text(self, low: int, high: int) -> list[int]:
        """Token counts are spread evenly on a log scale."""
        length = int(np.exp(self._random.uniform(np.log(low), np.log(high + 1))))
        start = int(self._random.integers(len(self._prose) - length))
        return list(self._prose[start : start + length])

    def _around(self, input_ids: list[int], most_new: int) -> Body:
        random = self._random
        sampling: Body = {
            "max_new_tokens": int(random.integers(1, most_new + 1)),
            "ignore_eos": bool(random.random() < 0.8),
            "temperature": 0.0,
        }
        if random.random() < 0.5:
            sampling["temperature"] = float(random.uniform(0.3, 1.5))
            sampling["seed"] = int(random.integers(2**31))
            filters = {"top_p": 0.9, "top_k": 40, "min_p": 0.05}
            sampling |= {key: value for key, value in filters.items() if random.random() < 0.3}
        if random.random() < 0.2:
            sampling |= {"frequency_penalty": 0.7, "repetition_penalty": 1.2}
        body: Body = {"input_ids": input_ids, "sampling_params": sampling}
        body |= {"return_logprob": True, "top_logprobs_num": int(random.integers(4))}
        if random.random() < 0.15:
            body["logprob_start_len"] = int(random.integers(len(input_ids)))
        return body


def ask(server: Server, request: Request) -> Body:
    status, answer = server.post("/generate", request.body)
    assert status == 200, (status, answer, request)
    return answer  # type: ignore[no-any-return]


def what_must_be_equal(answer: Body) -> dict[str, list[Any]]:
    """Lists of one entry per position."""
    meta = answer["meta_info"]
    logprobs = {key: meta[key] for key in sorted(meta) if key.endswith("_logprobs")}
    whole = [answer["text"], meta["finish_reason"], meta["prompt_tokens"]]
    return {"output_ids": answer["output_ids"], **logprobs, "text, finish, tokens": whole}


def differences(answer: Body, expected: Body) -> list[str]:
    """In each field, the first position that differs; nothing when all bits are equal."""
    found = []
    ours, theirs = what_must_be_equal(answer), what_must_be_equal(expected)
    if ours.keys() != theirs.keys():
        found.append(f"fields {sorted(ours)}, not {sorted(theirs)}")
    for key in [key for key in ours if key in theirs]:
        # As text, which tells apart all floats, also zeros of both signs.
        mine, other = ([json.dumps(item) for item in each[key]] for each in (ours, theirs))
        if mine != other:
            pairs = zip_longest(mine, other, fillvalue="nothing")
            at, (one, two) = next(
                (index, pair) for index, pair in enumerate(pairs) if pair[0] != pair[1]
            )
            found.append(f"{key} at position {at} of {len(other)}: {one}, not {two}")
    return found


def counter(server: Server, name: str) -> float:
    """Value of a counter in /metrics."""
    status, text = server.get("/metrics")
    assert status == 200
    found = re.search(rf"^{re.escape(name)}_total(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no {name} in\n{text}"
    return float(found[1])


@dataclass
class Fleet:
    front: Server
    workers: list[Server]


@contextmanager
def started(configuration: Configuration, folder: Path) -> Iterator[Fleet]:
    pool = configuration.pool_tokens
    small = () if pool is None else (f"--max-total-tokens={pool}",)
    if configuration.unified is not None:
        workers = [worker("null", None, folder, *configuration.unified, *small)]
        servers = workers
    else:
        workers = [
            worker("prefill", None, folder, *configuration.prefill),
            worker("decode", None, folder, *configuration.decode, *small),
        ]
        limit = configuration.max_whole_tokens
        more = () if limit is None else (f"--max-whole-tokens={limit}",)
        servers = [*workers, router(workers, folder, *more)]
    for each in workers:
        each.environ.update(configuration.environ)
    with running(*servers):
        yield Fleet(servers[-1], workers)


def answer_all(
    fleet: Fleet, requests: dict[int, Request], num_clients: int, seed: int
) -> dict[int, Body]:
    """Asked in a random order, but long answers first."""
    numbers = np.random.default_rng(seed).permutation(list(requests)).tolist()
    numbers.sort(key=lambda number: requests[number].kind != "long answer")
    with ThreadPoolExecutor(num_clients) as pool:
        answers = pool.map(lambda number: ask(fleet.front, requests[number]), numbers)
        return dict(zip(numbers, answers, strict=True))


@dataclass(frozen=True)
class Reference:
    """Requests by their number, and the right answers."""

    requests: dict[int, Request]
    answers: dict[int, Body]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    requests = dict(enumerate(Maker(SEED).all()))
    alone = Configuration(1, unified=(NO_CACHE, "--num-threads=2"), has_cache=False)
    with started(alone, tmp_path_factory.mktemp("reference")) as fleet:
        begun = time.monotonic()
        answers = answer_all(fleet, requests, 1, SEED)
    num_prompt = sum(len(request.body["input_ids"]) for request in requests.values())
    num_new = sum(len(answer["output_ids"]) for answer in answers.values())
    print(
        f"BATON_EXACTNESS_SEED={SEED}: {len(requests)} requests, {num_prompt} prompt and {num_new} "
        f"new tokens, {time.monotonic() - begun:.1f} s one by one"
    )
    return Reference(requests, answers)


def test_the_requests_are_worth_asking(reference: Reference) -> None:
    assert len(reference.requests) >= 300
    outputs = [tuple(answer["output_ids"]) for answer in reference.answers.values()]
    assert len(set(outputs)) > len(outputs) / 2


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_bits(reference: Reference, tmp_path: Path, name: str) -> None:
    configuration = CONFIGURATIONS[name]
    with started(configuration, tmp_path) as fleet:
        requests = {
            number: request
            for number, request in reference.requests.items()
            if num_tokens(request) <= (configuration.pool_tokens or 2**31)
        }
        begun = time.monotonic()
        answers = answer_all(fleet, requests, configuration.num_clients, SEED + 1)
        print(f"{len(requests)} requests in {time.monotonic() - begun:.1f} s")
        assert_same(name, reference, answers)
        assert_it_was_that_configuration(configuration, fleet, answers)


def num_tokens(request: Request) -> int:
    most_new: int = request.body["sampling_params"]["max_new_tokens"]
    return len(request.body["input_ids"]) + most_new


def assert_same(name: str, reference: Reference, answers: dict[int, Body]) -> None:
    found = []
    for number, answer in answers.items():
        if different := differences(answer, reference.answers[number]):
            request = reference.requests[number]
            num_prompt = len(request.body["input_ids"])
            found.append(
                f"request {number} ({request.kind}, {num_prompt} prompt tokens, "
                f"{request.body['sampling_params']}): " + "; ".join(different)
            )
    shown = "\n".join(found[:10])
    assert not found, f"{name}, BATON_EXACTNESS_SEED={SEED}: {len(found)} answers differ\n{shown}"


def assert_it_was_that_configuration(
    configuration: Configuration, fleet: Fleet, answers: dict[int, Body]
) -> None:
    """Each thing that the run is there for has happened."""
    num_cached = sum(answer["meta_info"]["cached_tokens"] for answer in answers.values())
    assert (num_cached > 0) == configuration.has_cache
    prefill, decode = fleet.workers[0], fleet.workers[-1]
    num_transfers = counter(prefill, "baton:transfers")
    num_preemptions = counter(decode, "baton:preemptions")
    print(
        f"{num_cached} cached tokens, {num_transfers:g} transfers, {num_preemptions:g} preemptions"
    )
    assert num_preemptions > 0 or configuration.pool_tokens is None
    # A write for each part of a prompt that one step has computed.
    if configuration.max_whole_tokens is not None:
        num_read = counter(decode, "sglang:prompt_tokens")
        print(f"{num_read:g} prompt tokens read by decode")
        assert num_read > 0
    elif configuration.unified is None:
        assert num_transfers >= len(answers)
    for each in fleet.workers:
        wait_until(lambda each=each: each.num_blocks_in_use() == 0, f"{each.name} at rest")


@pytest.mark.parametrize("isa", _native.available_isas()[1:])
def test_same_bits_on_another_instruction_set(
    reference: Reference, tmp_path: Path, isa: str
) -> None:
    """The reference ran on the best that the CPU has."""
    configuration = Configuration(8, unified=("--num-threads=2",), environ={ISA_VARIABLE: isa})
    tiny = {
        number: request for number, request in reference.requests.items() if request.kind == "tiny"
    }
    with started(configuration, tmp_path) as fleet:
        answers = answer_all(fleet, tiny, configuration.num_clients, SEED + 1)
        assert_same(isa, reference, answers)
        assert f"isa={isa}" in fleet.front.log()
