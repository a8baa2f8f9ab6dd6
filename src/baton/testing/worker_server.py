"""A whole worker in this process: the real HTTP layer over a fake engine, on a port of its own.

Elsewhere: the engine (fake_engine.py), the tokenizer (byte_tokenizer.py).
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from baton.api.app import make_app, make_runner
from baton.api.state import SERVICE, ApiConfig, PrefillResolver, ServerState, Service
from baton.core.clock import Clock, MonotonicClock
from baton.core.model_card import ModelCard
from baton.testing.byte_tokenizer import (
    BOS_ID,
    CHAT_TEMPLATE,
    EOS_ID,
    VOCAB_SIZE,
    make_byte_tokenizer,
)
from baton.testing.fake_engine import FakeEngine

FAKE_CONTROL_ADDRESS: Final = "127.0.0.1:7000"
MODEL_NAME: Final = "fake-model"


async def resolve_to_fake(host: str, port: int, room: int) -> str:
    """A `PrefillResolver` that always answers FAKE_CONTROL_ADDRESS."""
    return FAKE_CONTROL_ADDRESS


@dataclass
class FakeWorker:
    """A running worker. `session` is a client for it; `get` and `post` return (status, JSON)."""

    url: str
    port: int
    engine: FakeEngine
    service: Service
    session: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json(content_type=None)

    async def post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def post_for_events(self, path: str, body: Any) -> list[str]:
        """The payload of every event of a stream, [DONE] included."""
        async with self.session.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return events_of(await response.text())


def events_of(stream: str) -> list[str]:
    """The payloads of a complete SSE body; fails on anything that is not an event."""
    assert stream.endswith("\n\n"), stream[-80:]
    frames = stream[:-2].split("\n\n")
    assert all(frame.startswith("data: ") for frame in frames), frames
    return [frame.removeprefix("data: ") for frame in frames]


@asynccontextmanager
async def serve_fake_worker(
    engine: FakeEngine | None = None,
    *,
    config: ApiConfig | None = None,
    resolve_prefill: PrefillResolver = resolve_to_fake,
    chat_template: str | None = CHAT_TEMPLATE,
    clock: Clock | None = None,
) -> AsyncIterator[FakeWorker]:
    """A worker of the engine's role, listening on 127.0.0.1."""
    engine = engine or FakeEngine()
    app = make_app(
        ServerState(
            engine=engine,
            tokenizer=make_byte_tokenizer(chat_template),
            card=fake_card(engine.context_length),
            served_model_name=MODEL_NAME,
            role=engine.role,
            resolve_prefill=resolve_prefill,
            config=config or ApiConfig(),
            bootstrap_port=8998 if engine.role == "prefill" else None,
            clock=clock or MonotonicClock(),
        )
    )
    runner = make_runner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        async with aiohttp.ClientSession() as session:
            yield FakeWorker(
                url=f"http://127.0.0.1:{port}",
                port=port,
                engine=engine,
                service=app[SERVICE],
                session=session,
            )
    finally:
        await runner.cleanup()


def fake_card(context_length: int) -> ModelCard:
    return ModelCard(
        path=Path("fake-model.gguf"),
        model_id="fake",
        architecture="FakeForCausalLM",
        model_type="fake",
        context_length=context_length,
        vocab_size=VOCAB_SIZE,
        bos_token_id=BOS_ID,
        eos_token_ids=(EOS_ID,),
    )
