"""A suite: its loads, what is claimed and measured, its page."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from baton.bench.machine import Machine
from baton.bench.report import figure
from baton.bench.serve.bars import bars
from baton.bench.serve.claims import CLAIMS, Measure, beside_best_peer, beside_unified, measured
from baton.bench.serve.config import DatasetConfig, LimitsConfig, SuiteConfig
from baton.bench.serve.suite import SuiteLoad, default_servers, plan_suite
from baton.bench.serve.suite_page import MARKS, hand_written, plots_of, to_page
from baton.bench.serve.suite_report import (
    LoadCompared,
    LoadFigures,
    Served,
    SuiteReport,
    read_suite_report,
)
from baton.core.errors import ConfigError
from baton.launch import cli
from baton.testing.scripted_server import (
    DONE,
    STREAM_HEAD,
    Request,
    ScriptedServer,
    Step,
    event,
    generated,
)

AZURE, MOONCAKE = Path("x/azure.csv"), Path("x/mooncake.jsonl")


def planned(**options: object) -> list[SuiteLoad]:
    given = DatasetConfig(seed=7, token_id_range=(20, 250))
    return plan_suite(SuiteConfig(suite="article", **options), given, LimitsConfig())  # type: ignore[arg-type]


def test_the_loads_in_order_the_one_that_leaves_streams_last() -> None:
    loads = planned(suite_traces=(AZURE, MOONCAKE))
    names = [each.name for each in loads]
    assert names == ["steady", "saturated", "azure", "mooncake", "sessions", "interference"]
    assert [each.load.background_streams for each in loads] == [0, 0, 0, 0, 0, 4]
    assert all(each.dataset.token_id_range == (20, 250) for each in loads)
    datasets = {each.name: each.dataset.dataset_name for each in loads}
    assert datasets["azure"] == "azure"
    assert datasets["interference"] == "random-ids"
    assert datasets["steady"] == datasets["sessions"] == "sharegpt"


def test_no_two_rounds_or_loads_send_the_same_prompts() -> None:
    seeds = [
        each.of_round(number).dataset.seed
        for number in range(5)
        for each in planned(suite_traces=(AZURE, MOONCAKE))
    ]
    assert len(set(seeds)) == len(seeds) == 30


def test_sizes_follow_the_options() -> None:
    loads = {
        each.name: each
        for each in planned(
            suite_burst=9,
            suite_rate=2.0,
            suite_seconds=10.0,
            suite_traces=(AZURE,),
            suite_trace_speed=2.0,
            suite_long_len=400,
            suite_long_prompts=3,
        )
    }
    assert loads["saturated"].dataset.num_prompts == 9
    assert loads["steady"].dataset.num_prompts == 20
    assert loads["steady"].load.request_rate == 2.0
    assert loads["azure"].dataset.num_prompts == 74
    assert loads["azure"].dataset.trace_time_scale == 0.75
    assert loads["interference"].dataset.random_input_len == 400
    assert loads["interference"].dataset.num_prompts == 3
    assert "300 to 400 tokens" in loads["interference"].about


def test_limits_are_those_of_the_goal_unless_given() -> None:
    by_name = {each.name: each for each in planned()}
    assert by_name["sessions"].limits.goodput == ("ttft:1000", "itl:100")
    assert by_name["sessions"].limits.find_sessions
    assert not by_name["steady"].limits.find_sessions
    config = SuiteConfig(suite="article", suite_attainment=0.95)
    sessions = plan_suite(config, DatasetConfig(), LimitsConfig(goodput=("e2el:5",)))[2]
    assert sessions.limits.goodput == ("e2el:5",)
    assert sessions.limits.attainment == 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite_loads": ("nothing",)}, "--suite-loads nothing is none of steady, saturated"),
        ({"suite_traces": (Path("x.txt"),)}, "--suite-traces x.txt is neither"),
        ({"suite_traces": (AZURE, Path("b.csv"))}, "two traces of one kind"),
    ],
)
def test_what_the_suite_does_not_have_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**options)


def test_some_of_its_loads_send_what_they_send_beside_the_others() -> None:
    (alone,) = planned(suite_loads=("sessions",))
    assert alone == planned()[2]


def test_servers_are_those_that_are_installed(tmp_path: Path) -> None:
    found, left_out = default_servers(tmp_path)
    names = [each.name for each in found]
    assert {"baton-pd", "baton-unified"} <= set(names)
    assert left_out["llama.cpp"] == left_out["openvino"] == "not installed"
    program = tmp_path / "openvino/bin/python"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    found, left_out = default_servers(tmp_path)
    assert [each.name for each in found] == [*names, "openvino"]
    assert "openvino" not in left_out


@pytest.mark.parametrize(
    ("measure", "ours", "theirs", "value"),
    [
        (Measure.TIMES_LESS, 2.0, 5.0, 2.5),
        (Measure.TIMES_MORE, 5.0, 2.0, 2.5),
        (Measure.TIMES_MORE, 5.0, 0.0, float("inf")),
        (Measure.OWN_SHARE, 0.7, 0.9, 0.7),
    ],
)
def test_larger_is_always_better(
    measure: Measure, ours: float, theirs: float, value: float
) -> None:
    assert measured(measure, ours, theirs) == pytest.approx(value)


SAMPLES = {
    "baton-pd": {
        "TTFT mean": [100.0, 120.0, 110.0],
        "requests": [9.0, 8.0, 9.0],
        "ITL p99": [20.0, 25.0, 22.0],
        "sustained": [10.0, 12.0, 11.0],
        "utilization": [0.93, 0.91, 0.92],
    },
    "baton-unified": {
        "TTFT mean": [100.0, 90.0, 110.0],
        "requests": [10.0, 10.0, 10.0],
        "ITL p99": [200.0, 220.0, 210.0],
        "sustained": [5.0, 5.0, 4.0],
        "utilization": [0.95, 0.95, 0.95],
    },
    "slow|one": {
        "TTFT mean": [400.0, 420.0, 900.0],
        "requests": [4.0, 4.0, 4.0],
        "ITL p99": [30.0, 40.0, 35.0],
        "sustained": [1.0, 0.0, 0.0],
        "utilization": [0.9, 0.9, 0.9],
    },
    "quick": {
        "TTFT mean": [200.0, 360.0, 220.0],
        "requests": [5.0, 5.0, 5.0],
        "ITL p99": [300.0, 300.0, 300.0],
    },
}
UNITS = {"TTFT mean": "ms", "ITL p99": "ms", "requests": "1/s", "sustained": "sessions"}


def suite_report() -> SuiteReport:
    loads = {}
    for claim in CLAIMS:
        servers = {
            name: LoadFigures(
                figures={
                    each.quantity: figure(
                        SAMPLES[name][each.quantity], UNITS.get(each.quantity, "share")
                    )
                    for each in CLAIMS
                    if each.load == claim.load and each.quantity in SAMPLES[name]
                },
                bottlenecks=[],
                errors={"HTTP 500": 2} if name == "quick" and claim.load == "steady" else {},
            )
            for name in SAMPLES
        }
        loads[claim.load] = LoadCompared(
            about=f"about {claim.load}",
            dataset={"source": "ShareGPT"},
            settings={},
            servers={name: each for name, each in servers.items() if each.figures},
        )
    return SuiteReport(
        suite="article",
        command=["baton", "bench", "compare", "--suite", "article"],
        started_at="2026-01-01T00:00:00+00:00",
        machine=Machine(
            cpu="a processor",
            cores=2,
            memory_bytes=8 << 30,
            last_level_cache_bytes=1,
            isa="",
            available_isas=[],
            system="a system",
            python="3.11",
            versions={"baton": "0.1.0"},
            load_average_before=0.0,
            other_cores=0.0,
        ),
        rounds=3,
        loads=loads,
        servers={
            name: Served(backend="vllm", server={"version": f"{name} 1.2"}, failure=None)
            for name in SAMPLES
        },
        left_out={"absent": "not installed"},
    )


def test_each_claim_is_held_against_the_engine_that_does_best() -> None:
    verdicts = {each.claim.title: each for each in beside_best_peer(suite_report())}
    assert {title: each.theirs for title, each in verdicts.items()} == {
        "TTFT, mean": "quick",
        "throughput": "quick",
        "p99 ITL beside long prompts": "slow|one",
        "sessions within the limits": "slow|one",
        "processors busy": "slow|one",
    }
    ttft = verdicts["TTFT, mean"]
    assert (ttft.lowest, ttft.median, ttft.highest) == (2.0, 2.0, 3.0)  # of the rounds' own
    assert not ttft.is_reached
    assert verdicts["sessions within the limits"].is_reached
    assert verdicts["processors busy"].is_reached


def test_beside_unified_each_claim_is_held_against_it_alone() -> None:
    verdicts = beside_unified(suite_report())
    assert {each.theirs for each in verdicts} == {"baton-unified"}
    assert [each.goal.text for each in verdicts] == ["not worse", "0.95 x", "3 x", "more", "89 %"]
    assert [each.is_reached for each in verdicts] == [True, False, True, True, True]


def test_a_round_that_only_one_has_is_left_out() -> None:
    report = suite_report()
    steady = report.loads["steady"].servers
    steady["quick"] = msgspec.structs.replace(
        steady["quick"], figures={"TTFT mean": figure([150.0], "ms")}
    )
    verdict = beside_best_peer(report)[0]
    assert (verdict.theirs, verdict.lowest, verdict.highest) == ("quick", 1.5, 1.5)


def rows(page: str, section: str) -> list[list[str]]:
    """Cells of the section's first table, its heading and line left out."""
    lines = page[page.index(section) :].splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def test_the_page_shows_what_is_measured_beside_the_goal() -> None:
    page = to_page(suite_report(), "", {})
    beside = rows(page, "## Beside the best other engine")
    assert beside[0][0] == "TTFT, mean, ms"
    assert beside[0][4:] == ["2.00 (2.00 to 3.00) x", "3.1 x", "no", "3.1 times shorter"]
    assert beside[2][3:] == [
        *["slow\\|one: 35 (30 to 40)", "1.59 (1.50 to 1.60) x"],
        *["5 x", "no", "latency 40 % lower"],
    ]
    assert beside[3][4:] == ["∞ (10.00 to ∞) x", "2.7 x", "yes", "2.7 times as many"]
    unified = rows(page, "## Beside Baton with prefill and decode in one engine")
    assert [row[-2] for row in unified] == ["yes", "no", "yes", "yes", "yes"]
    assert rows(page, "### steady")[0] == [
        *["TTFT mean, ms", "110 (100 to 120)", "100 (90 to 110)", "420 (400 to 900)"],
        "220 (200 to 360)",
    ]
    assert "baton bench compare --suite article" in page
    assert "| baton-pd | baton-pd 1.2 |" in page
    assert "absent was left out: not installed" in page
    assert "quick, steady: 2 requests failed: HTTP 500" in page


