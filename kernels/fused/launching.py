"""How the Triton programs of the fused operations are cut and launched."""

from typing import Any

import torch
import triton
from torch import Tensor

from vimlrp.kernels.launching import on_device

__all__ = ["WARPS", "launch", "present", "rows", "tile", "tiles", "whole_rows"]

# Elements of a tile: sixteen a thread of four warps.
_TILE = 2048
WARPS = 4


def rows(x: Tensor) -> Tensor:
    """`x`, copied where neighbouring channels are apart in memory."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def present(bias: Tensor | None, x: Tensor) -> Tensor:
    """The bias, or for a program without one a tensor that it never reads."""
    return x if bias is None else bias.contiguous()


def tile(shape: torch.Size) -> dict[str, Any]:
    """The block sizes of programs that take a tile of (B, L, E) each."""
    block_e = min(256, triton.next_power_of_2(shape[2]))
    block_t = min(_TILE // block_e, triton.next_power_of_2(shape[1]))
    return {"BLOCK_T": block_t, "BLOCK_E": block_e, "num_warps": WARPS}


def whole_rows(shape: torch.Size) -> dict[str, Any]:
    """The same where a tile must hold rows as a whole."""
    block_e = triton.next_power_of_2(shape[2])
    block_t = max(1, min(_TILE // block_e, triton.next_power_of_2(shape[1])))
    warps = WARPS if block_e <= 2 * _TILE else 16
    return {"BLOCK_T": block_t, "BLOCK_E": block_e, "num_warps": warps}


def tiles(shape: torch.Size, sizes: dict[str, Any]) -> int:
    """How many programs of those block sizes cover (B, L, E)."""
    rows = shape[0] * triton.cdiv(shape[1], sizes["BLOCK_T"])
    return int(rows * triton.cdiv(shape[2], sizes["BLOCK_E"]))


def launch(kernel: Any, programs: int, *args: Any, **sizes: Any) -> None:
    """Run a kernel on the GPU of its first argument, if there is anything to run."""
    if programs:
        with on_device(args[0]):
            kernel[(programs,)](*args, **sizes)
