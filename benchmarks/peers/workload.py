"""What is measured, the same for every engine: lengths, streams, repetitions, cores, prompts.

Standard library only, because OpenVINO's script runs in that engine's own environment.
"""

import os
import random
from pathlib import Path
from typing import Final

PREFILL_TOKENS: Final = (512, 2048)
DECODE_STREAMS: Final = (1, 16)
DECODE_PROMPT_TOKENS: Final = 192
DECODE_NEW_TOKENS: Final = 128  # mean context while decoding: 192 + 128 / 2 = 256
MAX_CONTEXT_TOKENS: Final = 4096
DEFAULT_REPETITIONS: Final = 5
CORES: Final = (0, 1)
NUM_THREADS: Final = len(CORES)

MODEL_NAME: Final = "SmolLM2-135M-Instruct"
DEFAULT_MODEL: Final = Path.home() / ".cache" / "baton" / f"{MODEL_NAME}.Q4_1.gguf"

# Every engine is asked this, greedily, to see that it computes the model. The answer is " Paris"
# with a wide margin, which rounding does not turn; as a chat question it is a near tie in 4 bits.
QUESTION: Final = "The capital of France is"
ANSWER_TOKENS: Final = 8

# Ordinary words of the vocabulary: ids below hold special tokens and single bytes.
_FIRST_ID, _END_ID = 1000, 20000


def prompt_ids(num_tokens: int, seed: int) -> list[int]:
    """Random token ids; prompts of different seeds share no prefix that a cache could reuse."""
    draw = random.Random(seed)
    return [draw.randrange(_FIRST_ID, _END_ID) for _ in range(num_tokens)]


def peers_dir() -> Path:
    """Where the peers are installed: PEERS_DIR, or build/peers under the repository."""
    repository = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("PEERS_DIR", repository / "build" / "peers")).resolve()


def models_dir() -> Path:
    return peers_dir() / "models"


def gguf_model(quantization: str) -> Path:
    """The model in one of llama.cpp's formats, as install_llama_cpp.sh made it.

    Raises FileNotFoundError, saying how to make it."""
    path = models_dir() / f"{MODEL_NAME}.{quantization}.gguf"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run benchmarks/peers/install_llama_cpp.sh")
    return path


def pin_to_cores() -> None:
    """Bind this process, and all it starts, to CORES."""
    os.sched_setaffinity(0, CORES)