def test_what_stands_by_hand_is_kept_word_for_word() -> None:
    words = "It is *bounded*.\n\n| a | b |\n| --- | --- |"
    page = to_page(suite_report(), words, {})
    assert hand_written(page) == words
    assert to_page(suite_report(), hand_written(page), {}) == page
    assert hand_written(to_page(suite_report(), "", {})) == ""
    assert hand_written(f"{MARKS[0]} without an end") == ""


def test_plots_are_small_and_well_formed() -> None:
    plots = plots_of(suite_report())
    assert list(plots) == [
        *["steady-ttft-mean.svg", "saturated-requests.svg", "interference-itl-p99.svg"],
        *["sessions-sustained.svg", "saturated-utilization.svg"],
    ]
    for _, svg in plots.values():
        assert len(svg) < 4000
        root = ElementTree.fromstring(svg)
        assert "prefers-color-scheme:dark" in svg
        width = float(root.attrib["width"])
        for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert 0 <= float(bar.attrib["width"]) < width


def test_a_bar_is_as_long_as_its_median_and_names_stay_text() -> None:
    figures = {"<a>": figure([1.0, 2.0, 4.0], "s"), "none": figure([0.0], "s")}
    svg = bars("a & b", figures, frozenset({"none"}))
    first, second = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    assert float(first.attrib["width"]) == 2 * 360 / 4
    assert (first.attrib["class"], second.attrib["class"]) == ("other", "ours")
    assert float(second.attrib["width"]) == 0
    assert "2 (1 to 4)" in svg


