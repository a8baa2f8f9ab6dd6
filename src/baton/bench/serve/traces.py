"""Real load, replayed: when requests came, how long they were, which prefixes they shared.

- azure: Azure LLM inference trace 2023 (CSV: TIMESTAMP, ContextTokens, GeneratedTokens), from
  Azure/AzurePublicDataset, CC-BY 4.0; P. Patel et al., "Splitwise: Efficient generative LLM
  inference using phase splitting", ISCA 2024.
- mooncake: Mooncake's traces (JSONL: timestamp in ms, input_length, output_length, hash_ids of
  prefix blocks of 512 tokens), from kvcache-ai/Mooncake, Apache-2.0; R. Qin et al., "Mooncake:
  Trading more storage for less computation", FAST 2025.

Neither has text: prompts are random token ids, and a block that several rows of Mooncake's trace
name has the same ids in all of them. Scaling lengths scales the blocks, so that the shared share of
a prompt stays.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from baton.bench.serve.config import DatasetConfig
from baton.bench.serve.sessions import Dataset, Session, Turn, draw_ids, fit
from baton.core.errors import ConfigError

MOONCAKE_BLOCK_TOKENS: Final = 512
SOURCES: Final = {
    "azure": "Azure LLM inference trace 2023 (Azure/AzurePublicDataset, CC-BY 4.0; Patel et al.,"
    " Splitwise, ISCA 2024)",
    "mooncake": "Mooncake trace (kvcache-ai/Mooncake, Apache-2.0; Qin et al., FAST 2025)",
}
_SEED_OF_TAILS: Final = 1
_SEED_OF_BLOCKS: Final = 2


@dataclass(frozen=True)
class Row:
    """One request of a trace. `hash_ids`: its prompt's blocks, none where the trace has none."""

    at_s: float
    num_input: int
    num_output: int
    hash_ids: tuple[int, ...] = ()


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def replay(config: DatasetConfig) -> Dataset:
    """The rows of the trace at `dataset_path`, scaled. Raises ConfigError."""
    path = config.dataset_path
    if path is None:
        raise ConfigError(
            f"--dataset-name {config.dataset_name} needs the trace's file; add --dataset-path FILE"
        )
    rows = read_azure(path) if config.dataset_name == "azure" else read_mooncake(path)
    sessions = scaled_sessions(rows[config.trace_skip :], config)
    kept, num_left_out = fit(sessions, config.max_context_len, config.num_prompts)
    if not kept:
        raise ConfigError(
            f"--dataset-path {path} has no row left: {len(rows)} rows, {config.trace_skip} skipped,"
            f" {num_left_out} longer than --max-context-len"
        )
    scales = {
        "times": f"x {config.trace_time_scale:g}",
        "lengths": f"x {config.trace_length_scale:g}",
    }
    return Dataset(tuple(_from_zero(kept)), SOURCES[config.dataset_name], num_left_out, scales)


def read_azure(path: Path) -> list[Row]:
    """Rows in order of time, the first at 0. Raises ConfigError naming the line."""
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(csv.DictReader(file), 2):
                try:
                    rows.append(
                        Row(
                            _azure_time_s(line["TIMESTAMP"]),
                            int(line["ContextTokens"]),
                            int(line["GeneratedTokens"]),
                        )
                    )
                except (KeyError, TypeError, ValueError) as error:
                    raise _not_a_trace(path, number, "azure", error) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error}") from error
    return _in_order(rows)


def read_mooncake(path: Path) -> list[Row]:
    """Rows in order of time, the first at 0. Raises ConfigError naming the line."""
    decoder = msgspec.json.Decoder(_MooncakeRow)
    rows = []
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                try:
                    row = decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise _not_a_trace(path, number, "mooncake", error) from error
                rows.append(
                    Row(
                        row.timestamp / 1000,
                        row.input_length,
                        row.output_length,
                        tuple(row.hash_ids),
                    )
                )
    except OSError as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error}") from error
    return _in_order(rows)


def scaled_sessions(rows: list[Row], config: DatasetConfig) -> Iterator[Session]:
    """One session of one turn for each row, made when it is asked for."""
    for number, row in enumerate(rows):
        num_input = _scaled(row.num_input, config.trace_length_scale)
        num_output = _scaled(row.num_output, config.trace_length_scale)
        ids = _prompt(row, num_input, number, config)
        turn = Turn(ids, num_input, num_output)
        yield Session((turn,), row.at_s * config.trace_time_scale)


def _prompt(row: Row, num_input: int, number: int, config: DatasetConfig) -> tuple[int, ...]:
    """The ids of the row's blocks, and of its own from where they end."""
    block_tokens = _scaled(MOONCAKE_BLOCK_TOKENS, config.trace_length_scale)
    ids: list[int] = []
    for hash_id in row.hash_ids:
        if len(ids) >= num_input:
            break
        draw = np.random.default_rng((config.seed, _SEED_OF_BLOCKS, hash_id))
        ids += draw_ids(draw, config.token_id_range, block_tokens)
    del ids[num_input:]
    tail = np.random.default_rng((config.seed, _SEED_OF_TAILS, number))
    return (*ids, *draw_ids(tail, config.token_id_range, num_input - len(ids)))


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _in_order(rows: list[Row]) -> list[Row]:
    rows.sort(key=lambda row: row.at_s)
    return rows


def _from_zero(sessions: list[Session]) -> Iterator[Session]:
    begin_s = sessions[0].at_s
    assert begin_s is not None
    for session in sessions:
        assert session.at_s is not None
        yield Session(session.turns, session.at_s - begin_s)


def _azure_time_s(text: str) -> float:
    """Seconds; the trace has seven digits after the second, one more than datetime reads."""
    whole, _, fraction = text.partition(".")
    seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)


def _not_a_trace(path: Path, number: int, name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"--dataset-path {path}, line {number}, is no row of a trace of --dataset-name {name}:"
        f" {error!r}"
    )
