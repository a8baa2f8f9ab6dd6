"""What do kernels cost in quality? Perplexity of one text, by Baton, transformers and llama.cpp.

    apt-get download developers-reference && dpkg-deb -x developers-reference_*.deb book
    TEXT=book/usr/share/developers-reference/developers-reference.txt.gz
    python benchmarks/perplexity.py $TEXT --json perplexity.json

The text is the Debian Developer's Reference (English prose, GPL-2+), its paragraphs without
tables, lists and code; any other .txt or .txt.gz does. It is scored as llama-perplexity does it, so
that all score the same tokens: windows of 512, each from nothing, the loss of its second half.

transformers computes in float32 on the dequantized weights: the loss that the file itself has. All
others round activations, Baton and llama.cpp to 8 bits in groups of 32. The gate is
`loss_llamacpp / loss_baton >= 1` on the same file.

Runs in Baton's environment with its development tools; llama.cpp from benchmarks/peers, left out
with its rows when it is not in PEERS_DIR (default: build/peers).
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from baton.bench.local_engine import LocalEngine, run_step
from baton.bench.report import Ratio
from baton.checkpoint import GgufFile, default_cache_dir, resolve_model
from baton.core.request import EngineRequest
from baton.core.sampling import SamplingParams
from baton.engine.config import EngineConfig
from baton.models.gguf_source import GgufSource
from baton.models.registry import read_config
from baton.tokenizer.load import load_tokenizer

WINDOW: Final = 512
FIRST_SCORED: Final = WINDOW // 2 + 1
NUM_SCORED: Final = WINDOW - FIRST_SCORED
DEFAULT_WINDOWS: Final = 80
_MIN_WORDS: Final = 25
_RUNNING_ESTIMATE: Final = re.compile(r"\[(\d+)\](\d+\.\d+)")

Windows = Sequence[list[int]]
Losses = list[float]
"""Mean negative log-likelihood, nats, of the scored tokens of each window."""


@dataclass(frozen=True)
class Files:
    """`model` is scored by all; `bfloat16` has its dequantized values, for what starts from
    floats. `llama_perplexity` and `bfloat16` may not be there."""

    model: Path
    bfloat16: Path
    llama_perplexity: Path


def prose_of(text: str) -> str:
    """Paragraphs that are sentences: of 25 words or more, from a capital letter to a full stop.
    One line each, an empty line between."""
    paragraphs = (" ".join(each.split()) for each in re.split(r"\n\s*\n", text))
    return "\n\n".join(
        each
        for each in paragraphs
        if len(each.split()) >= _MIN_WORDS and each[0].isupper() and each.endswith(".")
    )


def windows_of(tokens: Sequence[int], limit: int) -> Windows:
    """Whole windows one after the other, at most `limit`."""
    number = min(len(tokens) // WINDOW, limit)
    return [list(tokens[start : start + WINDOW]) for start in range(0, number * WINDOW, WINDOW)]


def baton_losses(model: Path, windows: Windows, **options: Any) -> Losses:
    """By the engine itself, in chunks of its default size. `options` are EngineConfig's."""
    engine = LocalEngine(model, EngineConfig(max_total_tokens=4 * WINDOW, **options))
    core = engine.core()
    losses = []
    for number, window in enumerate(windows):
        request = EngineRequest(
            request_id=str(number),
            prompt_token_ids=window,
            sampling=SamplingParams(max_new_tokens=1, temperature=0.0, num_top_logprobs=0),
            prompt_logprobs_start=FIRST_SCORED,
        )
        core.submit(request)
        outputs = run_step(core)
        while not outputs:
            outputs = run_step(core)
        entries = outputs[0].prompt_logprobs or []
        logprobs = [entry.logprob for entry in entries if entry.logprob is not None]
        assert len(logprobs) == NUM_SCORED, len(logprobs)
        losses.append(-statistics.fmean(logprobs))
    return losses


@torch.inference_mode()
def transformers_losses(model: Path, windows: Windows) -> Losses:
    """float32 throughout, on the values that the file stands for."""
    reference = _transformers_model(GgufFile(model))
    losses = []
    for window in windows:
        ids = torch.tensor([window])
        logits = reference(ids, use_cache=False).logits[0, FIRST_SCORED - 1 : -1].double()
        scored = ids[0, FIRST_SCORED:]
        losses.append(float(torch.nn.functional.cross_entropy(logits, scored)))
    return losses


