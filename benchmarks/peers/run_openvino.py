"""Measure OpenVINO GenAI on a GGUF file, through its continuous-batching pipeline.

    PEERS_DIR/openvino/bin/python benchmarks/peers/run_openvino.py [--format Q8_0] [--json FILE]

In process, without HTTP, which flatters it a little: the package has no server. The caller drives
the pipeline step by step, so every step's end is seen. Runs in OpenVINO's own environment.
"""

import importlib.metadata
import time
from itertools import count
from typing import Any, Final

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai  # type: ignore[import-not-found]
from other_load import OtherLoad
from report import Engine, emit, run_script_parser, start, summarize
from workload import (
    ANSWER_TOKENS,
    DECODE_NEW_TOKENS,
    DECODE_PROMPT_TOKENS,
    DECODE_STREAMS,
    MAX_CONTEXT_TOKENS,
    NUM_THREADS,
    PREFILL_TOKENS,
    QUESTION,
    gguf_model,
    prompt_ids,
)

_METHOD: Final = "in process, ContinuousBatchingPipeline.step, u8 KV cache (its default)"
_CACHE_GIB: Final = 2
_NUM_WARM_UPS: Final = 2


class Pipeline:
    """OpenVINO's pipeline on one model file. Prompts are never repeated within its life."""

    def __init__(self, quantization: str):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIB
        scheduler.max_num_batched_tokens = MAX_CONTEXT_TOKENS
        scheduler.max_num_seqs = max(DECODE_STREAMS)
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": NUM_THREADS}
        path = str(gguf_model(quantization))
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, scheduler, "CPU", properties
        )
        self._ids = count()

    def prefill_tokens_per_s(self, num_prompt: int) -> float:
        """Adding a request of one token until the step that ends it has returned."""
        started_s = time.perf_counter()
        ends_s = self._run(1, num_prompt, 1)
        return num_prompt / (ends_s[-1] - started_s)

    def decode_tokens_per_s(self, num_streams: int) -> float:
        """Over the steps in which every stream made a token and no prompt was computed: from the
        end of the last prompt's step until the first stream ended."""
        ends_s = self._run(num_streams, DECODE_PROMPT_TOKENS, DECODE_NEW_TOKENS)
        num_prompt_steps = len(ends_s) - DECODE_NEW_TOKENS + 1
        steady_s = ends_s[num_prompt_steps - 1 : DECODE_NEW_TOKENS]
        return num_streams * (len(steady_s) - 1) / (steady_s[-1] - steady_s[0])

    def answer(self) -> str:
        config = self._config(ANSWER_TOKENS)
        return str(self._pipeline.generate([QUESTION], [config])[0].m_generation_ids[0])

    def _run(self, num_streams: int, num_prompt: int, num_new: int) -> list[float]:
        """When each step ended, in s."""
        handles = []  # a request whose handle is dropped is cancelled
        for _ in range(num_streams):
            number = next(self._ids)
            ids = np.array([prompt_ids(num_prompt, number)], dtype=np.int64)
            config = self._config(num_new)
            handles.append(self._pipeline.add_request(number, openvino.Tensor(ids), config))
        ends_s = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            ends_s.append(time.perf_counter())
        made = [len(output.generated_ids) for each in handles for output in each.read_all()]
        if made != [num_new] * num_streams:
            raise RuntimeError(f"streams have {made} tokens, not {num_new} each")
        return ends_s

    def _config(self, num_new: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_new
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        return config


def measure(quantization: str, repetitions: int) -> dict[str, Any]:
    """The report (see report.py) of the model in one format."""
    others = OtherLoad()
    pipeline = Pipeline(quantization)
    answer = pipeline.answer()
    for _ in range(_NUM_WARM_UPS):
        pipeline.prefill_tokens_per_s(max(PREFILL_TOKENS))
        pipeline.decode_tokens_per_s(max(DECODE_STREAMS))
    prefill: dict[int, list[float]] = {size: [] for size in PREFILL_TOKENS}
    decode: dict[int, list[float]] = {size: [] for size in DECODE_STREAMS}
    for _ in range(repetitions):
        for num_tokens, into in prefill.items():
            into.append(pipeline.prefill_tokens_per_s(num_tokens))
        for num_streams, into in decode.items():
            into.append(pipeline.decode_tokens_per_s(num_streams))
    version = importlib.metadata.version("openvino-genai")
    engine = Engine("OpenVINO GenAI", version, quantization, _METHOD, answer)
    return summarize(engine, prefill, decode, other_cores=others.mean_cores())


def main() -> None:
    parser = run_script_parser(__doc__)
    parser.add_argument("--format", default="Q8_0", help="Q8_0, Q4_0 or BF16 (default: Q8_0)")
    flags = start(parser)
    emit(measure(flags.format, flags.repetitions), flags.json)


if __name__ == "__main__":
    main()
