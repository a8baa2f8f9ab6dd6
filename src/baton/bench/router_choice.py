"""What one choice of the router costs, policy by policy, as the number of workers grows.

Choosing and counting (a request begins at the chosen worker and another one ends) are timed apart.
So is reading a request's body, which does not depend on the workers.
Elsewhere: the policies (router/policies), the whole router under load (over HTTP).
"""

import json
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from baton.router.policies import CacheRules, PolicyName, RoleState, RoutedRequest, make_policy
from baton.router.policies.prefix_index import PrefixIndex
from baton.router.policies.roster import Roster
from baton.router.policies.slo_aware import choose_pair
from baton.router.policies.speeds import Speeds
from baton.router.prompt_shape import shape_of
from baton.router.requests import CHAT, GENERATE, parse_generation

NUM_CHOICES = 20_000
NUM_RUNNING_PER_WORKER = 8
NUM_PROMPTS = 2_000


@dataclass(frozen=True)
class ChoiceCost:
    """Microseconds of processor time (nothing here waits, and a busy machine does not count) for
    one choice, and for counting it; of a body, for reading it."""

    what: str
    num_workers: int
    p50_us: float
    p99_us: float
    counting_p50_us: float = 0.0


def choice_cost(num_workers: int = 1000, num_choices: int = NUM_CHOICES) -> list[ChoiceCost]:
    """Every policy on a fleet that is busy: with each choice one request begins and one ends."""
    costs = [_cost_of(name, num_workers, num_choices) for name in PolicyName]
    return [*costs, _cost_of_pairs(num_workers, num_choices)]


def shape_cost(num_choices: int = 2000) -> list[ChoiceCost]:
    """Reading what routing wants to know out of bodies."""
    messages = [{"role": "user", "content": "word " * 200}] * 8
    bodies = {
        "chat of 8 KB": (CHAT, {"messages": messages}),
        "2,048 token ids": (GENERATE, {"input_ids": list(range(2048))}),
    }
    costs = []
    for what, (route, body) in bodies.items():
        generation = parse_generation(route, json.dumps(body).encode())
        timed = [_timed_us(lambda g=generation: shape_of(g, {})) for _ in range(num_choices)]  # type: ignore[misc]
        costs.append(_summary(what, 0, timed))
    return costs


class _Fleet:
    """One role's workers, with requests that come and go in order."""

    def __init__(
        self, num_workers: int, speeds: Speeds, seed: int, with_prefix: bool = True
    ) -> None:
        self._with_prefix = with_prefix
        self.draw = random.Random(seed)
        self.state = RoleState(Roster(), PrefixIndex(CacheRules().max_hashes), speeds)
        self.running: deque[tuple[str, RoutedRequest]] = deque()
        for index in range(num_workers):
            self.state.roster.add(str(index), f"http://10.{index // 256}.{index % 256}.1:30000")
            self.state.roster.set_usable(str(index), True)
            speeds.note_prefill(str(index), 1000 + self.draw.randrange(3000), 1.0)
        self.prompts = [self._prompt() for _ in range(NUM_PROMPTS)]
        for _ in range(NUM_RUNNING_PER_WORKER * num_workers):
            drawn = self.state.roster.sample(self.draw)
            assert drawn is not None
            self.begin(drawn.worker_id, self.draw.choice(self.prompts))

    def begin(self, worker_id: str, request: RoutedRequest) -> None:
        self.state.roster.begin(worker_id, request.num_tokens)
        self.state.prefixes.note(request.prefix_hashes, worker_id)
        self.running.append((worker_id, request))

    def end_oldest(self) -> None:
        worker_id, request = self.running.popleft()
        self.state.roster.end(worker_id, request.num_tokens)

    def _prompt(self) -> RoutedRequest:
        """Half of the prompts begin alike, as with a common system prompt."""
        length, own = self.draw.randrange(4, 40), self.draw.getrandbits(60)
        is_common = self.draw.random() < 0.5
        shared = 4 if is_common else 0
        hashes = (*range(shared), *range(own + shared, own + length))
        return RoutedRequest(
            num_prompt_tokens=32 * length,
            num_new_tokens=self.draw.randrange(16, 512),
            prefix_hashes=hashes if self._with_prefix else (),
            tokens_per_hash=32,
            session_key=str(own),
        )


def _cost_of(name: PolicyName, num_workers: int, num_choices: int) -> ChoiceCost:
    with_prefix = name in (PolicyName.CACHE_AWARE, PolicyName.SLO_AWARE)
    fleet = _Fleet(num_workers, Speeds(), seed=1, with_prefix=with_prefix)
    policy = make_policy(name, computes=True, cache=CacheRules())
    choosing, counting = [], []
    for _ in range(num_choices):
        request = fleet.draw.choice(fleet.prompts)
        began_ns = time.thread_time_ns()
        choice = policy.choose(request, fleet.state, fleet.draw)
        chosen_ns = time.thread_time_ns()
        assert choice is not None
        fleet.begin(choice.worker_id, request)
        fleet.end_oldest()
        counting.append((time.thread_time_ns() - chosen_ns) / 1000)
        choosing.append((chosen_ns - began_ns) / 1000)
    return _summary(name.value, num_workers, choosing, counting)


def _cost_of_pairs(num_workers: int, num_choices: int) -> ChoiceCost:
    """Half of the workers are prefill's, half decode's; some links were measured."""
    speeds, half = Speeds(), max(1, num_workers // 2)
    prefills, decodes = (_Fleet(half, speeds, seed) for seed in (1, 2))
    choosing, counting = [], []
    for _ in range(num_choices):
        request = prefills.draw.choice(prefills.prompts)
        began_ns = time.thread_time_ns()
        pair = choose_pair(request, prefills.state, decodes.state, prefills.draw)
        chosen_ns = time.thread_time_ns()
        assert pair is not None
        prefills.begin(pair.prefill_id, request)
        decodes.begin(pair.decode_id, request)
        prefills.end_oldest()
        decodes.end_oldest()
        counting.append((time.thread_time_ns() - chosen_ns) / 1000)
        choosing.append((chosen_ns - began_ns) / 1000)
        speeds.note_transfer(pair.prefill_id, pair.decode_id, 1000, 0.01)
    return _summary("slo_aware, pairs", num_workers, choosing, counting)


def _timed_us(call: Callable[[], object]) -> float:
    began_ns = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - began_ns) / 1000


def _summary(
    what: str, num_workers: int, timed_us: list[float], counting_us: list[float] | None = None
) -> ChoiceCost:
    cuts = statistics.quantiles(timed_us, n=100)
    return ChoiceCost(
        what,
        num_workers,
        p50_us=cuts[49],
        p99_us=cuts[98],
        counting_p50_us=statistics.median(counting_us) if counting_us else 0.0,
    )
