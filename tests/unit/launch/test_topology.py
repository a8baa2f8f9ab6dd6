"""Command lines of the tree that `baton serve` runs."""

import itertools
from collections.abc import Sequence

import pytest

from baton.core.errors import ConfigError
from baton.launch.topology import ServeConfig, Topology, plan_topology, url_of


def _plan(config: ServeConfig, worker_argv: Sequence[str] = ()) -> Topology:
    ports = itertools.count(40001)
    return plan_topology(
        config,
        model_path="m.gguf",
        worker_argv=worker_argv,
        num_cores=8,
        free_port=lambda: next(ports),
    )


def test_pairs_share_nothing_but_the_model() -> None:
    topology = _plan(ServeConfig(workers="2p1d"), ["--page-size=32"])
    assert [worker.name for worker in topology.workers] == ["prefill-0", "prefill-1", "decode-0"]
    ports = [worker.port for worker in topology.workers]
    assert len(set(ports)) == 3
    for worker in topology.workers:
        assert worker.argv[1:4] == ("-m", "baton.launch_server", "--model-path=m.gguf")
        assert f"--port={worker.port}" in worker.argv
        assert "--page-size=32" in worker.argv
        assert worker.probe_path == "/health"


def test_prefill_yields_the_cores_and_decode_does_not() -> None:
    prefill, decode = _plan(ServeConfig(workers="1p1d")).workers
    assert "--disaggregation-mode=prefill" in prefill.argv
    assert "--engine-nice=19" in prefill.argv
    assert "--disaggregation-mode=decode" in decode.argv
    assert not any("nice" in word or "bootstrap" in word for word in decode.argv)


@pytest.mark.parametrize(
    ("config", "threads"),
    [
        (ServeConfig(workers="1p1d"), [None, "8"]),
        (ServeConfig(workers="1p3d"), [None, "2", "2", "2"]),
        (ServeConfig(unified=1), ["8"]),
        (ServeConfig(unified=9), ["1"] * 9),
    ],
)
def test_decode_and_unified_workers_share_the_cores(
    config: ServeConfig, threads: list[str | None]
) -> None:
    for worker, wanted in zip(_plan(config).workers, threads, strict=True):
        given = [word.partition("=")[2] for word in worker.argv if "--num-threads" in word]
        assert given == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(("workers", "threads"), [("1p1d", "4"), ("2p1d", "4"), ("1p3d", "2")])
def test_decode_leaves_cores_and_time_to_prefill_while_prompts_are_computed(
    workers: str, threads: str
) -> None:
    for worker in _plan(ServeConfig(workers=workers)).workers:
        given = [word for word in worker.argv if word.startswith("--shared-")]
        is_decode = worker.name.startswith("decode")
        assert given == ([f"--shared-threads={threads}", "--shared-time=0.5"] if is_decode else [])


def test_decode_takes_whole_requests_as_prefill_has_no_other_cores_unless_all_are_split() -> None:
    whole = {"--takes-whole-requests", "--step-target-ms=70", "--smooth-step-target-ms=20"}
    prefill, decode = _plan(ServeConfig()).workers
    assert not whole & {*prefill.argv}
    assert whole <= {*decode.argv}
    _, decode = _plan(ServeConfig(always_split=True)).workers
    assert not whole & {*decode.argv}
    with pytest.raises(ConfigError, match="leave out --always-split"):
        ServeConfig(unified=1, always_split=True)


def test_who_reads_prompts_reads_short_ones_first() -> None:
    for config, readers in (
        (ServeConfig(), {"prefill-0", "decode-0"}),
        (ServeConfig(always_split=True), {"prefill-0"}),
        (ServeConfig(unified=1), set()),
    ):
        workers = _plan(config).workers
        assert {each.name for each in workers if "--prompt-slack-ms=2" in each.argv} == readers


def test_the_router_hears_which_prompts_are_too_long_for_decode() -> None:
    assert "--max-whole-tokens=99" in _plan(ServeConfig(max_whole_tokens=99)).router.argv


def test_threads_that_the_user_names_come_last_and_count() -> None:
    decode = _plan(ServeConfig(), ["--num-threads=3"]).workers[1]
    assert [word for word in decode.argv if "--num-threads" in word][-1] == "--num-threads=3"


def test_the_router_is_told_every_worker() -> None:
    topology = _plan(ServeConfig(workers="1p2d", port=8123, policy="round_robin"))
    prefill, *decodes = topology.workers
    bootstrap = [word for word in prefill.argv if word.startswith("--disaggregation-bootstrap")]
    words = topology.router.argv[3:]
    assert words == (
        *("--host=127.0.0.1", "--port=8123", "--policy=round_robin", "--pd-disaggregation"),
        *("--prefill", prefill.url, bootstrap[0].partition("=")[2]),
        *("--decode", decodes[0].url, "--decode", decodes[1].url),
    )
    assert topology.router.url == "http://127.0.0.1:8123"
    assert topology.router.probe_path == "/readiness"


def test_unified_workers_stand_behind_the_router_too() -> None:
    topology = _plan(ServeConfig(unified=2))
    assert [worker.name for worker in topology.workers] == ["unified-0", "unified-1"]
    assert all("--disaggregation-mode=null" in worker.argv for worker in topology.workers)
    urls = tuple(worker.url for worker in topology.workers)
    assert topology.router.argv[-3:] == ("--worker-urls", *urls)


@pytest.mark.parametrize(
    ("workers", "mend"),
    [("x", "try 2p1d"), ("2p", "try 2p1d"), ("0p1d", "--unified 1"), ("1p0d", "--workers 1p1d")],
)
def test_impossible_trees_are_refused(workers: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=f"--workers {workers} .*{mend}"):
        ServeConfig(workers=workers)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("example.org", "http://example.org:1"),
    ],
)
def test_url_of_a_listening_address(host: str, url: str) -> None:
    assert url_of(host, 1) == url


def test_two_trees_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        ServeConfig(unified=1, workers="2p1d")
    assert ServeConfig(unified=1).unified == 1
