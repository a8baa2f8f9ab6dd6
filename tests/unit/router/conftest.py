"""A router and fake workers in one event loop, on ports the system chose."""

import asyncio
import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from baton.router.app import RouterApp
from baton.router.config import HealthRules, RouterConfig, WorkerRole, WorkerSpec
from baton.router.http.connection import Limits
from baton.router.http.server import HttpServer
from baton.testing.fake_worker import FakeWorker

SCENARIO_LIMIT_S = 20.0
FAST_PROBES = HealthRules(interval_s=0.05, timeout_s=1.0)
PATIENT_PROBES = HealthRules(interval_s=0.05, timeout_s=20.0)
"""Where no worker hangs: a busy machine must not look like one that does."""


class Cluster:
    """A running router, its workers, and a client session."""

    def __init__(self, app: RouterApp, url: str, session: aiohttp.ClientSession):
        self.app = app
        self.fleet = app.fleet
        self.generation = app.generation
        self.reloading = app.reloading
        self.url = url
        self.session = session
        self.prefills: list[FakeWorker] = []
        self.decodes: list[FakeWorker] = []
        self.regulars: list[FakeWorker] = []

    @property
    def workers(self) -> list[FakeWorker]:
        return [*self.prefills, *self.decodes, *self.regulars]

    async def post(self, path: str, body: Any, **kwargs: Any) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer; `body` may be ready-made bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=io.BytesIO(data), **kwargs) as response:
            return response.status, response.headers, await response.read()

    async def get(self, path: str, **kwargs: Any) -> tuple[int, Any, bytes]:
        async with self.session.get(self.url + path, **kwargs) as response:
            return response.status, response.headers, await response.read()

    async def until_healthy(self, num: int) -> None:
        await self.fleet.until(lambda pool: sum(w.is_healthy for w in pool) == num)

    async def until_quiet(self) -> None:
        """Wait until no leg is in flight any more."""
        await self.fleet.until(lambda pool: not any(w.num_in_flight for w in pool))
        self.fleet.pool.check_invariants()


def error_of(body: bytes) -> Any:
    return json.loads(body)["error"]


ClusterMaker = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


@contextlib.asynccontextmanager
async def make_cluster(
    num_prefill: int = 1, num_decode: int = 1, num_regular: int = 0, **options: Any
) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        by_role = {
            role: [await stack.enter_async_context(FakeWorker(role.value)) for _ in range(num)]
            for role, num in zip(WorkerRole, (num_prefill, num_decode, num_regular), strict=True)
        }
        specs = [
            WorkerSpec(w.url, role, 8998 if role is WorkerRole.PREFILL else None)
            for role, workers in by_role.items()
            for w in workers
        ]
        options = {"health": FAST_PROBES, "pd_disaggregation": not num_regular, "seed": 1} | options
        config = RouterConfig(workers=tuple(specs), **options)
        app = RouterApp(config)
        url = await stack.enter_async_context(serving(app, body_bytes=config.max_payload_bytes))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        cluster = Cluster(app, url, session)
        cluster.prefills, cluster.decodes, cluster.regulars = by_role.values()
        await cluster.until_healthy(len(specs))
        yield cluster


@contextlib.asynccontextmanager
async def serving(app: RouterApp, **limits: Any) -> AsyncIterator[str]:
    async with app.running():
        server = HttpServer(app, Limits(**limits))
        try:
            yield f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        finally:
            await server.close(1.0)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what only sockets can tell; the scenario's limit ends it."""
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.fixture(
    params=[
        pytest.param(asyncio.run, marks=pytest.mark.nightly, id="asyncio"),
        pytest.param(uvloop.run, id="uvloop"),
    ]
)
def run(
    request: pytest.FixtureRequest,
) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Run one async scenario to its end, within a limit: on the loop that is served with, and by
    night on the one that Python brings."""

    def run_scenario(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(SCENARIO_LIMIT_S):
                await scenario()

        request.param(limited())

    return run_scenario


def make_certificate(folder: Path, *options: str) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [*(options or ["-nodes"]), "-keyout", str(key), "-out", str(chain), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return chain, key


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def cluster() -> ClusterMaker:
    return make_cluster


@pytest.fixture
def captured() -> Callable[[str], Any]:
    """A capture of the exchange between SGLang's router and instrumented workers."""
    folder = Path(__file__).parent / "captures"
    return lambda name: json.loads((folder / f"{name}.json").read_text())
