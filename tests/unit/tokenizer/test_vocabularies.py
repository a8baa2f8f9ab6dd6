"""Vocabularies of both kinds, made to order: ids, added tokens, ends, and refusals."""

import json

import pytest

from baton.core.errors import CheckpointError, RequestError, UnsupportedModel
from baton.tokenizer import IncrementalDetokenizer, load_tokenizer
from baton.tokenizer.gguf_vocab import build_from_metadata
from baton.tokenizer.pretokenize import (
    PRE_TOKENIZATIONS,
    build_pre_tokenizer,
    pre_tokenization,
)
from baton.tokenizer.token_bytes import BYTE_OF_CHARACTER, spelling_of_decoder


def tokens_of(tokenizer, text, **options):
    return [tokenizer.token_text(each) for each in tokenizer.encode(text, **options)]


def test_sentencepiece_merges_the_best_score_first(sentencepiece):
    assert tokens_of(sentencepiece, "hello hello") == ["<s>", " hello", " hello"]
    # "ll" then "llo" outrank "lo"; "▁he" outranks "he"
    assert tokens_of(sentencepiece, "hellolo", add_special_tokens=False) == [" hello", "lo"]


def test_sentencepiece_falls_back_to_bytes(sentencepiece):
    ids = sentencepiece.encode("aé", add_special_tokens=False)
    assert [sentencepiece.token_bytes(each) for each in ids] == [b" ", b"a", b"\xc3", b"\xa9"]
    assert sentencepiece.decode(ids) == "aé"


@pytest.mark.parametrize("text", ["hello", " hello", "  two  spaces ", "日本 é\n", ""])
def test_sentencepiece_round_trip(sentencepiece, text):
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


def test_sentencepiece_answer_keeps_its_first_space(sentencepiece):
    prompt, answer = sentencepiece.encode("hello"), sentencepiece.encode("hello")[1:]
    later = IncrementalDetokenizer(sentencepiece, prompt)
    assert later.push(answer) + later.flush() == " hello"
    first = IncrementalDetokenizer(sentencepiece, [sentencepiece.bos_token_id])
    assert first.push(answer) + first.flush() == "hello"


def test_sentencepiece_without_a_prefix_space(make_tokenizer, sentencepiece_metadata):
    tokenizer = make_tokenizer(
        sentencepiece_metadata
        | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    )
    assert tokens_of(tokenizer, "hello")[0] == "he"
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_added_tokens_are_found_whole_and_control_is_hidden(sentencepiece, byte_level):
    ids = sentencepiece.encode("hello</s>[THINK]a")
    assert sentencepiece.decode(ids) == "hello[THINK] a"
    assert sentencepiece.decode(ids, skip_special_tokens=False) == "<s> hello</s>[THINK] a"

    ids = byte_level.encode("<think é>hello<|end|>")
    assert byte_level.decode(ids) == "<think é>hello"
    assert [byte_level.token_text(each) for each in ids] == ["<think é>", "hello", "<|end|>"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["hello"]),
        ({"add_bos_token": True}, ["<|bos|>", "hello"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<|bos|>", "hello", "<|end|>"]),
        ({"pre": "llama-bpe"}, ["<|bos|>", "hello"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["hello"]),
    ],
)
def test_start_and_end_tokens_as_the_file_wants(
    make_tokenizer, byte_level_metadata, options, expected
):
    stated = {f"tokenizer.ggml.{name}": value for name, value in options.items()}
    tokenizer = make_tokenizer(byte_level_metadata | stated)
    assert tokens_of(tokenizer, "hello") == expected
    assert tokens_of(tokenizer, "hello", add_special_tokens=False) == ["hello"]


def test_a_rendered_chat_gets_no_second_start_token(make_tokenizer, byte_level_metadata):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    metadata = byte_level_metadata | {"tokenizer.ggml.add_bos_token": True}
    tokenizer = make_tokenizer(metadata, template)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    ids = tokenizer.encode_chat(rendered)
    assert [tokenizer.token_text(each) for each in ids] == ["<|bos|>", "hello"]


def test_whole_words_skip_merging_where_the_rule_says(make_tokenizer, byte_level_metadata):
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"], "wxyz"]
    metadata = byte_level_metadata | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
    }
    plain = make_tokenizer(metadata)
    whole = make_tokenizer(
        metadata | {"tokenizer.ggml.pre": "tekken", "tokenizer.ggml.add_bos_token": False}
    )
    assert tokens_of(plain, "wxyz") == ["w", "x", "y", "z"]
    assert tokens_of(whole, "wxyz") == ["wxyz"]


