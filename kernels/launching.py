"""The GPU that a Triton program is launched on."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["on_device"]


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Launch on the GPU of x; Triton's interpreter has none."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
