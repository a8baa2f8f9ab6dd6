"""Whose request it is, by its API key, and the file that says so.

    - key: "sk-..."                # or key_sha256: its digest, to keep no secret in the file
      tenant: search
      weight: 2                    # all others are optional
      max_concurrent: 8

Invariant: nothing said about the file, in an error or a log, has any of its keys in it. Of a key
its digest is kept, by which it is found: Python mixes a secret of the process into every hash, so
the time this takes tells nothing about the digests in the table.
Elsewhere: what limits mean (limits.py), answers without a key (guard.py).
"""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml

from baton.core.errors import ConfigError
from baton.router.limits import TenantRules

OPERATOR = "operator"
"""The tenant of --api-key beside a file of keys."""

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_KEY = re.compile(r"[!-~]{1,512}")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request. `is_admin`: may ask for everything, not for tokens alone."""

    tenant: str
    rules: TenantRules = TenantRules()
    is_admin: bool = False


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One item of the file. What is None is said by another key of the tenant, or not limited."""

    tenant: str
    key: str | None = None
    key_sha256: str | None = None
    admin: bool = False
    weight: float | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_priority: int | None = None


Callers = Mapping[bytes, Caller]
"""By the SHA-256 of their keys."""

_POSITIVE = ("weight", "max_concurrent", "requests_per_minute", "tokens_per_minute")
_RULES = TenantRules.__struct_fields__


class KeyTable:
    """Who may ask. `replace` makes another file's keys count from the next request on; what runs
    runs on."""

    def __init__(self, callers: Callers, operator_key: str | None = None):
        self._fixed: dict[bytes, Caller] = {}
        if operator_key is not None:
            operator = Caller(tenant=OPERATOR, is_admin=True)
            self._fixed[_digest(operator_key)] = operator
        self.replace(callers)

    def replace(self, callers: Callers) -> None:
        self._callers = {**callers, **self._fixed}

    @property
    def tenants(self) -> frozenset[str]:
        return frozenset(caller.tenant for caller in self._callers.values())

    def find(self, authorization: str) -> Caller | None:
        """The caller with this `Authorization` header."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._callers.get(_digest(key))


def has_key(authorization: str, key: str) -> bool:
    """Whether the header carries this one key, compared in the same time whatever it carries."""
    return hmac.compare_digest(authorization.encode("latin-1"), f"Bearer {key}".encode())


def read_keys(path: Path) -> dict[bytes, Caller]:
    """The callers in a file; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--api-keys {path} cannot be read: {reason}") from None
    return parse_keys(text, f"--api-keys {path}")


def parse_keys(text: str, source: str) -> dict[bytes, Caller]:
    """`source` begins every error; raises ConfigError."""
    entries = _entries(text, source)
    digests = [_entry_digest(entry, at) for entry, at in entries]
    rules = _rules_by_tenant(entries)
    callers: dict[bytes, Caller] = {}
    for (entry, at), digest in zip(entries, digests, strict=True):
        if digest in callers:
            raise ConfigError(f"{at} has the same key as an earlier entry; remove one of them")
        callers[digest] = Caller(
            tenant=entry.tenant, rules=rules[entry.tenant], is_admin=entry.admin
        )
    return callers


def _entries(text: str, source: str) -> list[tuple[KeyEntry, str]]:
    """Each entry and how errors name it. The parsers' own texts are left out where they quote."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigError(f"{source} is not YAML{where}") from None
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{source} must be a list of entries with a key and a tenant each")
    found = []
    for number, item in enumerate(content, 1):
        at = f"{source}: entry {number}"
        try:
            entry = msgspec.convert(item, KeyEntry)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{at}: {_unquoted(error)}") from None
        _check(entry, at)
        found.append((entry, at))
    return found


def _unquoted(error: msgspec.ValidationError) -> str:
    """The parser's text, unless it repeats what the file has in the place of a field's name."""
    if "unknown field" in str(error):
        return f"it has a field that is none of {', '.join(KeyEntry.__struct_fields__)}"
    return f"{error}; a key of digits alone needs quotes"


def _check(entry: KeyEntry, at: str) -> None:
    if not _TENANT.fullmatch(entry.tenant) or entry.tenant == OPERATOR:
        raise ConfigError(
            f"{at}: tenant must be 1 to 64 letters, digits, '.', '_' or '-', and not "
            f"{OPERATOR!r}, which is the tenant of --api-key"
        )
    for name in _POSITIVE:
        value = getattr(entry, name)
        if value is not None and not (0 < value < math.inf):
            raise ConfigError(f"{at}: {name} is {value:g}; it must be above 0")


def _entry_digest(entry: KeyEntry, at: str) -> bytes:
    if (entry.key is None) == (entry.key_sha256 is None):
        raise ConfigError(f"{at}: give one of key and key_sha256")
    if entry.key_sha256 is not None:
        if not _DIGEST.fullmatch(entry.key_sha256):
            raise ConfigError(
                f"{at}: key_sha256 is not 64 hexadecimal digits; make it by "
                "printf %s KEY | sha256sum"
            )
        return bytes.fromhex(entry.key_sha256)
    assert entry.key is not None
    if not _KEY.fullmatch(entry.key):
        raise ConfigError(f"{at}: key is not 1 to 512 visible ASCII characters without spaces")
    return _digest(entry.key)


def _rules_by_tenant(entries: list[tuple[KeyEntry, str]]) -> dict[str, TenantRules]:
    """Keys of one tenant share its limits; they are said at any one of them."""
    said: dict[str, dict[str, float]] = {}
    for entry, at in entries:
        rules = said.setdefault(entry.tenant, {})
        for name in _RULES:
            value = getattr(entry, name)
            if value is None:
                continue
            if rules.setdefault(name, value) != value:
                raise ConfigError(
                    f"{at}: {name} of tenant {entry.tenant} is {value:g}, but {rules[name]:g} in "
                    "an earlier entry; keys of one tenant share its limits"
                )
    return {tenant: msgspec.convert(rules, TenantRules) for tenant, rules in said.items()}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
