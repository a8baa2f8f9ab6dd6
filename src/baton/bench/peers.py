"""Other engines' figures, as benchmarks/peers writes them, and our ratios to them.

Elsewhere: installing and running the other engines (benchmarks/peers).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from baton.bench.report import Findings
from baton.core.errors import ConfigError

_LLAMA_CPP: Final = ("llama.cpp",)
_VLLM_OPENVINO: Final = ("vllm", "openvino")


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One engine with one format of weights. Medians, tokens/s, by prompt tokens and by streams."""

    engine: str
    version: str
    format: str
    method: str
    prefill_tokens_per_s: dict[str, float]
    decode_tokens_per_s: dict[str, float]

    @property
    def is_http(self) -> bool:
        return self.method.upper().startswith("HTTP")

    @property
    def label(self) -> str:
        return f"{self.engine} {self.format}" + (" over HTTP" if self.is_http else "")

    def rate(self, quantity: str) -> float | None:
        """Of "prefill_512", "decode_16", ...; None when it was not measured."""
        phase, size = quantity.split("_")
        rates = self.prefill_tokens_per_s if phase == "prefill" else self.decode_tokens_per_s
        return rates.get(size)


@dataclass(frozen=True)
class Claim:
    """`quantity`, ours against the fastest of `engines` (the beginnings of their names); with
    `format` only where it is given, over HTTP only where `is_http`."""

    name: str
    quantity: str
    engines: tuple[str, ...]
    floor: float
    format: str | None = None
    is_http: bool = False


CLAIMS: Final = (
    Claim("prefill_512_vs_llamacpp_same_file", "prefill_512", _LLAMA_CPP, 6.0, "q4_1"),
    Claim("prefill_2048_vs_llamacpp_same_file", "prefill_2048", _LLAMA_CPP, 6.0, "q4_1"),
    Claim("prefill_512_vs_llamacpp_fastest", "prefill_512", _LLAMA_CPP, 2.4),
    Claim("prefill_2048_vs_llamacpp_fastest", "prefill_2048", _LLAMA_CPP, 3.2),
    Claim("prefill_512_vs_best_of_vllm_openvino", "prefill_512", _VLLM_OPENVINO, 1.25),
    Claim("prefill_2048_vs_best_of_vllm_openvino", "prefill_2048", _VLLM_OPENVINO, 1.25),
    Claim("decode_1_vs_llamacpp_fastest", "decode_1", _LLAMA_CPP, 1.4),
    Claim("decode_16_vs_llamacpp_server", "decode_16", _LLAMA_CPP, 3.5, is_http=True),
    Claim("decode_16_vs_best_of_vllm_openvino", "decode_16", _VLLM_OPENVINO, 2.0),
)


@dataclass(frozen=True)
class Peers:
    """What run_all.py found. `failures`: the error of each run that has no report, by its name."""

    reports: Sequence[PeerReport]
    failures: Mapping[str, str]


def read_peers(path: Path) -> Peers:
    """The JSON list that run_all.py wrote. Raises ConfigError."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        failures = {each["name"]: _last_line(each["error"]) for each in entries if "error" in each}
        reports = [msgspec.convert(each, PeerReport) for each in entries if "error" not in each]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--peers {path} is not a file of benchmarks/peers: {error}") from error
    for label, number in Counter(each.label for each in reports).items():
        if number > 1:
            raise ConfigError(f"--peers {path} has {number} reports of {label}; leave one")
    return Peers(reports, failures)


def compare_with_peers(findings: Findings, peers: Peers | str) -> None:
    """Add the peers' figures and the ratios of CLAIMS; `peers` as a string says why there are
    none."""
    if isinstance(peers, str):
        findings.skipped |= {claim.name: peers for claim in CLAIMS}
        return
    findings.skipped |= {name: f"it failed: {error}" for name, error in peers.failures.items()}
    for peer in peers.reports:
        _add_figures(findings, peer)
    for claim in CLAIMS:
        _add_ratio(findings, claim, peers.reports)


def fastest(claim: Claim, peers: Sequence[PeerReport]) -> PeerReport | None:
    """The report that `claim` is held against."""
    suitable = [
        peer
        for peer in peers
        if peer.engine.lower().startswith(claim.engines)
        and claim.format in (None, peer.format.lower())
        and (peer.is_http or not claim.is_http)
        and peer.rate(claim.quantity)
    ]
    return max(suitable, key=lambda peer: peer.rate(claim.quantity) or 0.0, default=None)


def _add_ratio(findings: Findings, claim: Claim, peers: Sequence[PeerReport]) -> None:
    peer = fastest(claim, peers)
    if peer is None:
        wanted = " or ".join(claim.engines)
        wanted += f" with {claim.format}" if claim.format else ""
        wanted += " over HTTP" if claim.is_http else ""
        findings.skipped[claim.name] = f"no figures of {wanted}: not installed, or not measured"
        return
    theirs = peer.rate(claim.quantity)
    assert theirs is not None
    ours = findings.figures[claim.quantity].median
    reference = f"{peer.label}, {peer.version}: {theirs:.0f} tokens/s; ours in process"
    findings.claim(claim.name, ours / theirs, claim.floor, reference)


def _add_figures(findings: Findings, peer: PeerReport) -> None:
    quantities = [f"prefill_{size}" for size in peer.prefill_tokens_per_s]
    quantities += [f"decode_{streams}" for streams in peer.decode_tokens_per_s]
    for quantity in quantities:
        rate = peer.rate(quantity)
        if rate:
            findings.add(f"{peer.label} {quantity}", [rate], "tokens/s")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
