"""The precision that the kernels compute in."""

import torch
from torch import Tensor

__all__ = ["compute_dtype"]


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of state and accumulation: float64 where any input has it, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32
