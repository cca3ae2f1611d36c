"""Devices and fixtures of the kernel tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from installed import SETS, WHY
from torch import Tensor

from vimlrp.kernels import compiled


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Fresh memory holds NaN, so that an element which nothing wrote shows; counts the calls."""
    calls = [0]

    def poison(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned_create(*args: Any, **kwargs: Any) -> Tensor:
            calls[0] += 1
            x = create(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return poisoned_create

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poison(Tensor.new_empty))
    return lambda: calls[0]


@pytest.fixture(params=SETS or [pytest.param("none", marks=pytest.mark.skip(WHY))])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that runs here, forced."""
    monkeypatch.setenv(compiled.ISA_VARIABLE, request.param)
    return str(request.param)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is asked once a process is asked again, in the test and after it."""
    cached = (compiled._load, compiled.instruction_sets, compiled._chosen)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()
