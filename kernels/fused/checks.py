"""What the fused operations ask of the tensors that they are given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vimlrp.errors import KernelError

__all__ = ["check_kinds", "check_rank", "check_room", "check_shape"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_kinds(**tensors: Tensor | None) -> None:
    """All floating point, all on the device of the first."""
    given = {name: x for name, x in tensors.items() if x is not None}
    first = next(iter(given))
    for name, x in given.items():
        if x.dtype not in _DTYPES:
            raise KernelError(
                f"{name} has dtype {x.dtype}; give float64, float32, bfloat16 or float16."
            )
        if x.device != given[first].device:
            raise KernelError(
                f"{name} lies on {x.device} and {first} on {given[first].device}; move both to "
                "one device."
            )


def check_rank(name: str, x: Tensor, axes: str) -> None:
    """As many axes as named, none of them empty but the first."""
    if x.dim() != axes.count(",") + 1 or 0 in x.shape[1:]:
        raise KernelError(
            f"{name} has shape {tuple(x.shape)}; it must be ({axes}), each but B at least 1."
        )


def check_shape(name: str, x: Tensor | None, shape: Sequence[int], given: str) -> None:
    """The shape that follows from another argument."""
    if x is not None and tuple(x.shape) != tuple(shape):
        raise KernelError(
            f"{name} has shape {tuple(x.shape)}; with {given} as given it must be {tuple(shape)}."
        )


def check_room(name: str, x: Tensor | None, shape: Sequence[int]) -> None:
    """An output given by the caller: its rows may be apart, its channels must be neighbours."""
    check_shape(name, x, shape, "the input")
    if x is not None and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise KernelError(
            f"{name} has stride {x.stride(-1)} along its last axis; give a tensor or view whose "
            "last axis is contiguous."
        )
