from collections.abc import Callable, Iterator

import pytest
import torch

from baton.kernels import _native
from baton.testing.native_kernels import every_kernels


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; the test's end puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def all_kernels() -> list[_native.Kernels]:
    """Every instruction set with one, two and three threads; the first is the best with one."""
    return every_kernels()