def llama_losses(program: Path, model: Path, text: Path, num_windows: int) -> Losses:
    """By llama-perplexity on `text`. Raises CalledProcessError when it fails."""
    sizes = ["--ctx-size", str(WINDOW), "--chunks", str(num_windows), "--threads", "2"]
    command = [str(program), "--model", str(model), "--file", str(text), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    losses = losses_of_estimates(done.stdout + done.stderr)
    assert len(losses) == num_windows, f"{len(losses)} of {num_windows} windows: other tokens?"
    return losses


def losses_of_estimates(printed: str) -> Losses:
    """From llama-perplexity's running estimates, "[1]12.3456,[2]13.4567,...": the k-th is the
    perplexity of the first k windows together."""
    totals = [0.0]
    for number, perplexity in _RUNNING_ESTIMATE.findall(printed):
        assert int(number) == len(totals)
        totals.append(len(totals) * math.log(float(perplexity)))
    return [after - before for before, after in pairwise(totals)]


def score(files: Files, text: Path, windows: Windows) -> tuple[dict[str, Losses], dict[str, str]]:
    """Losses by name, and what is left out with the reason."""
    losses = {
        "transformers_float32": transformers_losses(files.model, windows),
        "baton": baton_losses(files.model, windows),
        "baton_int8_kv": baton_losses(files.model, windows, kv_cache_dtype="int8"),
    }
    skipped = {}
    if files.bfloat16.exists():
        losses["baton_bfloat16"] = baton_losses(files.bfloat16, windows)
        losses["baton_w8a8_int8"] = baton_losses(files.bfloat16, windows, quantization="w8a8_int8")
    else:
        skipped["baton_bfloat16, baton_w8a8_int8"] = f"{files.bfloat16} is missing"
    if files.llama_perplexity.exists():
        for name, model in (("llamacpp", files.model), ("llamacpp_bfloat16", files.bfloat16)):
            losses[name] = llama_losses(files.llama_perplexity, model, text, len(windows))
    else:
        skipped["llamacpp"] = f"{files.llama_perplexity} is missing"
    return losses, skipped


def summarize(losses: dict[str, Losses], skipped: dict[str, str]) -> dict[str, Any]:
    """The report's figures: each one's loss and perplexity, its distance to float32 with a standard
    error over windows, and the gate."""
    reference = losses["transformers_float32"]
    rows: dict[str, dict[str, Any]] = {}
    for name, each in losses.items():
        loss = statistics.fmean(each)
        rows[name] = {
            "loss": round(loss, 6),
            "perplexity": round(math.exp(loss), 4),
            "above_float32": _difference(each, reference),
        }
    ratios = {}
    if "llamacpp" in losses:
        measured = statistics.fmean(losses["llamacpp"]) / statistics.fmean(losses["baton"])
        told = "loss of llama.cpp / loss of Baton, same file, same tokens"
        ratio = Ratio(measured=round(measured, 6), floor=1.0, reference=told)
        ratios["loss_llamacpp"] = msgspec.to_builtins(ratio)
        rows["baton"]["above_llamacpp"] = _difference(losses["baton"], losses["llamacpp"])
    return {"losses": rows, "ratios": ratios, "skipped": skipped}


def _difference(ours: Losses, theirs: Losses) -> dict[str, float]:
    """Mean over windows, which both have read, with its standard error."""
    each = [one - other for one, other in zip(ours, theirs, strict=True)]
    return {
        "mean": round(statistics.fmean(each), 6),
        "standard_error": round(_standard_error(each), 6),
    }


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _transformers_model(file: GgufFile) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = read_config(file)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    source = GgufSource(file, config)
    missing, unexpected = model.load_state_dict(
        {name: source.read(name) for name in source.shapes()}, strict=False
    )
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    model.train(False)
    return model


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("text", type=Path, help="a .txt or .txt.gz file")
    parser.add_argument("--model", default=None, help="a GGUF file (default: the embedded model)")
    parser.add_argument("--windows", type=int, default=DEFAULT_WINDOWS, help="score at most these")
    parser.add_argument("--json", type=Path, default=None)
    flags = parser.parse_args()
    peers = Path(os.environ.get("PEERS_DIR", "build/peers"))
    model = resolve_model(flags.model, cache_dir=default_cache_dir(os.environ))
    title = model.name.split(".")[0]
    files = Files(
        model,
        peers / "models" / f"{title}.BF16.gguf",
        peers / "llama_cpp" / "build" / "bin" / "llama-perplexity",
    )
    prose = prose_of(_read_text(flags.text))
    tokenizer = load_tokenizer(model)
    windows = windows_of(tokenizer.encode(prose, add_special_tokens=False), flags.windows)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text(prose, encoding="utf-8")
        losses, skipped = score(files, text, windows)
    report = {
        "benchmark": "perplexity",
        "model": model.name,
        "text": flags.text.name,
        "text_sha256": hashlib.sha256(prose.encode()).hexdigest(),
        "windows": len(windows),
        "scored_tokens": len(windows) * NUM_SCORED,
        **summarize(losses, skipped),
    }
    printed = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(printed)
    if flags.json is not None:
        flags.json.write_text(printed, encoding="utf-8")


if __name__ == "__main__":
    main()
