"""The file of keys: who a key's owner is, and that no error repeats a key."""

import hashlib
from pathlib import Path

import pytest

from baton.core.errors import ConfigError
from baton.launch.router import config_from, make_parser
from baton.router.keys import OPERATOR, KeyTable, parse_keys, read_keys
from baton.router.limits import TenantRules

SECRET = "sk-very-secret"


def parse(text: str) -> KeyTable:
    return KeyTable(parse_keys(text, "FILE"))


def test_a_key_has_a_tenant_with_rules() -> None:
    table = parse(
        f"- {{key: {SECRET}, tenant: search, weight: 2, max_concurrent: 3}}\n"
        "- {key: other, tenant: batch, admin: true}\n"
    )
    caller = table.find(f"Bearer {SECRET}")
    assert caller is not None
    assert (caller.tenant, caller.is_admin) == ("search", False)
    assert caller.rules == TenantRules(weight=2, max_concurrent=3)
    admin = table.find("bearer other")
    assert admin is not None
    assert (admin.tenant, admin.is_admin) == ("batch", True)
    assert table.tenants == {"search", "batch"}


@pytest.mark.parametrize(
    "given", ["", SECRET, f"Basic {SECRET}", f"Bearer {SECRET} ", "Bearer ", "Bearer x", "Bearer é"]
)
def test_what_is_no_key_opens_nothing(given: str) -> None:
    assert parse(f"- {{key: {SECRET}, tenant: a}}").find(given) is None


def test_a_file_may_know_digests_only() -> None:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    caller = parse(f"- {{key_sha256: {digest.upper()!r}, tenant: a}}").find(f"Bearer {SECRET}")
    assert caller is not None


def test_keys_of_one_tenant_share_its_limits() -> None:
    table = parse("- {key: k1, tenant: a, max_concurrent: 3}\n- {key: k2, tenant: a, weight: 2}\n")
    callers = [table.find("Bearer k1"), table.find("Bearer k2")]
    assert [c.rules for c in callers if c] == [TenantRules(weight=2, max_concurrent=3)] * 2


def test_another_file_takes_the_place_of_the_first() -> None:
    table = KeyTable(parse_keys("- {key: old, tenant: a}", "FILE"), operator_key="op")
    table.replace(parse_keys("- {key: new, tenant: b}", "FILE"))
    assert table.find("Bearer old") is None
    assert table.find("Bearer new") is not None
    operator = table.find("Bearer op")
    assert operator is not None
    assert (operator.tenant, operator.is_admin) == (OPERATOR, True)
    assert operator.rules == TenantRules()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a list"),
        (f"{SECRET}: search", "must be a list"),
        (f'- key: "{SECRET}\n', r"is not YAML \(line 2"),
        (f"- {SECRET}", "entry 1: Expected `object`"),
        (f"- {{{SECRET}: a}}", "entry 1: it has a field that is none of tenant, key,"),
        (f"- {{key: {SECRET}}}", "entry 1: Object missing required field `tenant`"),
        ("- {key: 12345, tenant: a}", "needs quotes"),
        ("- {tenant: a}", "give one of key and key_sha256"),
        (f"- {{key: {SECRET}, key_sha256: x, tenant: a}}", "give one of key and key_sha256"),
        (f"- {{key_sha256: {SECRET}, tenant: a}}", "64 hexadecimal digits"),
        (f"- {{key: '{SECRET} x', tenant: a}}", "visible ASCII"),
        (f"- {{key: k, tenant: '{SECRET}!'}}", "tenant must be 1 to 64"),
        ("- {key: k, tenant: operator}", "the tenant of --api-key"),
        (f"- {{key: {SECRET}, tenant: a, weight: 0}}", "weight is 0; it must be above 0"),
        (f"- {{key: {SECRET}, tenant: a, weight: .nan}}", "weight is nan"),
        (f"- {{key: {SECRET}, tenant: a, max_concurrent: -1}}", "max_concurrent is -1"),
        (f"- {{key: {SECRET}, tenant: a, max_concurrent: 1.5}}", "Expected `int"),
        (f"- {{key: {SECRET}, tenant: a}}\n- {{key: {SECRET}, tenant: b}}", "entry 2 has the same"),
        (
            f"- {{key: {SECRET}, tenant: a, weight: 1}}\n- {{key: k, tenant: a, weight: 2}}",
            "entry 2: weight of tenant a is 2, but 1",
        ),
    ],
)
def test_errors_name_the_entry_and_never_the_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_keys(text, "FILE")
    assert str(caught.value).startswith("FILE")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--api-keys .*gone.yaml cannot be read: No such file"):
        read_keys(tmp_path / "gone.yaml")


def test_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {{key: {SECRET}, tenant: a}}\n")
    argv = ["--worker-urls", "http://w:1", "--api-keys", str(path)]
    plain = config_from(make_parser().parse_args(argv))
    assert plain.callers is not None
    assert plain.authorization_of_workers == "", "nobody's key goes to workers"
    assert plain.authorization_of_probes == ""
    operated = config_from(make_parser().parse_args([*argv, "--api-key", "op"]))
    assert operated.authorization_of_workers == operated.authorization_of_probes == "Bearer op"
    environ = {"BATON_WORKER_API_KEY": "w"}
    own = config_from(make_parser().parse_args([*argv, "--api-key", "op"]), environ=environ)
    assert own.authorization_of_workers == own.authorization_of_probes == "Bearer w"
    single = config_from(make_parser().parse_args(["--api-key", "op"]))
    assert single.authorization_of_workers is None, "clients' keys are for workers to check"
    with pytest.raises(ConfigError, match="--tenant-header X-T and --api-keys both"):
        config_from(make_parser().parse_args([*argv, "--tenant-header", "X-T"]))
