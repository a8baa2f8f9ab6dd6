"""What does a profile cost the engine? Steps of one engine with a profile and without, in turn.

    python benchmarks/profile_cost.py            both, interleaved; medians and their ratio
    python benchmarks/profile_cost.py --plain    without only, to hold against another version's

Decode: eight streams, blocks of twenty steps. Prefill: prompts of 512 tokens that no cache has.
"""

import random
import statistics
import sys
import time
from itertools import count

from baton.bench.local_engine import LocalEngine, greedy_request, run_step
from baton.checkpoint.source import default_cache_dir, resolve_model
from baton.engine.config import EngineConfig
from baton.engine.core import EngineCore

NUM_STREAMS, STREAM_PROMPT, BLOCK_STEPS, NUM_BLOCKS = 8, 64, 20, 40
PROMPT, NUM_PROMPTS = 512, 24

_names = count()
_draw = random.Random(7)


def submit(core: EngineCore, num_prompt: int, num_new: int) -> None:
    prompt = [_draw.randrange(1000, 40000) for _ in range(num_prompt)]
    core.submit(greedy_request(f"r{next(_names)}", prompt, num_new))


def timed(core: EngineCore, num_steps: int, with_profile: bool) -> list[float]:
    if with_profile:
        core.start_profile(None)
    seconds = []
    for _ in range(num_steps):
        started = time.perf_counter()
        run_step(core)
        seconds.append(time.perf_counter() - started)
    if with_profile:
        core.stop_profile()
    return seconds


def main() -> None:
    kinds = [False] if "--plain" in sys.argv else [False, True]
    path = resolve_model(None, cache_dir=default_cache_dir({}))
    engine = LocalEngine(path, EngineConfig(max_total_tokens=16384, disable_radix_cache=True))
    core = engine.core()
    decode: dict[bool, list[float]] = {kind: [] for kind in kinds}
    prefill: dict[bool, list[float]] = {kind: [] for kind in kinds}
    for _ in range(NUM_STREAMS):
        submit(core, STREAM_PROMPT, 16 + BLOCK_STEPS * NUM_BLOCKS * len(kinds))
    for _ in range(8):
        run_step(core)
    for block in range(NUM_BLOCKS):
        for kind in kinds if block % 2 else reversed(kinds):
            decode[kind] += timed(core, BLOCK_STEPS, kind)
    while core.has_work:
        run_step(core)
    for number in range(NUM_PROMPTS):
        for kind in kinds if number % 2 else reversed(kinds):
            submit(core, PROMPT, 1)
            prefill[kind] += timed(core, 1, kind)
    for name, seconds in (("decode step", decode), ("prefill of 512", prefill)):
        medians = {kind: statistics.median(seconds[kind]) * 1e3 for kind in kinds}
        line = f"{name}: {medians[False]:.3f} ms without"
        if True in medians:
            ratio = medians[True] / medians[False]
            line += f", {medians[True]:.3f} ms with a profile, ratio {ratio:.4f}"
        print(line)


if __name__ == "__main__":
    main()