def test_a_page_is_written_anew_from_a_saved_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, page = tmp_path / "suite.json", tmp_path / "benchmarks.md"
    saved.write_bytes(suite_report().to_json())
    assert read_suite_report(saved) == suite_report()
    page.write_text(f"old\n{MARKS[0]}\nkept\n{MARKS[1]}\n")
    command = ["bench", "compare", f"--from-json={saved}", f"--markdown={page}"]
    assert cli.main(command) == 0
    assert hand_written(page.read_text()) == "kept"
    assert "old" not in page.read_text()
    for link in re.findall(r"\]\((benchmarks/[^)]*)\)", page.read_text()):
        assert (tmp_path / link).read_text().startswith("<svg")
    assert "beside the goals" in capsys.readouterr().out


def test_what_is_no_report_and_a_page_of_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "other.json"
    saved.write_text('{"benchmark": "compare"}')
    assert cli.main(["bench", "compare", f"--from-json={saved}"]) == 1
    assert "is no report of a suite" in capsys.readouterr().err
    assert cli.main(["bench", "compare", f"--markdown={tmp_path / 'page.md'}"]) == 1
    assert "add --suite article" in capsys.readouterr().err


SMALL = [
    *["bench", "compare", "--suite", "article", "--rounds=2", "--warmup-requests=0"],
    *["--suite-loads", "interference", "--suite-streams=2", "--suite-long-prompts=1"],
]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    def answer(request: Request) -> Sequence[Step]:
        number = request.body["sampling_params"]["max_new_tokens"]
        return [STREAM_HEAD, event(generated(number, is_end=True)), DONE]

    with ScriptedServer(answer).in_thread() as running:
        yield running


