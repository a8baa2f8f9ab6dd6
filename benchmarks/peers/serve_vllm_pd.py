"""vLLM with prefill and decode apart: two engines, and a proxy that hands each request from one to
the other.

    PEERS_DIR/vllm/bin/python benchmarks/peers/serve_vllm_pd.py --port 8001 --model MODEL \\
        --prefill-cores 0 --decode-cores 1

A request goes to the prefill engine for one token, and with what that says of its KV to the decode
engine, which fetches the KV (NixlConnector, vllm_nixl.py) and answers; its answer is passed on as
it comes. Runs in vLLM's own environment. Elsewhere: both engines' variables (start/vllm-pd.sh).
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

_HOST: Final = "127.0.0.1"
_PREFILL_CHUNK_TOKENS: Final = 2048
_DECODE_CHUNK_TOKENS: Final = 512
_MAX_SEQUENCES: Final = 64
_POLL_S: Final = 0.2
_CONNECTOR: Final = {
    "kv_connector": "NixlConnector",
    "kv_connector_module_path": "vllm_nixl",
    "kv_buffer_device": "cpu",
}
_ASK_FOR_KV: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

Process = asyncio.subprocess.Process


class Engine:
    """One of vLLM's servers, on cores of its own."""

    def __init__(self, model: str, cores: str, chunk_tokens: int, kv_role: str):
        self.url = f"http://{_HOST}:{(port := _free_port())}"
        self._argv = [
            *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model],
            *["--served-model-name", "peer", "--dtype", "bfloat16", "--host", _HOST],
            *["--port", str(port), "--max-model-len", "4096", "--enable-chunked-prefill"],
            *["--max-num-seqs", str(_MAX_SEQUENCES)],
            *["--max-num-batched-tokens", str(chunk_tokens), "--disable-uvicorn-access-log"],
            *["--kv-transfer-config", json.dumps({**_CONNECTOR, "kv_role": kv_role})],
        ]
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parent),  # vllm_nixl.py
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_NIXL_SIDE_CHANNEL_HOST": _HOST,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(_free_port()),
        }

    async def start(self) -> Process:
        return await asyncio.create_subprocess_exec(*self._argv, env=self._environment)


class Proxy:
    """Answers 503 until both engines are ready."""

    def __init__(self, prefill: str, decode: str):
        self._prefill = prefill
        self._decode = decode
        self._session: ClientSession | None = None
        self._is_ready = False

    async def run(self, engines: list[Process], port: int) -> int:
        """Until an engine ends; its status."""
        timeout, connector = ClientTimeout(total=None), TCPConnector(limit=0)
        async with ClientSession(timeout=timeout, connector=connector) as self._session:
            application = web.Application()
            application.router.add_get("/{path:.*}", self._get)
            application.router.add_post("/v1/completions", self._complete)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, _HOST, port, backlog=128).start()
            waits = [asyncio.create_task(each.wait()) for each in engines]
            readiness = asyncio.create_task(self._wait())
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            readiness.cancel()
            return next(iter(done)).result()

    async def _wait(self) -> None:
        while not self._is_ready:
            await asyncio.sleep(_POLL_S)
            answers = [await self._answers(url) for url in (self._prefill, self._decode)]
            self._is_ready = all(answers)

    async def _answers(self, url: str) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"{url}/v1/models") as answer:
                return answer.status == 200
        except ClientError:
            return False

    async def _get(self, request: web.Request) -> web.Response:
        """What the decode engine says of itself."""
        assert self._session is not None
        if not self._is_ready:
            return web.json_response({"error": "the engines are not ready"}, status=503)
        async with self._session.get(f"{self._decode}{request.path_qs}") as answer:
            return web.Response(
                body=await answer.read(),
                status=answer.status,
                content_type=answer.content_type,
            )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        body: dict[str, Any] = await request.json()
        try:
            body["kv_transfer_params"] = await self._prompt(body)
            async with self._session.post(f"{self._decode}/v1/completions", json=body) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except ClientError as error:
            return web.json_response({"error": {"message": str(error)}}, status=502)

    async def _prompt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Where the prompt's KV is, once the prefill engine has computed it. Raises ClientError."""
        assert self._session is not None
        prompt = {**body, "stream": False, "max_tokens": 1, "kv_transfer_params": _ASK_FOR_KV}
        prompt.pop("stream_options", None)
        async with self._session.post(f"{self._prefill}/v1/completions", json=prompt) as answer:
            if answer.status != 200:
                raise ClientError(f"prefill answered {answer.status}: {await answer.text()}")
            found: dict[str, Any] = (await answer.json())["kv_transfer_params"]
            return found


@contextlib.asynccontextmanager
async def running(*engines: Engine) -> AsyncIterator[list[Process]]:
    processes = [await each.start() for each in engines]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))


async def serve(flags: argparse.Namespace) -> int:
    prefill = Engine(flags.model, flags.prefill_cores, _PREFILL_CHUNK_TOKENS, "kv_producer")
    decode = Engine(flags.model, flags.decode_cores, _DECODE_CHUNK_TOKENS, "kv_consumer")
    async with running(prefill, decode) as processes:
        return await Proxy(prefill.url, decode.url).run(processes, flags.port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prefill-cores", default="0")
    parser.add_argument("--decode-cores", default="1")
    sys.exit(asyncio.run(serve(parser.parse_args())))


if __name__ == "__main__":
    main()
