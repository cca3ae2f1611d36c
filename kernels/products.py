"""Matrix products of explanations, which on a CUDA GPU keep to float32 at more than its speed.

A GPU multiplies float32 matrices outside its matrix units, at a tenth of the rate of TF32. Three
TF32 products make one whose error is that of float32 (see `products_triton`), in half the time.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.errors import KernelError

__all__ = ["linear", "linear_each"]

# Rows below which splitting the weights costs as much as it saves.
_FEWEST_ROWS = 1024
# The first generation of GPUs with TF32.
_AMPERE = (8, 0)


@torch.no_grad()
def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """`torch.nn.functional.linear` without a graph, for callers that arrange their own backward.

    Args:
        x: (..., K).
        weight: (N, K), in any layout.
        bias: (N,), or None.
        backend: "torch"; "triton" for float32 in three TF32 products; or "auto", which takes these
            on a CUDA GPU for many rows, unless PyTorch is set to multiply float32 as TF32.

    Returns:
        (..., N), in the dtype of x. In float32 the relative error is of the order of 1e-7 with
        either.

    Raises:
        KernelError: If the backend does not exist or cannot take the call.
    """
    if backend not in ("auto", "torch", "triton"):
        raise KernelError(
            f"Products have no backend {backend!r}; choose out of 'auto', 'torch' and 'triton'."
        )
    wide = all(y is None or y.dtype == torch.float32 for y in (x, weight, bias))
    if backend == "triton" and not wide:
        raise KernelError(
            f"The triton backend of products takes float32 alone, and was given {x.dtype} and "
            f"{weight.dtype}: convert both, or take 'auto'."
        )
    if backend == "triton" or (backend == "auto" and wide and _pays(x)):
        # Imported at first use: Triton is absent on most machines without a GPU.
        from vimlrp.kernels import products_triton

        return products_triton.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_each(x: Tensor, weight: Tensor) -> Tensor:
    """`linear` for K matrices side by side: (K, M, R) and (K, N, R) to (K, M, N)."""
    if x.dtype == weight.dtype == torch.float32 and _pays(x[:1]):
        return torch.stack([linear(*pair) for pair in zip(x, weight, strict=True)])
    return torch.bmm(x, weight.transpose(1, 2))


def _pays(x: Tensor) -> bool:
    if not x.is_cuda or x.numel() < _FEWEST_ROWS * x.shape[-1]:
        return False
    # What PyTorch calls none is its default, full precision.
    exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return exact and torch.cuda.get_device_capability(x.device) >= _AMPERE