def test_a_suite_saves_every_turn_and_sends_rounds_of_their_own(
    server: ScriptedServer, tmp_path: Path
) -> None:
    path = tmp_path / "suite.json"
    options = ["--servers", f"one=sglang@{server.url}", f"--json={path}"]
    assert cli.main([*SMALL, *options]) == 0
    longs = [str(each.body) for each in server.requests if len(each.body["input_ids"]) > 60]
    assert len(longs) == len(set(longs)) == 2
    report = json.loads(path.read_bytes())
    assert report["is_stopped"] is False
    assert list(report["loads"]) == ["interference"]
    figures = report["loads"]["interference"]["servers"]["one"]["figures"]
    assert len(figures["TTFT mean"]["samples"]) == 2
    assert f"one=sglang@{server.url}" in report["command"]


def test_a_stream_that_fails_is_the_servers_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(lambda _: [STREAM_HEAD, DONE]).in_thread() as broken:
        status = cli.main([*SMALL, "--servers", f"one=sglang@{broken.url}"])
    assert status == 1
    assert "one failed: a background stream failed: the answer has no tokens" in (
        capsys.readouterr().out
    )


def test_a_trace_that_is_not_there_is_told_before_anything_starts(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL[:4], "--suite-traces", "absent.csv", "--servers", f"one=sglang@{server.url}"]
    assert cli.main(command) == 1
    assert "there is no file absent.csv" in capsys.readouterr().err
    assert server.requests == []
