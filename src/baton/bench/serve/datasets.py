"""From options to the dataset that they name, in the form that the backend can send.

Elsewhere: the datasets (random_prompts.py, sharegpt.py, traces.py).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from baton.bench.serve.config import DatasetConfig
from baton.bench.serve.random_prompts import random_lengths, shared_prefix
from baton.bench.serve.sessions import Dataset, Session, Turn, fit
from baton.bench.serve.sharegpt import sharegpt
from baton.bench.serve.traces import replay
from baton.core.errors import ConfigError
from baton.tokenizer.tokenizer import Tokenizer

LoadTokenizer = Callable[[], Tokenizer]


def make_dataset(
    config: DatasetConfig, load_tokenizer: LoadTokenizer, *, takes_ids: bool
) -> Dataset:
    """The dataset that `config` names. Where the backend takes no ids, or a later turn has to be
    joined to an answer's text, ids become text. Raises ConfigError."""
    draw = np.random.default_rng(config.seed)
    match config.dataset_name:
        case "random" | "random-ids":
            made = _fitting(random_lengths(config, draw), config.max_context_len)
        case "generated-shared-prefix":
            made = _fitting(shared_prefix(config, draw), config.max_context_len)
        case "sharegpt":
            return sharegpt(config, draw, load_tokenizer())
        case "azure" | "mooncake":
            if config.num_turns > 1:
                raise ConfigError("--num-turns: a trace's requests have one turn; leave it out")
            made = replay(config)
    if takes_ids and config.num_turns == 1:
        return made
    tokenizer = load_tokenizer()
    return replace(made, sessions=tuple(as_text(each, tokenizer) for each in made.sessions))


def _fitting(made: Dataset, limit: int | None) -> Dataset:
    """Without the sessions that are too long. Raises ConfigError when none is left."""
    kept, num_left_out = fit(made.sessions, limit, len(made.sessions))
    if not kept:
        raise ConfigError(
            f"--max-context-len {limit}: every session is longer; raise it, or ask for shorter ones"
        )
    return replace(made, sessions=tuple(kept), num_left_out=num_left_out)


def as_text(session: Session, tokenizer: Tokenizer) -> Session:
    """Encoding the text again may give a few tokens more or fewer: the server's own count is what
    the report has."""
    return Session(tuple(_turn_as_text(turn, tokenizer) for turn in session.turns), session.at_s)


def _turn_as_text(turn: Turn, tokenizer: Tokenizer) -> Turn:
    if isinstance(turn.content, str):
        return turn
    return replace(turn, content=tokenizer.decode(turn.content))
