"""The pure parts of benchmarks/perplexity.py: which text, which windows, which losses."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "perplexity.py"
_SENTENCE = "The " + "very " * 30 + "end."


@pytest.fixture(scope="module")
def perplexity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("perplexity_script", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_prose_is_paragraphs_of_sentences(perplexity: ModuleType) -> None:
    wrapped = _SENTENCE.replace("very very", "very\nvery", 3)
    text = f"1. Title\n\n{wrapped}\n\n* a list {_SENTENCE}\n\nToo short.\n \n{_SENTENCE}\n"
    assert perplexity.prose_of(text) == f"{_SENTENCE}\n\n{_SENTENCE}"


def test_windows_are_whole_and_at_most_as_many_as_asked(perplexity: ModuleType) -> None:
    tokens = list(range(3 * perplexity.WINDOW + 7))
    windows = perplexity.windows_of(tokens, 10)
    assert [len(window) for window in windows] == [perplexity.WINDOW] * 3
    assert [token for window in windows for token in window] == tokens[:-7]
    assert len(perplexity.windows_of(tokens, 2)) == 2


def test_half_a_window_is_scored(perplexity: ModuleType) -> None:
    """As llama-perplexity: rows n/2 to n - 2 of a window predict tokens n/2 + 1 to n - 1."""
    assert (perplexity.FIRST_SCORED, perplexity.NUM_SCORED) == (257, 255)


def test_running_estimates_become_losses_of_windows(perplexity: ModuleType) -> None:
    first, second = math.exp(2.0), math.exp((2.0 + 3.0) / 2)
    printed = f"perplexity: 1.0 seconds\n[1]{first:.4f},[2]{second:.4f},\nFinal estimate: PPL = 1"
    assert perplexity.losses_of_estimates(printed) == pytest.approx([2.0, 3.0], abs=1e-4)


def test_the_gate_is_the_ratio_of_mean_losses(perplexity: ModuleType) -> None:
    losses = {"transformers_float32": [2.0, 3.0], "baton": [2.5, 3.5], "llamacpp": [3.0, 6.0]}
    report = perplexity.summarize(losses, {"other": "missing"})
    assert report["ratios"]["loss_llamacpp"]["measured"] == 1.5
    assert report["ratios"]["loss_llamacpp"]["floor"] == 1.0
    rows = report["losses"]
    assert rows["baton"]["above_float32"] == {"mean": 0.5, "standard_error": 0.0}
    assert rows["baton"]["above_llamacpp"] == {"mean": -1.5, "standard_error": 1.0}
    assert report["skipped"] == {"other": "missing"}


def test_without_llama_cpp_there_is_no_gate(perplexity: ModuleType) -> None:
    losses = {"transformers_float32": [2.0], "baton": [2.5]}
    assert perplexity.summarize(losses, {})["ratios"] == {}
