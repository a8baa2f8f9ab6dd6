from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from baton.checkpoint import read_model_card
from baton.models.registry import LoadOptions, Model, load_model
from baton.testing.model_stepper import ModelStepper
from baton.testing.tiny_models import Architecture, write_tiny_model

REFERENCE = LoadOptions(backend="torch")


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Torch's threads wait for each other at every op; where other tests run too, two of them take
    many times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    """Folder of a tiny model, written once per architecture."""
    root = tmp_path_factory.mktemp("tiny")
    written: dict[Architecture, Path] = {}

    def get(architecture: Architecture) -> Path:
        if architecture not in written:
            written[architecture] = write_tiny_model(root / architecture, architecture)
        return written[architecture]

    return get


@pytest.fixture
def open_stepper() -> Iterator[Callable[..., ModelStepper]]:
    """Makes steppers, from a model or its path (run by the torch reference), and closes them at the
    end of the test."""
    opened: list[ModelStepper] = []

    def make(model: Model | Path, **options: object) -> ModelStepper:
        loaded = load_model(read_model_card(model), REFERENCE) if isinstance(model, Path) else model
        opened.append(ModelStepper(loaded, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for stepper in opened:
        stepper.close()


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; the test's end puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
