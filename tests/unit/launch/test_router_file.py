"""The router's options from a YAML file: the same words and checks as on the command line."""

from pathlib import Path

import pytest

from baton.core.errors import ConfigError
from baton.launch.router import config_from, make_parser
from baton.launch.router_file import read_args
from baton.router.config import RouterConfig, WorkerRole, WorkerSpec
from baton.router.policies import PolicyName

WHOLE = """
host: "::"
port: 0
policy: cache_aware        # as --policy
decode-policy: power_of_two
pd-disaggregation: true
always-split: false
cache-threshold: 0.5
max-concurrent-requests: 8
api-key: 12345
workers:
  - {url: "http://a:1", role: prefill, bootstrap-port: 8999}
  - {url: "http://b:1", role: prefill}
  - {url: "http://c:1", role: decode}
  - url: http://d:1
  - url: http://e:1
    role: unified
"""


def config_of(path: Path, *argv: str) -> RouterConfig:
    args = read_args(lambda kind: make_parser(parser_type=kind), [f"--config={path}", *argv])
    return config_from(args)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "router.yaml"
    path.write_text(WHOLE)
    return path


def test_a_whole_file(file: Path) -> None:
    config = config_of(file)
    assert (config.host, config.port, config.api_key) == ("::", 0, "12345")
    assert config.policy is PolicyName.CACHE_AWARE
    assert config.policy_for(WorkerRole.DECODE) is PolicyName.POWER_OF_TWO
    assert (config.pd_disaggregation, config.split.is_conditional) == (True, True)
    assert (config.cache.threshold, config.waiting.max_running) == (0.5, 8)
    assert config.workers == (
        WorkerSpec("http://a:1", WorkerRole.PREFILL, 8999),
        WorkerSpec("http://b:1", WorkerRole.PREFILL),
        WorkerSpec("http://c:1", WorkerRole.DECODE),
        WorkerSpec("http://d:1", WorkerRole.REGULAR),
        WorkerSpec("http://e:1", WorkerRole.REGULAR),
    )


def test_the_command_line_goes_before_the_file(file: Path) -> None:
    config = config_of(file, "--policy", "random", "--port=7", "--decode", "http://z:1")
    assert (config.policy, config.port, config.cache.threshold) == (PolicyName.RANDOM, 7, 0.5)
    assert config.workers == (WorkerSpec("http://z:1", WorkerRole.DECODE),)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert config_of(path) == RouterConfig()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("polcy: random", "'polcy' is unknown; did you mean 'policy'?"),
        ("policy: fastest", "--policy/--routing-policy: invalid choice: 'fastest'"),
        ("port: many", "--port: invalid int value: 'many'"),
        ("port: 70000", "--port 70000 is out of range; it must be from 0 to 65535"),
        ("port:", "port is None; it must be a number or text"),
        ("port: true", "port is True"),
        ("always-split: 1", "always-split is 1; it must be true or false"),
        ("port: 1\nport: 2", "line 2: 'port' is there twice"),
        ("policy: [random", "it is no YAML"),
        ("- policy", "it is no list of options"),
        ("prefill: http://a:1", "list workers under 'workers'"),
        ("worker-urls: [http://a:1]", "list workers under 'workers'"),
        ("config: other.yaml", "'config' is unknown"),
        ("workers: http://a:1", "workers is no list"),
        ("workers: [{role: decode}]", "workers, number 1: it has no url"),
        ("workers: [{url: 'http://a:1', role: chef}]", "role is 'chef'; it must be one of prefill"),
        ("workers: [{url: 'http://a:1', rol: decode}]", "'rol' is unknown; did you mean 'role'?"),
        ("workers: [{url: 'http://a:1', bootstrap-port: 1}]", "only a prefill worker"),
        ("workers: [{url: 'http://a:1', role: decode}]", "--pd-disaggregation"),
        ("workers: [{url: 'a:1'}]", "lacks http:// or https://"),
        ("host: !!python/name:os.getcwd", "it is no YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config_of(path)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*none\.yaml: it cannot be read"):
        config_of(tmp_path / "none.yaml")
