"""Workers that several tests share: starting a real model costs seconds, so it is done once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.testing.processes import Server, router, running, worker
from baton.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few layers with a tokenizer: starts in moments, says nonsense."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smol_pd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server, Server]]:
    """SmolLM2 on one prefill and one decode worker behind Baton's router."""
    folder = tmp_path_factory.mktemp("smol-pd")
    prefill, decode = worker("prefill", None, folder), worker("decode", None, folder)
    front = router([prefill, decode], folder)
    with running(prefill, decode, front):
        yield front, prefill, decode


@pytest.fixture(scope="session")
def smol_unified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 on one worker that does both."""
    (server,) = [worker("null", None, tmp_path_factory.mktemp("smol-unified"))]
    with running(server):
        yield server
