"""TLS from the command line: the openai client over https, https workers, files that do not do."""

import argparse
import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from baton.core.errors import ConfigError
from baton.launch.router import config_from, make_parser
from baton.router.config import RouterConfig
from baton.router.server import StopRequests, run_router
from baton.router.tls import TlsFiles, context_for_clients, context_for_workers
from baton.testing.fake_worker import FakeWorker

from .conftest import make_certificate

Run = Callable[[Callable[[], Any]], None]
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def config_of(*argv: str) -> RouterConfig:
    args: argparse.Namespace = make_parser().parse_args(["--port", "0", *argv])
    return config_from(args)


class Running:
    """A router as its command line starts it."""

    def __init__(self, config: RouterConfig):
        self._stop = StopRequests()
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(
            run_router(config, ready=self._port.set_result, stop=self._stop)
        )

    async def __aenter__(self) -> str:
        await asyncio.wait({self._port, self._task}, return_when=asyncio.FIRST_COMPLETED)
        return f"https://127.0.0.1:{await self._port}"

    async def __aexit__(self, *_: object) -> None:
        self._stop.ask()
        await self._task


def test_the_openai_client_over_https_to_https_workers(
    run: Run, certificate: tuple[Path, Path]
) -> None:
    chain, key = map(str, certificate)

    async def scenario() -> None:
        worker_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=chain)
        worker_side.verify_mode = ssl.CERT_REQUIRED
        worker_side.load_cert_chain(chain, key)
        async with FakeWorker("regular", tls=worker_side) as worker:
            config = config_of(
                *("--ssl-certfile", chain, "--ssl-keyfile", key, "--worker-urls", worker.url),
                *("--ca-cert-paths", chain, "--client-cert-path", chain, "--client-key-path", key),
            )
            trusting = ssl.create_default_context(cafile=chain)
            async with Running(config) as url, session(trusting) as http:
                await until_ready(http, url)
                client = openai.AsyncOpenAI(
                    base_url=f"{url}/v1",
                    api_key="none",
                    http_client=openai.DefaultAsyncHttpxClient(verify=trusting),
                    max_retries=0,
                )
                async with client:
                    assert await client.chat.completions.create(**CHAT)
                    stream = await client.chat.completions.create(**CHAT, stream=True)
                    assert [chunk async for chunk in stream]
                async with session(ssl.create_default_context()) as stranger:
                    with pytest.raises(aiohttp.ClientConnectorCertificateError):
                        await stranger.get(url)
                with pytest.raises(aiohttp.ClientError):
                    await http.get(url.replace("https", "http"))
            assert len(worker.requests) == 2

    run(scenario)


def test_a_worker_of_an_unknown_signer_is_not_used(
    run: Run, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    chain, key = map(str, certificate)
    other, _ = make_certificate(tmp_path)

    async def scenario() -> None:
        worker_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        worker_side.load_cert_chain(chain, key)
        async with FakeWorker("regular", tls=worker_side) as worker:
            config = config_of(
                *("--ssl-certfile", chain, "--ssl-keyfile", key),
                *("--worker-urls", worker.url, "--ca-cert-paths", str(other)),
            )
            trusting = ssl.create_default_context(cafile=chain)
            async with Running(config) as url, session(trusting) as http:
                reason = ""
                async with asyncio.timeout(10):
                    while not reason:
                        async with http.get(f"{url}/workers") as answer:
                            reason = (await answer.json())["workers"][0]["reason"]
                assert "TLS failed" in reason
                async with http.get(f"{url}/readiness") as answer:
                    assert answer.status == 503
                assert not worker.other_requests

    run(scenario)


def session(trusted: ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted))


async def until_ready(http: aiohttp.ClientSession, url: str) -> None:
    status = 0
    async with asyncio.timeout(10):
        while status != 200:
            async with http.get(f"{url}/readiness") as answer:
                status = answer.status


def test_flags_have_vllms_and_sglangs_names() -> None:
    files = TlsFiles(certificate="c", key="k", worker_cas=("a", "b"))
    argv = ("--ca-cert-paths", "a", "b")
    assert config_of("--ssl-certfile", "c", "--ssl-keyfile", "k", *argv).tls == files
    assert config_of("--tls-cert-path", "c", "--tls-key-path", "k", *argv).tls == files


def test_files_that_do_not_do_are_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = map(str, certificate)
    (tmp_path / "locked").mkdir()
    locked = make_certificate(tmp_path / "locked", "-passout", "pass:secret")
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate\n")
    for files, says in [
        (TlsFiles("/no/such.pem"), r"--ssl-certfile /no/such.pem cannot be read: No such file"),
        (TlsFiles(chain), "--ssl-certfile .* cannot be used"),
        (TlsFiles(str(junk), key), "--ssl-certfile .*junk.pem with key .* cannot be used"),
        (TlsFiles(chain, str(locked[1])), "the key has a passphrase; remove it with: openssl"),
    ]:
        with pytest.raises(ConfigError, match=says):
            context_for_clients(files)
    with pytest.raises(ConfigError, match=r"--ca-cert-paths .*junk.pem cannot be used"):
        context_for_workers(TlsFiles(worker_cas=(str(junk),)))
    with pytest.raises(ConfigError, match=r"--ssl-keyfile k is a key without a .*--ssl-certfile"):
        TlsFiles(key="k")
    with pytest.raises(ConfigError, match=r"--client-key-path k is a key .*--client-cert-path"):
        TlsFiles(client_key="k")
    assert context_for_clients(TlsFiles()) is None
    assert context_for_workers(TlsFiles()) is None
