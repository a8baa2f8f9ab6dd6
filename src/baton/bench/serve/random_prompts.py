"""The datasets that are made up: random lengths, and groups that share a system prompt.

Prompts are random token ids, so that no prefix cache has seen them; those of one group begin with
the same ids.
"""

import numpy as np

from baton.bench.serve.config import DatasetConfig
from baton.bench.serve.sessions import Dataset, Session, Turn, draw_ids, draw_lengths


def random_lengths(config: DatasetConfig, draw: np.random.Generator) -> Dataset:
    """Sessions of turns with lengths between a share of the longest and it."""
    number = config.num_prompts * config.num_turns
    ratio = config.random_range_ratio
    inputs = draw_lengths(draw, config.random_input_len, ratio, number)
    outputs = draw_lengths(draw, config.random_output_len, ratio, number)
    turns = [
        Turn(draw_ids(draw, config.token_id_range, num_input), num_input, num_output)
        for num_input, num_output in zip(inputs, outputs, strict=True)
    ]
    return Dataset(
        tuple(Session(tuple(each)) for each in _batched(turns, config.num_turns)),
        "random token ids",
    )


def shared_prefix(config: DatasetConfig, draw: np.random.Generator) -> Dataset:
    """`gsp_num_groups` system prompts, each before the first turn of several sessions."""
    ratio, id_range = config.gsp_range_ratio, config.token_id_range
    num_sessions = config.gsp_num_groups * config.gsp_prompts_per_group
    num_turns = num_sessions * config.num_turns
    prefixes = [
        draw_ids(draw, id_range, length)
        for length in draw_lengths(draw, config.gsp_system_prompt_len, ratio, config.gsp_num_groups)
    ]
    questions = draw_lengths(draw, config.gsp_question_len, ratio, num_turns)
    outputs = draw_lengths(draw, config.gsp_output_len, ratio, num_turns)
    turns = [
        Turn(draw_ids(draw, id_range, num_input), num_input, num_output)
        for num_input, num_output in zip(questions, outputs, strict=True)
    ]
    sessions = [
        _prefixed(prefixes[number // config.gsp_prompts_per_group], each)
        for number, each in enumerate(_batched(turns, config.num_turns))
    ]
    if not config.gsp_ordered:
        sessions = [sessions[each] for each in draw.permutation(num_sessions)]
    return Dataset(tuple(sessions), f"random token ids in {config.gsp_num_groups} groups")


def _prefixed(prefix: tuple[int, ...], turns: list[Turn]) -> Session:
    first, *later = turns
    assert isinstance(first.content, tuple)
    opening = Turn(prefix + first.content, len(prefix) + first.num_input, first.num_output)
    return Session((opening, *later))


def _batched(turns: list[Turn], size: int) -> list[list[Turn]]:
    return [turns[begin : begin + size] for begin in range(0, len(turns), size)]
