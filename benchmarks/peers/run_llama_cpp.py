"""Measure llama.cpp on one of its formats, with its own benchmark tools or over HTTP.

    python benchmarks/peers/run_llama_cpp.py [--format Q4_1] [--over tools|http] [--json FILE]

Tools: llama-bench for prefill, llama-batched-bench for decode; no HTTP, no sampler, no text.
HTTP: llama-server with 16 slots under the client that measures every server (http_load.py).
"""

import asyncio
import json
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import http_load
from other_load import OtherLoad
from report import Engine, Samples, emit, run_script_parser, start, summarize
from server_process import free_port, running
from workload import (
    DECODE_NEW_TOKENS,
    DECODE_PROMPT_TOKENS,
    DECODE_STREAMS,
    MAX_CONTEXT_TOKENS,
    NUM_THREADS,
    PREFILL_TOKENS,
    gguf_model,
    peers_dir,
)

# Which is faster depends on format and length: the tools try both, and the better median counts.
_FLASH_ATTENTION: Final = ("on", "off")
_TOOLS_METHOD: Final = (
    "llama-bench (prefill), llama-batched-bench (decode); the better of flash attention on and off"
)
_MODEL: Final = "peer"


def measure_tools(quantization: str, repetitions: int) -> tuple[Samples, Samples]:
    """Samples of llama.cpp's own tools: prefill per length, decode per number of streams."""
    model = str(gguf_model(quantization))
    prefills = [_bench(model, flash, repetitions) for flash in _FLASH_ATTENTION]
    decodes = [_batched_bench(model, flash, repetitions) for flash in _FLASH_ATTENTION]
    return _better(prefills), _better(decodes)


def _bench(model: str, flash: str, repetitions: int) -> Samples:
    command = [
        *("llama-bench", "--model", model, "--threads", str(NUM_THREADS), "--flash-attn", flash),
        *("--n-prompt", ",".join(map(str, PREFILL_TOKENS)), "--n-gen", "0"),
        *("--repetitions", str(repetitions), "--output", "json"),
    ]
    return {each["n_prompt"]: each["samples_ts"] for each in json.loads(_run(command))}


def _batched_bench(model: str, flash: str, repetitions: int) -> Samples:
    command = [
        *("llama-batched-bench", "--model", model, "--threads", str(NUM_THREADS)),
        *("--flash-attn", flash, "--no-kv-unified", "--ctx-size", str(_context_tokens())),
        *("-npp", str(DECODE_PROMPT_TOKENS), "-ntg", str(DECODE_NEW_TOKENS)),
        *("-npl", ",".join(map(str, DECODE_STREAMS)), "--output-format", "jsonl"),
    ]
    decode: dict[int, list[float]] = {size: [] for size in DECODE_STREAMS}
    for _ in range(repetitions):
        for line in _run(command).splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                decode[row["pl"]].append(row["speed_tg"])
    return decode


def _better(candidates: Sequence[Samples]) -> Samples:
    """Of each size, the samples with the highest median."""
    sizes = candidates[0]
    return {size: max((each[size] for each in candidates), key=statistics.median) for size in sizes}


def measure_http(quantization: str, repetitions: int) -> tuple[Samples, Samples, str]:
    """Samples and the answer of a llama-server that lives for this call."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        str(_binary("llama-server")),
        *("--model", str(gguf_model(quantization)), "--threads", str(NUM_THREADS)),
        *("--parallel", str(max(DECODE_STREAMS)), "--ctx-size", str(_server_context_tokens())),
        *(
            "--flash-attn",
            "on",
            "--no-kv-unified",
            "--no-webui",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ),
    ]
    with running(command, url, peers_dir() / "llama_cpp.log"):
        return asyncio.run(http_load.measure(url, _MODEL, repetitions))


def measure(quantization: str, over: str, repetitions: int) -> dict[str, Any]:
    """The report (see report.py) of one format over one interface."""
    others = OtherLoad()
    answer = None
    if over == "tools":
        method = _TOOLS_METHOD
        prefill, decode = measure_tools(quantization, repetitions)
    else:
        method = http_load.METHOD
        prefill, decode, answer = measure_http(quantization, repetitions)
    engine = Engine("llama.cpp", _version(), quantization, method, answer)
    return summarize(engine, prefill, decode, other_cores=others.mean_cores())


def _context_tokens() -> int:
    return max(DECODE_STREAMS) * (DECODE_PROMPT_TOKENS + DECODE_NEW_TOKENS)


def _server_context_tokens() -> int:
    """Each slot gets an equal share, and any slot may get the longest prompt."""
    return max(DECODE_STREAMS) * MAX_CONTEXT_TOKENS


def _binary(name: str) -> Path:
    return peers_dir() / "llama_cpp" / "build" / "bin" / name


def _run(command: list[str]) -> str:
    name, *options = command
    run = subprocess.run(
        [_binary(name), *options], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return run.stdout.decode()


def _version() -> str:
    """Of the PyPI package that the source came from: llama.cpp's own is unknown in a sdist."""
    sdist = next((peers_dir() / "llama_cpp" / "sdist").glob("*.tar.gz"))
    return f"llama-cpp-python {re.sub(r'.*-|[.]tar[.]gz', '', sdist.name)}"


def main() -> None:
    parser = run_script_parser(__doc__)
    parser.add_argument("--format", default="Q4_1", help="Q4_1, Q4_0, Q8_0, BF16 (default: Q4_1)")
    parser.add_argument("--over", choices=("tools", "http"), default="tools")
    flags = start(parser)
    emit(measure(flags.format, flags.over, flags.repetitions), flags.json)


if __name__ == "__main__":
    main()
