"""Which of its three programs a call of a fused operation gets."""

import torch
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.backends import choose
from vimlrp.kernels.dtypes import compute_dtype

__all__ = ["programs_for"]

_BACKENDS = ("auto", "reference", "native", "triton")


def programs_for(operations: str, backend: str, *tensors: Tensor | None) -> str:
    """The name of the programs that take a call.

    Args:
        operations: What they are, as an error begins with.
        backend: "auto", or one of the results, as the caller wishes.
        *tensors: All arguments; None stands for one that was left out.

    Returns:
        "reference", "native" or "triton".

    Raises:
        KernelError: If there is no such backend, or it cannot take these tensors.
    """
    if backend not in _BACKENDS:
        raise KernelError(
            f"{operations} have no backend {backend!r}; choose out of "
            f"{', '.join(map(repr, _BACKENDS))}."
        )
    device = next(x.device for x in tensors if x is not None)
    chosen = choose(backend, device, compute_dtype(*tensors))
    wide = all(x is None or x.dtype == torch.float32 for x in tensors)
    if backend == "native" and not wide:
        raise KernelError(
            "The native fused operations take float32 alone: convert every tensor, or take 'auto'."
        )
    if chosen == "triton" or (chosen == "native" and wide):
        return chosen
    return "reference"