@pytest.mark.parametrize(
    ("rule", "text", "pieces"),
    [
        ("smollm", "a  12 b's", ["a", "  ", "1", "2", " b", "'s"]),
        ("gpt-2", "a  12 b's", ["a", " ", " 12", " b", "'s"]),
        ("llama-bpe", "Don'T 12345\n\n x", ["Don", "'T", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "12 x/y\r\n", ["1", "2", " x", "/y", "\r\n"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("deepseek-v3", "1234日本 a", ["123", "4", "日本", " a"]),
        ("deepseek-coder", "ab12\ncd", ["ab", "1", "2", "\n", "cd"]),
        ("default", "a.b 12345", ["a", ".", "b", " ", "123", "45"]),
    ],
)
def test_where_text_is_cut(rule, text, pieces):
    cut = build_pre_tokenizer(pre_tokenization(rule)).pre_tokenize_str(text)
    found = [bytes(BYTE_OF_CHARACTER[each] for each in piece).decode() for piece, _ in cut]
    assert found == pieces


def test_every_rule_compiles_and_loses_nothing():
    text = "Hello  WORLD's 12345 日本語 ñ\u0301\r\n\t x/y !? 한국어"
    for name, rule in PRE_TOKENIZATIONS.items():
        pieces = build_pre_tokenizer(rule).pre_tokenize_str(text)
        joined = bytes(BYTE_OF_CHARACTER[each] for piece, _ in pieces for each in piece)
        assert joined.decode() == text, name


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pre": "martian"}, UnsupportedModel, r"'martian'; known are .*smollm"),
        ({"model": "t5"}, UnsupportedModel, r"model is 't5'; supported are 'gpt2'"),
        ({"tokens": []}, CheckpointError, "carries no tokenizer"),
        ({"tokens": [1, 2]}, CheckpointError, "tokens is not a list of str"),
        ({"tokens": ["a", "a"]}, CheckpointError, "lists 'a' twice"),
        ({"token_type": [1]}, CheckpointError, "token_type has 1 entries"),
        ({"merges": ["h nonsense"]}, CheckpointError, "contradicts itself"),
        ({"merges": ["oneword"]}, CheckpointError, "contradicts itself"),
        ({"bos_token_id": 10**6, "add_bos_token": True}, CheckpointError, "not one of"),
        ({"bos_token_id": None, "add_bos_token": True}, CheckpointError, "is missing"),
        ({"model": "llama"}, CheckpointError, r"no tokenizer\.ggml\.scores"),
    ],
)
def test_broken_vocabularies_are_named(byte_level_metadata, changes, error, message):
    stated = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        build_from_metadata(byte_level_metadata | stated)


def test_a_folder_gives_the_same_tokens(tmp_path, byte_level, byte_level_metadata):
    build_from_metadata(byte_level_metadata).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 265}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": {"content": "<|bos|>", "special": True},
                "eos_token": "<|end|>",
                "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
            }
        )
    )
    folder = load_tokenizer(tmp_path)
    text = "hello é 日本 <|end|><think é>"
    assert folder.encode(text) == byte_level.encode(text)
    assert folder.decode(folder.encode(text)) == byte_level.decode(byte_level.encode(text))
    assert (folder.bos_token_id, folder.eos_token_ids) == (264, (265,))
    rendered = folder.apply_chat_template([{"role": "user", "content": "x"}])
    assert rendered == "<|bos|>x<|end|>"


def test_a_folders_end_token_may_be_known_to_its_tokenizer_only(tmp_path, byte_level_metadata):
    build_from_metadata(byte_level_metadata).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    assert load_tokenizer(tmp_path).eos_token_ids == (265,)


def test_an_unreadable_tokenizer_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_other_decoders_are_refused_by_name():
    from tokenizers import decoders

    with pytest.raises(UnsupportedModel, match="decoder is WordPiece"):
        spelling_of_decoder(decoders.WordPiece())
    with pytest.raises(UnsupportedModel, match="no decoder"):
        spelling_of_decoder(None)
    with pytest.raises(UnsupportedModel, match="decoder is Replace"):
        spelling_of_decoder(decoders.Replace("_", " "))
    assert spelling_of_decoder(decoders.Metaspace()).strips_leading_space
    assert not spelling_of_decoder(decoders.Metaspace(prepend_scheme="never")).strips_leading_space


def test_no_template_points_to_completions(byte_level):
    with pytest.raises(RequestError, match="use /v1/completions") as caught:
        byte_level.apply_chat_template([{"role": "user", "content": "x"}])
    assert caught.value.param == "messages"
