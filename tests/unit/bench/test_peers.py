"""Other engines' files and the ratios that come of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from baton.bench.peers import CLAIMS, compare_with_peers, read_peers
from baton.bench.report import Findings
from baton.core.errors import ConfigError


def peer(engine: str, weights: str, speed: float, method: str = "tools") -> dict[str, Any]:
    return {
        "engine": engine,
        "version": "1",
        "format": weights,
        "method": method,
        "threads": 2,
        "prefill_tokens_per_s": {"512": speed, "2048": speed / 2},
        "decode_tokens_per_s": {"1": speed / 10, "16": speed},
    }


def our_findings() -> Findings:
    findings = Findings()
    for name in ("prefill_512", "prefill_2048", "decode_1", "decode_16"):
        findings.add(name, [1000.0], "tokens/s")
    return findings


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_every_claim_is_held_against_the_fastest_that_it_names(tmp_path: Path) -> None:
    reports = [
        peer("llama.cpp", "Q4_1", 100.0),
        peer("llama.cpp", "BF16", 400.0),
        peer("llama.cpp", "Q4_0", 200.0, "HTTP, streaming"),
        peer("vLLM", "bf16", 500.0, "HTTP"),
        peer("OpenVINO GenAI", "Q8_0", 250.0),
    ]
    findings = our_findings()
    compare_with_peers(findings, read_peers(write(tmp_path / "peers.json", reports)))
    measured = {name: ratio.measured for name, ratio in findings.ratios.items()}
    assert measured == {
        "prefill_512_vs_llamacpp_same_file": 10.0,
        "prefill_2048_vs_llamacpp_same_file": 20.0,
        "prefill_512_vs_llamacpp_fastest": 2.5,
        "prefill_2048_vs_llamacpp_fastest": 5.0,
        "prefill_512_vs_best_of_vllm_openvino": 2.0,
        "prefill_2048_vs_best_of_vllm_openvino": 4.0,
        "decode_1_vs_llamacpp_fastest": 25.0,
        "decode_16_vs_llamacpp_server": 5.0,
        "decode_16_vs_best_of_vllm_openvino": 2.0,
    }
    assert "BF16" in findings.ratios["prefill_512_vs_llamacpp_fastest"].reference
    assert findings.skipped == {}
    assert findings.figures["vLLM bf16 over HTTP decode_16"].median == 500.0


def test_an_engine_that_is_not_there_leaves_its_ratios_out(tmp_path: Path) -> None:
    findings = our_findings()
    compare_with_peers(
        findings, read_peers(write(tmp_path / "peers.json", [peer("vLLM", "bf16", 500.0)]))
    )
    assert {name for name in findings.ratios if "llamacpp" in name} == set()
    assert "llama.cpp with q4_1" in findings.skipped["prefill_512_vs_llamacpp_same_file"]
    assert len(findings.ratios) + len(findings.skipped) == len(CLAIMS)


def test_an_engine_that_failed_is_told_with_its_last_line(tmp_path: Path) -> None:
    reports = [
        peer("vLLM", "bf16", 500.0),
        {"name": "openvino-Q8_0", "error": "Trace\nno memory\n"},
    ]
    findings = our_findings()
    compare_with_peers(findings, read_peers(write(tmp_path / "peers.json", reports)))
    assert findings.skipped["openvino-Q8_0"] == "it failed: no memory"
    assert "vLLM" in findings.ratios["decode_16_vs_best_of_vllm_openvino"].reference


def test_without_peers_every_ratio_is_left_out_with_the_reason() -> None:
    findings = our_findings()
    compare_with_peers(findings, "none are installed")
    assert findings.ratios == {}
    assert set(findings.skipped.values()) == {"none are installed"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a file of benchmarks/peers"),
        ("{}", "Expected `array`"),
        ('[{"prefill_tokens_per_s": {}}]', "missing required field `engine`"),
        (json.dumps([peer("vLLM", "bf16", 1.0)] * 2), "2 reports of vLLM bf16"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_peers(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        read_peers(tmp_path / "absent.json")
