"""What `baton serve` passes on is what workers and router understand."""

import argparse
import itertools

import pytest

from baton.core.errors import ConfigError
from baton.engine.config import EngineConfig
from baton.launch import router, serve, server
from baton.launch.flags import add_flags, from_args
from baton.launch.server import WorkerConfig
from baton.launch.topology import PREFILL_NICE, ServeConfig, Topology, plan_topology


@pytest.fixture
def topology() -> Topology:
    ports = itertools.count(40001)
    config, options = ServeConfig(workers="2p1d"), serve.WorkerOptions(served_model_name="tiny")
    return plan_topology(
        config,
        model_path="m.gguf",
        worker_argv=serve._worker_argv(options),
        router_argv=serve._router_argv(config, options),
        num_cores=4,
        free_port=lambda: next(ports),
    )


def _as_worker(argv: tuple[str, ...]) -> WorkerConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser, WorkerConfig, EngineConfig)
    return from_args(WorkerConfig, parser.parse_args(argv[3:]))


def test_workers_understand_their_command_lines(topology: Topology) -> None:
    prefill, _, decode = (_as_worker(spec.argv) for spec in topology.workers)
    assert (prefill.disaggregation_mode, prefill.engine_nice) == ("prefill", PREFILL_NICE)
    assert (decode.disaggregation_mode, decode.engine_nice) == ("decode", 0)
    assert decode.served_model_name == "tiny"
    assert decode.port == topology.workers[2].port


def test_the_router_understands_its_command_line(topology: Topology) -> None:
    config = router.config_from(router.make_parser().parse_args(topology.router.argv[3:]))
    assert [spec.url for spec in config.workers] == [spec.url for spec in topology.workers]
    bootstrap_ports = [_as_worker(spec.argv).disaggregation_bootstrap_port
                       for spec in topology.workers[:2]]  # fmt: skip
    assert [spec.bootstrap_port for spec in config.workers] == [*bootstrap_ports, None]
    assert config.pd_disaggregation
    assert config.shutdown_grace_s == ServeConfig().drain_timeout


def test_the_key_is_on_no_command_line() -> None:
    options = serve.WorkerOptions(api_key="sesame")
    assert not any("sesame" in word for word in serve._worker_argv(options))
    environ = serve._environ(options, "a secret of the tree")
    assert environ[serve.API_KEY_VARIABLE] == "sesame"
    assert environ[serve.CLUSTER_SECRET_VARIABLE] == "a secret of the tree"


def test_the_link_and_verification_reach_the_workers() -> None:
    options = serve.WorkerOptions(simulate_link="10Gbps,1ms", verify_kv=True)
    worker = _as_worker(("", "", "", *serve._worker_argv(options)))
    assert (worker.simulate_link, worker.verify_kv) == ("10Gbps,1ms", True)
    worker = _as_worker(("", "", "", *serve._worker_argv(serve.WorkerOptions())))
    assert (worker.simulate_link, worker.verify_kv) == (None, False)


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_link_that_makes_no_sense_is_told_before_anything_starts(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--simulate-link", "fast"]
    if command == "serve":
        with pytest.raises(ConfigError, match=r"--simulate-link 'fast': .* try \"10Gbps,1ms\""):
            serve.main(argv)
    else:
        assert server.main(argv) == 2
        assert "error: --simulate-link 'fast'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "name"),
    [(None, "SmolLM2-135M-Instruct"), ("org/name", "org/name"), ("{folder}/m.gguf", "m")],
)
def test_the_served_name(
    wanted: str | None, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("models")
    path = folder / "m.gguf"
    path.touch()
    given = None if wanted is None else wanted.format(folder=folder)
    assert serve._served_name(serve.WorkerOptions(), given, path) == name
    assert serve._served_name(serve.WorkerOptions(served_model_name="x"), given, path) == "x"
