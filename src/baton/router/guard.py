"""Who may ask the router for what, before a body is read.

With --api-key there is one key, and it opens everything. With --api-keys every key has a tenant,
and opens only the routes that make tokens or name models, unless it is an administrator's: tenants
do not remove each other's workers, empty caches, or end each other's requests.
Invariant: a caller is known before its request is handled; no answer tells whether a key is close.
Elsewhere: keys (keys.py), limits (tenants.py).
"""

from baton.messages.announcement import ANNOUNCE_PATH
from baton.router.announcements import is_small
from baton.router.config import RouterConfig
from baton.router.errors import Problem
from baton.router.http.messages import Request
from baton.router.keys import KeyTable, has_key
from baton.router.requests import GENERATION_ROUTES

OPEN_ROUTES = frozenset(("/health", "/liveness", "/readiness", "/health_generate", "/metrics"))
"""What probes and scrapers ask, without a key."""

_TENANT_ROUTES = frozenset(
    (*GENERATION_ROUTES, "/v1/models", "/get_model_info", "/model_info", "/queue")
)
_MODEL_PREFIX = "/v1/models/"


class Guard:
    """`keys` is None where one key opens everything."""

    def __init__(self, key: str | None, keys: KeyTable | None):
        self._key = key
        self._keys = keys

    def problem_with(self, request: Request) -> Problem | None:
        """Why the request must not go on, if so; else its caller is known (`request.caller`)."""
        if request.path in OPEN_ROUTES or request.caller is not None:
            return None
        if request.path == ANNOUNCE_PATH:
            return None if is_small(request) else WRONG_KEY
        given = request.headers.get("authorization", "")
        if self._keys is None:
            return None if self._key is None or has_key(given, self._key) else WRONG_KEY
        caller = self._keys.find(given)
        if caller is None:
            return WRONG_KEY
        if not caller.is_admin and not _is_for_tenants(request.path):
            return _not_permitted(request.path)
        request.caller = caller
        return None


def guard_of(config: RouterConfig, keys: KeyTable | None) -> Guard | None:
    """None: everybody may ask for everything."""
    return None if config.api_key is None and keys is None else Guard(config.api_key, keys)


def _is_for_tenants(path: str) -> bool:
    return path in _TENANT_ROUTES or path.startswith(_MODEL_PREFIX)


def _not_permitted(path: str) -> Problem:
    return Problem(
        status=403,
        code="permission_denied",
        message=f"{path} needs a key with 'admin: true' in the file of --api-keys, or --api-key",
    )


WRONG_KEY = Problem(
    status=401,
    code="invalid_api_key",
    message="the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
)
